/* The smallest program that embeds Doppler: one question, the reply as it arrives. Usage: embed_minimal MODEL.gguf [question] */
#include <doppler.h>
#include <stdio.h>

static int print_token(void *user, const doppler_token_event *event) {
    (void)user;
    fwrite(event->text, 1, event->text_bytes, stdout);
    fflush(stdout);
    return 0; /* go on */
}

int main(int argc, char **argv) {
    doppler_context_options options;
    doppler_context *context = NULL;
    doppler_model *model = NULL;
    doppler_session *session = NULL;
    doppler_message question = {"user", argc > 2 ? argv[2] : "Who are you?"};
    char error[1024] = "";

    doppler_context_options_init(&options, sizeof options);
    options.allow_software = 1; /* any machine will do */

    doppler_status status = doppler_context_create(&options, &context);
    if (!status) status = doppler_model_load(context, argc > 1 ? argv[1] : "assets/hearth-5m-Q8_0.gguf", NULL, &model);
    if (!status) status = doppler_session_create(model, NULL, &session);
    if (!status) status = doppler_session_append_messages(session, &question, 1, 1, NULL);
    if (!status) status = doppler_session_generate(session, NULL, print_token, NULL, NULL);
    if (status) doppler_last_error(error, sizeof error);
    puts(error);

    doppler_session_destroy(session);
    doppler_model_destroy(model);
    doppler_context_destroy(context);
    return status ? 1 : 0;
}
