/* Callbacks that stop, that call back into the library, that destroy what they are called from; loading that is cancelled. */
#include "check.h"

static doppler_context *context;
static doppler_model *model;
static doppler_session *session;

static int stop_at_third(void *user, const doppler_token_event *event) {
    (void)user;
    return event->index == 2;
}

static int reenter(void *user, const doppler_token_event *event) {
    uint32_t number = 0;
    float logits[1];
    doppler_session_stats stats;
    doppler_context_stats totals;
    stats.struct_size = sizeof stats;
    totals.struct_size = sizeof totals;
    ++*(int *)user;
    if (event->index == 1) {
        EXPECT(doppler_session_generate(session, NULL, NULL, NULL, NULL), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_append_text(session, "a", 1, 0, NULL), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_append_tokens(session, &number, 1), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_append_messages(session, NULL, 0, 1, NULL), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_eval(session, &number, 0, logits, 1), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_get_length(session, &number), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_reset(session), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_truncate(session, 0), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_get_stats(session, &stats), DOPPLER_STATUS_INVALID_STATE);
        EXPECT(doppler_session_reset_stats(session), DOPPLER_STATUS_INVALID_STATE);
        /* Other objects are free. */
        OK(doppler_context_get_stats(context, &totals));
        still_generates(model);
    }
    return 0;
}

static int destroy_all(void *user, const doppler_token_event *event) {
    ++*(int *)user;
    if (event->index == 1) {
        OK(doppler_session_destroy(session));
        OK(doppler_model_destroy(model));
        OK(doppler_context_destroy(context));
    }
    return 0;
}

static int cancel_load(void *user, uint64_t done, uint64_t total) {
    REQUIRE(done <= total && total > 0);
    ++*(int *)user;
    return 1;
}

static int watch_load(void *user, uint64_t done, uint64_t total) {
    uint64_t *last = (uint64_t *)user;
    REQUIRE(done >= *last && done <= total);
    *last = done;
    return 0;
}

int main(int argc, char **argv) {
    doppler_model_options load;
    doppler_generate_options options = greedy(12);
    doppler_generate_result result;
    doppler_context_stats stats;
    uint64_t done = 0;
    uint32_t before = 0, after = 0;
    int calls = 0;

    REQUIRE(argc == 3);
    context = open_context(DOPPLER_GUARD_MODE_OFF);
    OK(doppler_model_options_init(&load, sizeof load));
    load.on_progress = cancel_load;
    load.progress_user = &calls;
    EXPECT(doppler_model_load(context, argv[1], &load, &model), DOPPLER_STATUS_CANCELLED);
    REQUIRE(model == NULL && calls == 1);
    stats.struct_size = sizeof stats;
    OK(doppler_context_get_stats(context, &stats));
    REQUIRE(stats.memory[DOPPLER_MEMORY_CLASS_WEIGHTS] == 0);
    load.on_progress = watch_load;
    load.progress_user = &done;
    OK(doppler_model_load(context, argv[1], &load, &model));
    REQUIRE(done > 5000000);

    session = open_session(model);
    options.ignore_eos = 1;
    result.struct_size = sizeof result;
    ask(session, "Tell me a story.");
    OK(doppler_session_get_length(session, &before));
    OK(doppler_session_generate(session, &options, stop_at_third, NULL, &result));
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_CALLBACK && result.n_tokens == 3);
    OK(doppler_session_get_length(session, &after));
    REQUIRE(after == before + 3);

    calls = 0;
    OK(doppler_session_generate(session, &options, reenter, &calls, &result));
    REQUIRE(calls >= 12 && result.n_tokens == 12);

    calls = 0;
    OK(doppler_session_generate(session, &options, destroy_all, &calls, &result));
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_CANCELLED && calls < 12);
    EXPECT(doppler_session_reset(session), DOPPLER_STATUS_BAD_HANDLE);
    return 0;
}
