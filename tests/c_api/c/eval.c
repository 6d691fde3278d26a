/* Logits on request: their largest entry is the greedy token, and asking for too little room costs nothing. */
#include "check.h"

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model_options exactly;
    doppler_model *model = NULL;
    doppler_session *session;
    doppler_generate_options options = greedy(1);
    doppler_session_stats stats;
    const char *prompt = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n";
    const size_t n_vocab = 2048;
    uint32_t tokens[64], all[65], best = 0, i;
    size_t n = 0, total = 0;
    float *logits;
    reply r;

    REQUIRE(argc == 3);
    /* Rows together and alone are rounded differently otherwise. */
    doppler_model_options_init(&exactly, sizeof exactly);
    exactly.exact = 1;
    OK(doppler_model_load(context, argv[1], &exactly, &model));
    session = open_session(model);
    OK(doppler_model_tokenize(model, prompt, strlen(prompt), 0, 1, tokens, 64, &n));
    logits = (float *)malloc(n * n_vocab * sizeof *logits);
    REQUIRE(logits != NULL);
    EXPECT(doppler_session_eval(session, tokens, n, logits, n * n_vocab - 1), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    stats.struct_size = sizeof stats;
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.n_tokens == 0 && stats.phases[DOPPLER_PHASE_PREFILL].submits == 0);
    OK(doppler_session_eval(session, tokens, n, logits, n * n_vocab));
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.n_tokens == n && stats.cached_tokens == n);
    REQUIRE(stats.phases[DOPPLER_PHASE_PREFILL].readback_bytes[DOPPLER_READBACK_CLASS_LOGITS] >= n * n_vocab * 4);
    for (i = 0; i < n * n_vocab; i++) {
        REQUIRE(logits[i] - logits[i] == 0.0f); /* finite */
    }
    for (i = 1; i < n_vocab; i++) {
        if (logits[(n - 1) * n_vocab + i] > logits[(n - 1) * n_vocab + best]) {
            best = i;
        }
    }
    generate(session, &options, &r);
    OK(doppler_session_get_tokens(session, all, 65, &total));
    REQUIRE(total == n + 1 && memcmp(all, tokens, n * sizeof *all) == 0);
    REQUIRE(all[n] == best);

    /* In two parts: the last row is the same, but for rounding. */
    {
        float *again = (float *)malloc(n_vocab * sizeof *again);
        float worst = 0.0f;
        REQUIRE(again != NULL);
        OK(doppler_session_reset(session));
        OK(doppler_session_append_tokens(session, tokens, n - 1));
        OK(doppler_session_eval(session, &tokens[n - 1], 1, again, n_vocab));
        for (i = 0; i < n_vocab; i++) {
            float d = again[i] - logits[(n - 1) * n_vocab + i];
            d = d < 0 ? -d : d;
            worst = d > worst ? d : worst;
        }
        REQUIRE(worst < 0.05f);
        free(again);
    }
    free(logits);
    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
