/* Tokens and text there and back, stop strings, and streamed text that is always whole. */
#include "check.h"

static void round_trip(doppler_model *model, const char *text) {
    uint32_t tokens[256];
    char back[1024];
    size_t n = 0, needed = 0, bytes = strlen(text);
    OK(doppler_model_tokenize(model, text, bytes, 0, 0, NULL, 0, &n));
    REQUIRE(n > 0 && n <= 256);
    if (n > 1) {
        EXPECT(doppler_model_tokenize(model, text, bytes, 0, 0, tokens, n - 1, &needed), DOPPLER_STATUS_BUFFER_TOO_SMALL);
        REQUIRE(needed == n);
    }
    OK(doppler_model_tokenize(model, text, bytes, 0, 0, tokens, n, &needed));
    REQUIRE(needed == n);
    OK(doppler_model_detokenize(model, tokens, n, 0, NULL, 0, &needed));
    REQUIRE(needed == bytes + 1);
    memset(back, 'z', sizeof back);
    EXPECT(doppler_model_detokenize(model, tokens, n, 0, back, bytes, &needed), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    REQUIRE(back[0] == 'z' && needed == bytes + 1);
    OK(doppler_model_detokenize(model, tokens, n, 0, back, bytes + 1, NULL));
    REQUIRE(strcmp(back, text) == 0 && back[bytes + 1] == 'z');
}

static int whole(void *user, const doppler_token_event *event) {
    REQUIRE(whole_utf8(event->text, event->text_bytes));
    REQUIRE(strlen(event->text) <= event->text_bytes);
    ++*(uint32_t *)user;
    return 0;
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_OFF);
    doppler_model *model = open_model(context, argv[1]);
    doppler_session *session = open_session(model);
    doppler_generate_options options = greedy(48);
    doppler_generate_result result;
    doppler_logit_bias bias[256];
    doppler_message message;
    const char *stops[2];
    char first[64], needle[16], buffer[256];
    uint32_t events = 0, ends = 0, tokens[16], i;
    size_t needed = 0;
    reply full, cut;
    char *at;

    REQUIRE(argc == 3);
    round_trip(model, "Hello, world!");
    round_trip(model, "  two  spaces\n\tand 1234 digits\r\n");
    round_trip(model, "h\xc3\xa9llo \xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\xa6\x94!");
    round_trip(model, "<|im_end|> is text here");

    /* Control tokens are found only when asked for. */
    OK(doppler_model_tokenize(model, "<|im_end|>", 10, 0, 1, tokens, 16, &needed));
    REQUIRE(needed == 1 && tokens[0] == 2);
    OK(doppler_model_is_end_of_generation(model, 2, &ends));
    REQUIRE(ends == 1);
    OK(doppler_model_is_end_of_generation(model, 100, &ends));
    REQUIRE(ends == 0);
    OK(doppler_model_token_text(model, 2, buffer, sizeof buffer, &needed));
    REQUIRE(strcmp(buffer, "<|im_end|>") == 0 && needed == 11);
    OK(doppler_model_token_bytes(model, 2, 0, buffer, sizeof buffer, &needed));
    REQUIRE(needed == 1);
    OK(doppler_model_token_bytes(model, 2, 1, buffer, sizeof buffer, &needed));
    REQUIRE(needed == 11);
    message.role = "user";
    message.content = "Hi!";
    OK(doppler_model_format_chat(model, &message, 1, 1, buffer, sizeof buffer, &needed));
    REQUIRE(strstr(buffer, "<|im_start|>user\nHi!<|im_end|>") != NULL && strlen(buffer) + 1 == needed);
    EXPECT(doppler_model_format_chat(model, &message, 1, 1, buffer, 4, &needed), DOPPLER_STATUS_BUFFER_TOO_SMALL);

    /* A stop string out of the middle of the text ends it just before. */
    ask(session, "Who are you?");
    generate(session, &options, &full);
    REQUIRE(full.bytes > 12);
    memcpy(needle, full.text + 6, 4);
    needle[4] = '\0';
    at = strstr(full.text, needle);
    memcpy(first, full.text, (size_t)(at - full.text));
    first[at - full.text] = '\0';
    stops[0] = "\xe4\xb8\x96 never said";
    stops[1] = needle;
    options.stop = stops;
    options.n_stop = 2;
    OK(doppler_session_reset(session));
    ask(session, "Who are you?");
    result = generate(session, &options, &cut);
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_STOP_STRING && result.stop_string == 1);
    REQUIRE(strcmp(cut.text, first) == 0);
    stops[0] = "";
    EXPECT(doppler_session_generate(session, &options, NULL, NULL, NULL), DOPPLER_STATUS_INVALID_ARGUMENT);

    /* The beginning of a stop string is held back, and comes when it does not go on. */
    {
        char never[32];
        memcpy(never, full.text + full.bytes - 5, 5);
        strcpy(never + 5, "\x01 no");
        stops[0] = never;
        OK(doppler_session_reset(session));
        ask(session, "Who are you?");
        options.n_stop = 1;
        result = generate(session, &options, &cut);
        REQUIRE(strcmp(cut.text, full.text) == 0);
    }

    /* Single bytes as tokens: draws from the upper half of them make broken characters, the text is whole all the same. */
    options = greedy(40);
    options.temperature = 5.0f;
    options.top_k = 0;
    options.top_p = 1.0f;
    options.min_p = 0.0f;
    options.ignore_eos = 1;
    for (i = 0, needed = 0; i < 256; i++) {
        char one[16];
        size_t bytes = 0;
        OK(doppler_model_token_bytes(model, 3 + i, 0, one, sizeof one, &bytes));
        if (bytes == 2 && (unsigned char)one[0] >= 0x80) {
            bias[needed].token = 3 + i;
            bias[needed].bias = 60.0f;
            needed++;
        }
    }
    REQUIRE(needed > 60);
    options.logit_bias = bias;
    options.n_logit_bias = needed;
    OK(doppler_session_reset(session));
    ask(session, "Hi!");
    result.struct_size = sizeof result;
    OK(doppler_session_generate(session, &options, whole, &events, &result));
    REQUIRE(result.n_tokens == 40 && events >= 40);

    /* A token forbidden is a token not said. */
    OK(doppler_session_reset(session));
    ask(session, "Who are you?");
    options = greedy(1);
    generate(session, &options, &cut);
    {
        uint32_t all[256], said;
        OK(doppler_session_get_tokens(session, all, 256, &needed));
        said = all[needed - 1];
        bias[0].token = said;
        bias[0].bias = -1e30f;
        options.logit_bias = bias;
        options.n_logit_bias = 1;
        OK(doppler_session_reset(session));
        ask(session, "Who are you?");
        generate(session, &options, &cut);
        OK(doppler_session_get_tokens(session, all, 256, &needed));
        REQUIRE(all[needed - 1] != said);

        /* A token that ends is the last one. */
        OK(doppler_session_reset(session));
        ask(session, "Who are you?");
        options = greedy(20);
        options.ignore_eos = 1;
        options.end_tokens = &said;
        options.n_end_tokens = 1;
        result = generate(session, &options, &cut);
        REQUIRE(result.reason == DOPPLER_FINISH_REASON_END_TOKEN && result.n_tokens == 1);
    }

    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
