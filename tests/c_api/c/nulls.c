/* NULL for every pointer argument of every function, and handles of the wrong kind: a status each, and no harm. */
#include "check.h"

#define NULLED(call) EXPECT(call, DOPPLER_STATUS_NULL_POINTER)
#define FOREIGN(call) EXPECT(call, DOPPLER_STATUS_BAD_HANDLE)

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_OFF), *no_context = NULL;
    doppler_model *model = open_model(context, argv[1]), *no_model = NULL;
    doppler_session *session = open_session(model), *no_session = NULL;
    doppler_context *fake_context = (doppler_context *)(void *)session;
    doppler_model *fake_model = (doppler_model *)(void *)context;
    doppler_session *fake_session = (doppler_session *)(void *)model;
    doppler_context_stats context_stats = {0};
    doppler_model_stats model_stats = {0};
    doppler_session_stats session_stats = {0};
    doppler_adapter_info adapter = {0};
    doppler_model_info info = {0};
    doppler_message message = {0};
    doppler_generate_options options = greedy(1);
    doppler_model_options load;
    uint32_t number = 0, tokens[8] = {3, 4, 5};
    size_t needed = 0;
    char text[64];
    float logits[4096];
    const char *no_text = NULL;

    REQUIRE(argc == 3);
    context_stats.struct_size = sizeof context_stats;
    model_stats.struct_size = sizeof model_stats;
    session_stats.struct_size = sizeof session_stats;
    adapter.struct_size = sizeof adapter;
    info.struct_size = sizeof info;

    REQUIRE(doppler_last_error(NULL, 0) >= 1);
    REQUIRE(doppler_last_error(NULL, 100) >= 1);
    NULLED(doppler_adapter_count(NULL));
    NULLED(doppler_adapter_get_info(0, NULL));

    NULLED(doppler_context_options_init(NULL, sizeof(doppler_context_options)));
    NULLED(doppler_model_options_init(NULL, sizeof(doppler_model_options)));
    NULLED(doppler_session_options_init(NULL, sizeof(doppler_session_options)));
    NULLED(doppler_generate_options_init(NULL, sizeof(doppler_generate_options)));

    NULLED(doppler_context_create(NULL, NULL));
    OK(doppler_context_destroy(no_context));
    FOREIGN(doppler_context_destroy(fake_context));
    NULLED(doppler_context_get_adapter_info(NULL, &adapter));
    NULLED(doppler_context_get_adapter_info(context, NULL));
    FOREIGN(doppler_context_get_adapter_info(fake_context, &adapter));
    NULLED(doppler_context_get_stats(NULL, &context_stats));
    NULLED(doppler_context_get_stats(context, NULL));
    FOREIGN(doppler_context_get_stats(fake_context, &context_stats));
    NULLED(doppler_context_reset_stats(NULL));
    FOREIGN(doppler_context_reset_stats(fake_context));

    NULLED(doppler_model_load(NULL, argv[1], NULL, &no_model));
    NULLED(doppler_model_load(context, NULL, NULL, &no_model));
    NULLED(doppler_model_load(context, argv[1], NULL, NULL));
    FOREIGN(doppler_model_load(fake_context, argv[1], NULL, &no_model));
    OK(doppler_model_options_init(&load, sizeof load));
    load.kv_type = 99;
    EXPECT(doppler_model_load(context, argv[1], &load, &no_model), DOPPLER_STATUS_INVALID_ARGUMENT);
    EXPECT(doppler_model_load(context, "\xff\xfe", NULL, &no_model), DOPPLER_STATUS_BAD_UTF8);
    REQUIRE(no_model == NULL);
    OK(doppler_model_destroy(NULL));
    FOREIGN(doppler_model_destroy(fake_model));
    NULLED(doppler_model_get_info(NULL, &info));
    NULLED(doppler_model_get_info(model, NULL));
    FOREIGN(doppler_model_get_info(fake_model, &info));
    NULLED(doppler_model_get_stats(NULL, &model_stats));
    NULLED(doppler_model_get_stats(model, NULL));
    FOREIGN(doppler_model_get_stats(fake_model, &model_stats));
    NULLED(doppler_model_tokenize(NULL, "a", 1, 0, 0, tokens, 8, &needed));
    NULLED(doppler_model_tokenize(model, NULL, 1, 0, 0, tokens, 8, &needed));
    NULLED(doppler_model_tokenize(model, "a", 1, 0, 0, NULL, 8, &needed));
    NULLED(doppler_model_tokenize(model, "a", 1, 0, 0, NULL, 0, NULL));
    OK(doppler_model_tokenize(model, NULL, 0, 0, 0, tokens, 8, NULL));
    FOREIGN(doppler_model_tokenize(fake_model, "a", 1, 0, 0, tokens, 8, &needed));
    EXPECT(doppler_model_tokenize(model, "\xc3", 1, 0, 0, tokens, 8, &needed), DOPPLER_STATUS_BAD_UTF8);
    NULLED(doppler_model_detokenize(NULL, tokens, 1, 0, text, sizeof text, &needed));
    NULLED(doppler_model_detokenize(model, NULL, 1, 0, text, sizeof text, &needed));
    NULLED(doppler_model_detokenize(model, tokens, 1, 0, NULL, 8, &needed));
    NULLED(doppler_model_detokenize(model, tokens, 1, 0, NULL, 0, NULL));
    FOREIGN(doppler_model_detokenize(fake_model, tokens, 1, 0, text, sizeof text, &needed));
    NULLED(doppler_model_token_bytes(NULL, 3, 0, text, sizeof text, &needed));
    NULLED(doppler_model_token_bytes(model, 3, 0, NULL, 0, NULL));
    EXPECT(doppler_model_token_bytes(model, 99999, 0, text, sizeof text, &needed), DOPPLER_STATUS_INVALID_ARGUMENT);
    NULLED(doppler_model_token_text(NULL, 3, text, sizeof text, &needed));
    NULLED(doppler_model_token_text(model, 3, NULL, 0, NULL));
    EXPECT(doppler_model_token_text(model, 99999, text, sizeof text, &needed), DOPPLER_STATUS_INVALID_ARGUMENT);
    NULLED(doppler_model_is_end_of_generation(NULL, 2, &number));
    NULLED(doppler_model_is_end_of_generation(model, 2, NULL));
    NULLED(doppler_model_format_chat(NULL, &message, 1, 1, text, sizeof text, &needed));
    NULLED(doppler_model_format_chat(model, NULL, 1, 1, text, sizeof text, &needed));
    NULLED(doppler_model_format_chat(model, &message, 1, 1, text, sizeof text, &needed));
    message.role = "user";
    NULLED(doppler_model_format_chat(model, &message, 1, 1, text, sizeof text, &needed));
    message.content = "Hi!";
    NULLED(doppler_model_format_chat(model, &message, 1, 1, NULL, 0, NULL));

    NULLED(doppler_session_create(NULL, NULL, &no_session));
    NULLED(doppler_session_create(model, NULL, NULL));
    FOREIGN(doppler_session_create(fake_model, NULL, &no_session));
    REQUIRE(no_session == NULL);
    OK(doppler_session_destroy(NULL));
    FOREIGN(doppler_session_destroy(fake_session));
    NULLED(doppler_session_cancel(NULL));
    FOREIGN(doppler_session_cancel(fake_session));
    NULLED(doppler_session_append_text(NULL, "a", 1, 0, &number));
    NULLED(doppler_session_append_text(session, NULL, 1, 0, &number));
    OK(doppler_session_append_text(session, NULL, 0, 0, NULL));
    EXPECT(doppler_session_append_text(session, "\xff", 1, 0, &number), DOPPLER_STATUS_BAD_UTF8);
    NULLED(doppler_session_append_tokens(NULL, tokens, 1));
    NULLED(doppler_session_append_tokens(session, NULL, 1));
    OK(doppler_session_append_tokens(session, NULL, 0));
    tokens[0] = 99999;
    EXPECT(doppler_session_append_tokens(session, tokens, 1), DOPPLER_STATUS_INVALID_ARGUMENT);
    tokens[0] = 3;
    NULLED(doppler_session_append_messages(NULL, &message, 1, 1, &number));
    NULLED(doppler_session_append_messages(session, NULL, 1, 1, &number));
    message.content = NULL;
    NULLED(doppler_session_append_messages(session, &message, 1, 1, &number));
    NULLED(doppler_session_generate(NULL, NULL, NULL, NULL, NULL));
    FOREIGN(doppler_session_generate(fake_session, NULL, NULL, NULL, NULL));
    EXPECT(doppler_session_generate(session, NULL, NULL, NULL, NULL), DOPPLER_STATUS_INVALID_STATE); /* empty */
    OK(doppler_session_append_text(session, "Once", 4, 0, NULL));
    options.n_logit_bias = 1;
    NULLED(doppler_session_generate(session, &options, NULL, NULL, NULL));
    options.n_logit_bias = 0;
    options.n_stop = 1;
    NULLED(doppler_session_generate(session, &options, NULL, NULL, NULL));
    options.stop = &no_text;
    NULLED(doppler_session_generate(session, &options, NULL, NULL, NULL));
    options.n_stop = 0;
    options.top_p = 2.0f;
    EXPECT(doppler_session_generate(session, &options, NULL, NULL, NULL), DOPPLER_STATUS_INVALID_ARGUMENT);
    options.top_p = 1.0f;
    OK(doppler_session_generate(session, &options, NULL, NULL, NULL));
    NULLED(doppler_session_eval(NULL, tokens, 1, logits, 4096));
    NULLED(doppler_session_eval(session, NULL, 1, logits, 4096));
    NULLED(doppler_session_eval(session, tokens, 1, NULL, 4096));
    EXPECT(doppler_session_eval(session, tokens, 3, logits, 4096), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    NULLED(doppler_session_get_tokens(NULL, tokens, 8, &needed));
    NULLED(doppler_session_get_tokens(session, NULL, 8, &needed));
    NULLED(doppler_session_get_tokens(session, NULL, 0, NULL));
    NULLED(doppler_session_get_length(NULL, &number));
    NULLED(doppler_session_get_length(session, NULL));
    NULLED(doppler_session_reset(NULL));
    NULLED(doppler_session_truncate(NULL, 0));
    NULLED(doppler_session_get_stats(NULL, &session_stats));
    NULLED(doppler_session_get_stats(session, NULL));
    NULLED(doppler_session_reset_stats(NULL));

    OK(doppler_session_destroy(session));
    FOREIGN(doppler_session_destroy(session));
    FOREIGN(doppler_session_reset(session));
    FOREIGN(doppler_session_cancel(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    FOREIGN(doppler_model_load(context, argv[1], NULL, &no_model));
    return 0;
}
