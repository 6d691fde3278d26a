/* A prompt that does not fit: a status, nothing is lost, and the session is of use after a reset. */
#include "check.h"

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model *model = open_model(context, argv[1]);
    doppler_session_options small;
    doppler_session *session = NULL;
    doppler_generate_options options = greedy(0);
    doppler_message message;
    doppler_generate_result result;
    uint32_t length = 0, before = 0;
    static char text[8001];
    reply r;

    REQUIRE(argc == 3);
    memset(text, 'x', sizeof text - 1);
    OK(doppler_session_options_init(&small, sizeof small));
    small.n_ctx = 100000;
    EXPECT(doppler_session_create(model, &small, &session), DOPPLER_STATUS_INVALID_ARGUMENT);
    small.n_ctx = 64;
    OK(doppler_session_create(model, &small, &session));
    OK(doppler_session_append_text(session, "Hello there", 11, 0, &before));
    EXPECT(doppler_session_append_text(session, text, sizeof text - 1, 0, &length), DOPPLER_STATUS_CONTEXT_FULL);
    REQUIRE(length == 0);
    OK(doppler_session_get_length(session, &length));
    REQUIRE(length == before);
    OK(doppler_session_reset(session));
    message.role = "user";
    message.content = text;
    EXPECT(doppler_session_append_messages(session, &message, 1, 1, NULL), DOPPLER_STATUS_CONTEXT_FULL);
    OK(doppler_session_reset(session));
    ask(session, "Tell me a short story about a hedgehog.");
    options.ignore_eos = 1;
    result = generate(session, &options, &r);
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_CONTEXT_FULL);
    OK(doppler_session_get_length(session, &length));
    REQUIRE(length == 64);
    OK(doppler_session_reset(session));
    options.max_tokens = 8;
    ask(session, "Hi!");
    REQUIRE(generate(session, &options, &r).n_tokens == 8);
    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
