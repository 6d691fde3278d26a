/* Embeddings: together and alone, pooled as the rows say, of length 1 if wanted, and no session is needed. */
#include "check.h"

static int near(double a, double b, double bound) { return a - b <= bound && b - a <= bound; }

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    size_t i;
    for (i = 0; i < n; i++) {
        sum += (double)a[i] * b[i];
    }
    return sum;
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model *model = open_model(context, argv[1]);
    doppler_model_info info;
    doppler_embed_options options;
    const char *texts[] = {"A mouse lives in the clock.", "There is a mouse in the clock.", "Boats!"};
    uint32_t tokens[128], lengths[3], counts[3] = {0, 0, 0}, i, j, all = 0;
    size_t needed = 0, n, width, k;
    float *together, *alone, *rows;

    REQUIRE(argc == 3);
    info.struct_size = sizeof info;
    OK(doppler_model_get_info(model, &info));
    width = info.n_embd;
    together = (float *)malloc(3 * width * sizeof *together);
    alone = (float *)malloc(width * sizeof *alone);
    rows = (float *)malloc(128 * width * sizeof *rows);
    REQUIRE(together != NULL && alone != NULL && rows != NULL);

    OK(doppler_embed_options_init(&options, sizeof options));
    REQUIRE(options.pooling == DOPPLER_POOLING_MODEL && options.normalize == 1 && options.parse_special == 0);
    OK(doppler_model_embed(model, texts, 3, NULL, NULL, NULL, 0, &needed));
    REQUIRE(needed == 3 * width);
    EXPECT(doppler_model_embed(model, texts, 3, NULL, counts, together, needed - 1, &needed), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    REQUIRE(counts[0] == 0);
    OK(doppler_model_embed(model, texts, 3, NULL, counts, together, needed, &needed));
    for (i = 0; i < 3; i++) {
        OK(doppler_model_embed(model, texts + i, 1, NULL, NULL, alone, width, NULL));
        REQUIRE(near(dot(alone, together + i * width, width), 1.0, 1e-3));
        REQUIRE(near(dot(together + i * width, together + i * width, width), 1.0, 1e-5));
        OK(doppler_model_tokenize(model, texts[i], strlen(texts[i]), 1, 0, tokens + all, 128 - all, &n));
        REQUIRE(counts[i] == n);
        lengths[i] = (uint32_t)n;
        all += (uint32_t)n;
    }
    /* The same thing in other words is nearer than another thing. */
    REQUIRE(dot(together, together + width, width) > dot(together, together + 2 * width, width));

    /* Without pooling: a row for each token, whose mean is what MEAN gives. */
    options.pooling = DOPPLER_POOLING_NONE;
    options.normalize = 0;
    OK(doppler_model_embed_tokens(model, tokens, lengths, 3, &options, rows, 128 * width, &needed));
    REQUIRE(needed == all * width);
    options.pooling = DOPPLER_POOLING_MEAN;
    OK(doppler_model_embed_tokens(model, tokens, lengths, 3, &options, together, 3 * width, &needed));
    REQUIRE(needed == 3 * width);
    for (i = 0, all = 0; i < 3; all += lengths[i], i++) {
        for (k = 0; k < width; k++) {
            double sum = 0.0;
            for (j = 0; j < lengths[i]; j++) {
                sum += rows[(all + j) * width + k];
            }
            REQUIRE(near(sum / lengths[i], together[i * width + k], 1e-4));
        }
    }
    options.pooling = DOPPLER_POOLING_LAST;
    OK(doppler_model_embed_tokens(model, tokens, lengths, 3, &options, together, 3 * width, NULL));
    REQUIRE(memcmp(together, rows + (lengths[0] - 1) * width, width * sizeof *rows) == 0);
    options.pooling = DOPPLER_POOLING_CLS;
    OK(doppler_model_embed_tokens(model, tokens, lengths, 3, &options, together, 3 * width, NULL));
    REQUIRE(memcmp(together, rows, width * sizeof *rows) == 0);

    /* What cannot be embedded. */
    options.pooling = 77;
    EXPECT(doppler_model_embed(model, texts, 3, &options, NULL, together, 3 * width, NULL), DOPPLER_STATUS_INVALID_ARGUMENT);
    EXPECT(doppler_model_embed(NULL, texts, 3, NULL, NULL, together, 3 * width, NULL), DOPPLER_STATUS_NULL_POINTER);
    EXPECT(doppler_model_embed(model, NULL, 3, NULL, NULL, together, 3 * width, NULL), DOPPLER_STATUS_NULL_POINTER);
    EXPECT(doppler_model_embed(model, texts, 3, NULL, NULL, NULL, 3 * width, NULL), DOPPLER_STATUS_NULL_POINTER);
    EXPECT(doppler_model_embed_tokens(model, tokens, NULL, 3, NULL, together, 3 * width, NULL), DOPPLER_STATUS_NULL_POINTER);
    lengths[1] = 0;
    EXPECT(doppler_model_embed_tokens(model, tokens, lengths, 2, NULL, together, 3 * width, NULL), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(strstr(last_error(), "text 1") != NULL);
    OK(doppler_model_embed(model, NULL, 0, NULL, NULL, together, 3 * width, &needed));
    REQUIRE(needed == 0);

    free(together);
    free(alone);
    free(rows);
    still_generates(model);
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
