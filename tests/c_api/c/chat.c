/* Conversations as JSON, templates, tools and variables of the caller's choice, and the kinds of streamed text. */
#include "check.h"

#define SWITCH                                                                                                         \
    "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"     \
    "{% if add_generation_prompt %}{% if enable_thinking is defined and not enable_thinking %}plain{% else %}"          \
    "<think>\n{% endif %}{% endif %}"

static const char *const talk = "[{\"role\": \"user\", \"content\": \"Who are you?\"}]";

static const char *render(doppler_model *model, const char *messages, const doppler_chat_options *options) {
    static char text[2048];
    size_t needed = 0;
    OK(doppler_model_render_chat(model, messages, strlen(messages), options, 1, NULL, 0, &needed));
    REQUIRE(needed <= sizeof text);
    EXPECT(doppler_model_render_chat(model, messages, strlen(messages), options, 1, text, needed - 1, NULL),
           DOPPLER_STATUS_BUFFER_TOO_SMALL);
    OK(doppler_model_render_chat(model, messages, strlen(messages), options, 1, text, needed, NULL));
    REQUIRE(strlen(text) + 1 == needed);
    return text;
}

/* Whether the last error has this text. */
static int says(const char *part) {
    char text[1024];
    doppler_last_error(text, sizeof text);
    return strstr(text, part) != NULL;
}

static int is_kind(void *user, const doppler_token_event *event) {
    REQUIRE(event->kind == *(const uint32_t *)user && event->reserved == 0);
    return 0;
}

static void generates(doppler_session *session, uint32_t kind) {
    doppler_generate_options options = greedy(6);
    OK(doppler_session_generate(session, &options, is_kind, &kind, NULL));
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_OFF);
    doppler_model *model = open_model(context, argv[1]);
    doppler_session *session = open_session(model), *fork = NULL;
    doppler_chat_options options;
    char text[256];
    size_t needed = 0;
    uint32_t added = 0;

    REQUIRE(argc == 3);
    OK(doppler_chat_options_init(&options, sizeof options));
    REQUIRE(strstr(render(model, talk, NULL), "<|im_start|>user\nWho are you?<|im_end|>") != NULL);
    REQUIRE(strcmp(render(model, talk, &options), render(model, talk, NULL)) == 0);
    options.chat_template = "llama3";
    REQUIRE(strstr(render(model, talk, &options), "<|start_header_id|>user<|end_header_id|>\n\nWho are you?") != NULL);
    options.chat_template = SWITCH;
    REQUIRE(strcmp(render(model, talk, &options), "user:Who are you?;<think>\n") == 0);
    options.tools = "[{\"name\": \"f\"}]";
    options.variables = "{\"enable_thinking\": false}";
    REQUIRE(strcmp(render(model, talk, &options), "user:Who are you?;[{\"name\": \"f\"}]plain") == 0);

    /* What is wrong has a name, and the template speaks for itself. */
    options.tools = "{}";
    EXPECT(doppler_model_render_chat(model, talk, strlen(talk), &options, 1, NULL, 0, &needed),
           DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(says("tools"));
    options.tools = NULL;
    options.variables = "[";
    EXPECT(doppler_session_set_chat_options(session, &options), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(says("variables"));
    options.variables = NULL;
    options.chat_template = "no-such-name";
    EXPECT(doppler_session_set_chat_options(session, &options), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(says("no-such-name") && says("chatml"));
    options.chat_template = "{% if %}";
    EXPECT(doppler_session_set_chat_options(session, &options), DOPPLER_STATUS_TEMPLATE);
    options.chat_template = "{{ raise_exception('Only one voice, please.') }}";
    EXPECT(doppler_model_render_chat(model, talk, strlen(talk), &options, 1, text, sizeof text, &needed),
           DOPPLER_STATUS_TEMPLATE);
    REQUIRE(says("Only one voice, please."));
    EXPECT(doppler_model_render_chat(model, "{}", 2, NULL, 1, text, sizeof text, &needed), DOPPLER_STATUS_INVALID_ARGUMENT);
    EXPECT(doppler_model_render_chat(model, "[{}]", 4, NULL, 1, text, sizeof text, &needed), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(says("messages[0]"));
    EXPECT(doppler_session_append_messages_json(session, "[", 1, 1, &added), DOPPLER_STATUS_INVALID_ARGUMENT);

    /* A prompt that ends with the mark of reasoning makes the reply reasoning, from the first token on; generating goes on with it. */
    options.chat_template = SWITCH;
    OK(doppler_session_set_chat_options(session, &options));
    OK(doppler_session_append_messages_json(session, talk, strlen(talk), 1, &added));
    REQUIRE(added > 0);
    OK(doppler_session_fork(session, &fork));
    generates(session, DOPPLER_SEGMENT_KIND_REASONING);
    generates(session, DOPPLER_SEGMENT_KIND_REASONING);
    generates(fork, DOPPLER_SEGMENT_KIND_REASONING);
    OK(doppler_session_reset(session));
    options.variables = "{\"enable_thinking\": false}";
    OK(doppler_session_set_chat_options(session, &options));
    OK(doppler_session_append_messages_json(session, talk, strlen(talk), 1, NULL));
    generates(session, DOPPLER_SEGMENT_KIND_CONTENT);
    OK(doppler_session_reset(session));
    OK(doppler_session_set_chat_options(session, NULL));
    ask(session, "Who are you?");
    generates(session, DOPPLER_SEGMENT_KIND_CONTENT);

    OK(doppler_session_destroy(fork));
    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
