/* Several sessions generate together: each says what it says alone; one that fails, stops or is cancelled leaves the others alone. */
#include "check.h"

enum { N = 5 };

static const char *const PROMPTS[N] = {"Hi!", "Tell me about a lighthouse by the sea.", "Who are you?", "Count to ten.", "Why?"};

/* What each session said, and what the callback does. */
typedef struct talk {
    reply replies[N];
    doppler_session *sessions[N];
    size_t stop, cancel;
} talk;

static int hear(void *user, size_t session, const doppler_token_event *event) {
    talk *t = (talk *)user;
    REQUIRE(session < N);
    collect(&t->replies[session], event);
    /* All of them are busy. */
    EXPECT(doppler_session_reset(t->sessions[(session + 1) % N]), DOPPLER_STATUS_INVALID_STATE);
    if (session == t->cancel) {
        OK(doppler_session_cancel(t->sessions[session]));
    }
    return session == t->stop && t->replies[session].events == 3;
}

static void open_all(doppler_model *model, talk *t) {
    size_t i;
    memset(t, 0, sizeof *t);
    t->stop = t->cancel = N;
    for (i = 0; i < N; i++) {
        t->sessions[i] = open_session(model);
        ask(t->sessions[i], PROMPTS[i]);
    }
}

static void close_all(talk *t) {
    size_t i;
    for (i = 0; i < N; i++) {
        OK(doppler_session_destroy(t->sessions[i]));
    }
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model_options exact;
    doppler_model *model = NULL, *second;
    doppler_generate_options options[N];
    const doppler_generate_options *chosen[N];
    doppler_generate_result results[N], alone;
    doppler_generate_result *outs[N];
    doppler_status statuses[N];
    doppler_session *mixed[2];
    talk t;
    reply single[N], r;
    size_t i;

    REQUIRE(argc == 3);
    /* Products do not depend on how many rows are made together. */
    OK(doppler_model_options_init(&exact, sizeof exact));
    exact.exact = 1;
    OK(doppler_model_load(context, argv[1], &exact, &model));
    for (i = 0; i < N; i++) {
        doppler_session *session = open_session(model);
        options[i] = greedy((uint32_t)(6 + 4 * i));
        chosen[i] = &options[i];
        outs[i] = &results[i];
        results[i].struct_size = sizeof results[i];
        ask(session, PROMPTS[i]);
        alone = generate(session, &options[i], &single[i]);
        REQUIRE(alone.n_tokens > 0);
        OK(doppler_session_destroy(session));
    }

    open_all(model, &t);
    OK(doppler_generate_many(t.sessions, N, chosen, hear, &t, outs, statuses));
    for (i = 0; i < N; i++) {
        REQUIRE(statuses[i] == DOPPLER_STATUS_OK);
        REQUIRE(strcmp(t.replies[i].text, single[i].text) == 0);
        REQUIRE(results[i].n_tokens > 0 && results[i].prefill_tokens > 0 && results[i].total_ns > 0);
        REQUIRE(results[i].decode_tokens + 1 == results[i].n_tokens);
    }
    /* They go on by themselves. */
    ask(t.sessions[2], "And then?");
    generate(t.sessions[2], &options[0], &r);
    close_all(&t);

    /* No callback, results or statuses; default options for one. */
    open_all(model, &t);
    chosen[1] = NULL;
    OK(doppler_generate_many(t.sessions, 2, chosen, NULL, NULL, NULL, NULL));
    chosen[1] = &options[1];
    OK(doppler_generate_many(NULL, 0, NULL, NULL, NULL, NULL, NULL));
    close_all(&t);

    /* One stops, one is cancelled, one fails; the others say what they would. */
    open_all(model, &t);
    t.stop = 1;
    t.cancel = 2;
    OK(doppler_session_reset(t.sessions[3]));
    outs[4] = NULL;
    results[3].n_tokens = 77;
    EXPECT(doppler_generate_many(t.sessions, N, chosen, hear, &t, outs, statuses), DOPPLER_STATUS_INVALID_STATE);
    REQUIRE(strstr(last_error(), "sessions[3]") != NULL);
    REQUIRE(statuses[0] == DOPPLER_STATUS_OK && statuses[3] == DOPPLER_STATUS_INVALID_STATE);
    REQUIRE(strcmp(t.replies[0].text, single[0].text) == 0 && strcmp(t.replies[4].text, single[4].text) == 0);
    REQUIRE(results[1].reason == DOPPLER_FINISH_REASON_CALLBACK);
    REQUIRE(results[2].reason == DOPPLER_FINISH_REASON_CANCELLED);
    REQUIRE(results[3].n_tokens == 77 && t.replies[3].events == 0);
    close_all(&t);

    /* Refused as a whole: nothing was generated. */
    open_all(model, &t);
    second = open_model(context, argv[1]);
    mixed[0] = t.sessions[0];
    mixed[1] = open_session(second);
    ask(mixed[1], "Hi!");
    statuses[0] = DOPPLER_STATUS_IO;
    EXPECT(doppler_generate_many(mixed, 2, chosen, hear, &t, NULL, statuses), DOPPLER_STATUS_INVALID_ARGUMENT);
    OK(doppler_session_destroy(mixed[1]));
    mixed[1] = mixed[0];
    EXPECT(doppler_generate_many(mixed, 2, chosen, hear, &t, NULL, statuses), DOPPLER_STATUS_INVALID_STATE);
    mixed[1] = NULL;
    EXPECT(doppler_generate_many(mixed, 2, chosen, hear, &t, NULL, statuses), DOPPLER_STATUS_NULL_POINTER);
    REQUIRE(strstr(last_error(), "sessions[1]") != NULL);
    EXPECT(doppler_generate_many(NULL, 2, chosen, hear, &t, NULL, statuses), DOPPLER_STATUS_NULL_POINTER);
    options[1].struct_size = 3;
    EXPECT(doppler_generate_many(t.sessions, 2, chosen, hear, &t, NULL, statuses), DOPPLER_STATUS_BAD_STRUCT_SIZE);
    REQUIRE(strstr(last_error(), "options[1]") != NULL);
    results[1].struct_size = 3;
    EXPECT(doppler_generate_many(t.sessions, 2, NULL, hear, &t, outs, statuses), DOPPLER_STATUS_BAD_STRUCT_SIZE);
    REQUIRE(statuses[0] == DOPPLER_STATUS_IO && t.replies[0].events == 0);
    close_all(&t);
    still_generates(model);
    OK(doppler_model_destroy(second));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
