/* Continuations of a prompt: their scores are what the logits say, together and alone, and the session does not notice. */
#include "check.h"

/* e^x and ln x, so that nothing but the library is linked. */
static double exp_of(double x) {
    double term = 1.0, sum = 1.0, y = x / 1024.0;
    int i;
    for (i = 1; i < 12; i++) {
        term *= y / i;
        sum += term;
    }
    for (i = 0; i < 10; i++) {
        sum *= sum;
    }
    return sum;
}

static double ln_of(double x) {
    double y = 0.0;
    int i;
    for (i = 0; i < 60; i++) {
        y += 2.0 * (x - exp_of(y)) / (x + exp_of(y));
    }
    return y;
}

static double log_prob(const float *row, size_t n, uint32_t token) {
    double top = row[0], sum = 0.0;
    size_t i;
    for (i = 1; i < n; i++) {
        top = row[i] > top ? row[i] : top;
    }
    for (i = 0; i < n; i++) {
        sum += exp_of(row[i] - top);
    }
    return row[token] - top - ln_of(sum);
}

static int near(double a, double b, double bound) { return a - b <= bound && b - a <= bound; }

static int busy(void *user, const doppler_token_event *event) {
    const char *texts[] = {"a"};
    (void)event;
    EXPECT(doppler_session_choose((doppler_session *)user, texts, 1, NULL, NULL, NULL), DOPPLER_STATUS_INVALID_STATE);
    return 0;
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model_options exactly;
    doppler_model *model = NULL;
    doppler_session *session, *other;
    doppler_choose_options options;
    doppler_session_stats stats;
    doppler_score scores[4], again[4];
    doppler_generate_options draw = greedy(6);
    const char *texts[] = {" in a clock.", " under the stairs of a very old house.", " x", " in a box."};
    const char *prompt = "The little mouse lived";
    const size_t n_vocab = 2048;
    uint32_t tokens[256], lengths[4], best = 99, best_again = 99, i, j, all = 0;
    float log_probs[256], *logits;
    size_t n = 0, n_prompt = 0, needed = 0;
    reply a, b;

    REQUIRE(argc == 3);
    doppler_model_options_init(&exactly, sizeof exactly);
    exactly.exact = 1;
    exactly.kv_type = DOPPLER_KV_TYPE_F32;
    OK(doppler_model_load(context, argv[1], &exactly, &model));
    session = open_session(model);
    EXPECT(doppler_session_choose(session, texts, 4, NULL, scores, &best), DOPPLER_STATUS_INVALID_STATE);
    OK(doppler_session_append_text(session, prompt, strlen(prompt), 0, NULL));
    OK(doppler_session_get_tokens(session, NULL, 0, &n_prompt));

    OK(doppler_session_choose(session, texts, 4, NULL, scores, &best));
    stats.struct_size = sizeof stats;
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.n_tokens == n_prompt && stats.cached_tokens == n_prompt && stats.generated_tokens == 0);
    REQUIRE(stats.phases[DOPPLER_PHASE_PREFILL].submits == 2);
    REQUIRE(stats.phases[DOPPLER_PHASE_PREFILL].readbacks[DOPPLER_READBACK_CLASS_SCORE] == 2);
    REQUIRE(stats.places[DOPPLER_PLACE_RESULTS].readbacks == 2);

    /* Against the logits of each, in a session of its own. */
    for (i = 0; i < 4; i++) {
        double sum = 0.0;
        OK(doppler_model_tokenize(model, texts[i], strlen(texts[i]), 0, 0, tokens + all, 256 - all, &n));
        REQUIRE(n == scores[i].n_tokens && n > 0);
        lengths[i] = (uint32_t)n;
        logits = (float *)malloc((n_prompt + n) * n_vocab * sizeof *logits);
        REQUIRE(logits != NULL);
        other = open_session(model);
        {
            uint32_t whole[256];
            OK(doppler_session_get_tokens(session, whole, 256, &needed));
            memcpy(whole + n_prompt, tokens + all, n * sizeof *tokens);
            OK(doppler_session_eval(other, whole, n_prompt + n, logits, (n_prompt + n) * n_vocab));
        }
        for (j = 0; j < n; j++) {
            sum += log_prob(logits + (n_prompt - 1 + j) * n_vocab, n_vocab, tokens[all + j]);
        }
        REQUIRE(near(sum, scores[i].log_likelihood, 2e-3 * (double)n));
        REQUIRE(near(scores[i].mean * (double)n, scores[i].log_likelihood, 1e-9));
        REQUIRE(near(scores[i].first, log_prob(logits + (n_prompt - 1) * n_vocab, n_vocab, tokens[all]), 2e-3));
        REQUIRE(scores[i].log_likelihood <= scores[best].log_likelihood);
        all += (uint32_t)n;
        free(logits);
        OK(doppler_session_destroy(other));
    }

    /* As token ids, each with its number; by other rankings. */
    OK(doppler_choose_options_init(&options, sizeof options));
    REQUIRE(options.ranking == DOPPLER_RANKING_SUM && options.parse_special == 0);
    OK(doppler_session_choose_tokens(session, tokens, lengths, 4, &options, log_probs, again, &best_again));
    REQUIRE(best_again == best);
    for (i = 0, all = 0; i < 4; all += lengths[i], i++) {
        double sum = 0.0;
        for (j = 0; j < lengths[i]; j++) {
            sum += log_probs[all + j];
        }
        REQUIRE(near(sum, again[i].log_likelihood, 1e-6) && near(sum, scores[i].log_likelihood, 1e-3));
    }
    for (options.ranking = DOPPLER_RANKING_MEAN; options.ranking <= DOPPLER_RANKING_FIRST; options.ranking++) {
        OK(doppler_session_choose_tokens(session, tokens, lengths, 4, &options, NULL, NULL, &best_again));
        for (i = 0; i < 4; i++) {
            const int mean = options.ranking == DOPPLER_RANKING_MEAN;
            REQUIRE(mean ? again[i].mean <= again[best_again].mean + 1e-3 : again[i].first <= again[best_again].first + 1e-3);
        }
    }
    EXPECT(doppler_session_choose(session, texts, 4, &options, scores, &best), DOPPLER_STATUS_INVALID_ARGUMENT);

    /* What cannot be chosen from. */
    EXPECT(doppler_session_choose(session, texts, 0, NULL, scores, &best), DOPPLER_STATUS_INVALID_ARGUMENT);
    EXPECT(doppler_session_choose(session, NULL, 1, NULL, scores, &best), DOPPLER_STATUS_NULL_POINTER);
    EXPECT(doppler_session_choose(NULL, texts, 1, NULL, scores, &best), DOPPLER_STATUS_NULL_POINTER);
    EXPECT(doppler_session_choose_tokens(session, tokens, NULL, 1, NULL, NULL, scores, &best), DOPPLER_STATUS_NULL_POINTER);
    lengths[1] = 0;
    EXPECT(doppler_session_choose_tokens(session, tokens, lengths, 2, NULL, NULL, scores, &best), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(strstr(last_error(), "continuation 1") != NULL);
    tokens[0] = 2048;
    lengths[0] = 1;
    EXPECT(doppler_session_choose_tokens(session, tokens, lengths, 1, NULL, NULL, scores, &best), DOPPLER_STATUS_INVALID_ARGUMENT);
    OK(doppler_session_cancel(session));
    EXPECT(doppler_session_choose(session, texts, 4, NULL, scores, &best), DOPPLER_STATUS_CANCELLED);
    OK(doppler_session_choose(session, texts, 1, NULL, NULL, NULL));

    /* The session goes on as one that was never asked. */
    other = open_session(model);
    OK(doppler_session_append_text(other, prompt, strlen(prompt), 0, NULL));
    generate(session, &draw, &a);
    generate(other, &draw, &b);
    REQUIRE(strcmp(a.text, b.text) == 0);
    OK(doppler_session_generate(session, &draw, busy, session, NULL));

    OK(doppler_session_destroy(other));
    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
