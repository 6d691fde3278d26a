/* Drafts that the model verifies: the text is the same, the statistics say what was accepted, and options that make no sense are refused. */
#include "check.h"

static const char *const QUESTION = "Tell me a story about a fox and a lantern.";

static doppler_session *drafting(doppler_model *model, const doppler_session_options *options) {
    doppler_session *session = NULL;
    OK(doppler_session_create(model, options, &session));
    return session;
}

static doppler_session_stats stats_of(doppler_session *session) {
    doppler_session_stats stats;
    stats.struct_size = sizeof stats;
    OK(doppler_session_get_stats(session, &stats));
    return stats;
}

/* Two turns, greedy and drawn. */
static void talk(doppler_session *session, reply *first, reply *second) {
    doppler_generate_options options = greedy(48);
    ask(session, QUESTION);
    generate(session, &options, first);
    options.temperature = 0.9f;
    options.repeat_penalty = 1.1f;
    options.seed = 11;
    ask(session, "And then?");
    generate(session, &options, second);
}

static void refuse(doppler_model *model, const doppler_session_options *options, doppler_status status, const char *word) {
    doppler_session *session = NULL;
    EXPECT(doppler_session_create(model, options, &session), status);
    REQUIRE(session == NULL && strstr(last_error(), word) != NULL);
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model *model = open_model(context, argv[1]), *draft = open_model(context, argv[1]);
    doppler_session *session = open_session(model);
    doppler_session_options options;
    doppler_session_stats stats;
    doppler_generate_options forced;
    doppler_logit_bias bias = {900, 1000.0f};
    uint32_t tokens[5] = {300, 400, 900, 900, 900};
    reply want[2], got[2];
    char text[16384];

    REQUIRE(argc == 3);
    talk(session, &want[0], &want[1]);
    stats = stats_of(session);
    REQUIRE(stats.verifications == 0 && stats.drafted_tokens == 0 && stats.mean_accepted == 0.0);
    OK(doppler_session_destroy(session));

    /* The text so far. */
    OK(doppler_session_options_init(&options, sizeof options));
    REQUIRE(options.drafter == DOPPLER_DRAFTER_NONE && options.draft_model == NULL && options.max_draft == 0);
    options.drafter = DOPPLER_DRAFTER_LOOKUP;
    options.ngram_min = 1;
    options.fixed_draft = 1;
    session = drafting(model, &options);
    talk(session, &got[0], &got[1]);
    REQUIRE(strcmp(want[0].text, got[0].text) == 0 && strcmp(want[1].text, got[1].text) == 0);
    stats = stats_of(session);
    REQUIRE(stats.verifications > 0 && stats.drafted_tokens > 0 && stats.accepted_tokens <= stats.drafted_tokens);
    OK(doppler_session_destroy(session));

    /* Figures that are known: a token that is always drawn, and drafted. */
    options.ngram_min = 2;
    options.max_draft = 7;
    session = drafting(model, &options);
    forced = greedy(25);
    forced.ignore_eos = 1;
    forced.logit_bias = &bias;
    forced.n_logit_bias = 1;
    OK(doppler_session_append_tokens(session, tokens, 5));
    generate(session, &forced, &got[0]);
    stats = stats_of(session);
    REQUIRE(stats.verifications == 3 && stats.drafted_tokens == 21 && stats.accepted_tokens == 21);
    REQUIRE(stats.mean_accepted > 6.99 && stats.mean_accepted < 7.01);
    REQUIRE(stats.phases[DOPPLER_PHASE_DECODE].submits == 3 && stats.phases[DOPPLER_PHASE_DECODE].bind_groups == 0);
    OK(doppler_session_get_summary(session, text, sizeof text, NULL));
    REQUIRE(strstr(text, "21 of 21 tokens accepted") != NULL);
    OK(doppler_session_destroy(session));

    /* A model, which may be destroyed before the session. */
    OK(doppler_session_options_init(&options, sizeof options));
    options.drafter = DOPPLER_DRAFTER_MODEL;
    options.draft_model = draft;
    options.max_draft = 3;
    options.fixed_draft = 1;
    session = drafting(model, &options);
    OK(doppler_model_destroy(draft));
    talk(session, &got[0], &got[1]);
    REQUIRE(strcmp(want[0].text, got[0].text) == 0 && strcmp(want[1].text, got[1].text) == 0);
    stats = stats_of(session);
    REQUIRE(stats.accepted_tokens > 0 && stats.draft_ns > 0);
    OK(doppler_session_destroy(session));

    /* What makes no sense. */
    refuse(model, &options, DOPPLER_STATUS_BAD_HANDLE, "model");
    options.draft_model = NULL;
    refuse(model, &options, DOPPLER_STATUS_NULL_POINTER, "draft_model");
    options.drafter = 7;
    refuse(model, &options, DOPPLER_STATUS_INVALID_ARGUMENT, "drafter");
    options.drafter = DOPPLER_DRAFTER_LOOKUP;
    options.max_draft = 16;
    refuse(model, &options, DOPPLER_STATUS_INVALID_ARGUMENT, "max_draft");
    options.max_draft = 0;
    options.ngram_min = 5;
    options.ngram_max = 4;
    refuse(model, &options, DOPPLER_STATUS_INVALID_ARGUMENT, "n-grams");

    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
