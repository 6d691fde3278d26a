/*
 * Generates text and shows what it cost the GPU.
 *
 *   generate MODEL.gguf [--adapter NAME] [prompt ...]
 *
 * With a prompt, the text is continued as it stands. Without one, a short scripted conversation is held: the system prompt gives the
 * facts of a village character, as the shipped model assets/hearth-5m-Q8_0.gguf knows them. Then the counters are printed.
 */
#include <doppler.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print_token(void *user, const doppler_token_event *event) {
    (void)user;
    fwrite(event->text, 1, event->text_bytes, stdout);
    fflush(stdout);
    return 0;
}

/* Everything this program makes, so that one place frees it. */
typedef struct program {
    doppler_context *context;
    doppler_model *model;
    doppler_session *session;
} program;

static int finish(program *p, int code) {
    doppler_session_destroy(p->session);
    doppler_model_destroy(p->model);
    doppler_context_destroy(p->context);
    return code;
}

static int fail(program *p, const char *what, doppler_status status) {
    size_t needed = doppler_last_error(NULL, 0);
    char *text = (char *)malloc(needed);
    if (text != NULL) {
        doppler_last_error(text, needed);
    }
    fprintf(stderr, "%s failed: %s: %s\n", what, doppler_status_name(status), text != NULL ? text : "");
    free(text);
    return finish(p, 1);
}

static doppler_status converse(doppler_session *session, const doppler_generate_options *options) {
    static const doppler_message start[] = {
        {"system", "You are Hester Mossbrook, the herbalist of the Crooked Kettle in Little Fernhollow. You are cheerful. "
                   "You sell: jar of salve (7 coppers), dried lavender (3 coppers), burn balm (12 coppers). "
                   "You have heard a rumour: a white stag was seen near the standing stones last night. "
                   "The smithy is north of the square, past the old well. You trust Old Tobin."},
        {"user", "What do you sell?"},
    };
    static const doppler_message later[] = {
        {"user", "How much for the jar of salve and the burn balm?"},
        {"user", "Heard anything strange?"},
    };
    size_t turn;
    for (turn = 0; turn < 3; turn++) {
        const doppler_message *messages = turn == 0 ? start : &later[turn - 1];
        size_t n = turn == 0 ? 2 : 1;
        doppler_status status = doppler_session_append_messages(session, messages, n, 1, NULL);
        if (status != DOPPLER_STATUS_OK) {
            return status;
        }
        printf("> %s\n", messages[n - 1].content);
        status = doppler_session_generate(session, options, print_token, NULL, NULL);
        printf("\n");
        if (status != DOPPLER_STATUS_OK) {
            return status;
        }
    }
    return DOPPLER_STATUS_OK;
}

static double per_second(uint64_t count, uint64_t ns) { return ns == 0 ? 0.0 : (double)count * 1e9 / (double)ns; }

static doppler_status print_stats(const program *p) {
    static const char *const names[4] = {"load", "prefill", "decode", "other"};
    doppler_context_stats context;
    doppler_session_stats session;
    doppler_adapter_info adapter;
    doppler_status status;
    size_t i, k;
    context.struct_size = sizeof context;
    session.struct_size = sizeof session;
    adapter.struct_size = sizeof adapter;
    if ((status = doppler_context_get_stats(p->context, &context)) != DOPPLER_STATUS_OK ||
        (status = doppler_session_get_stats(p->session, &session)) != DOPPLER_STATUS_OK ||
        (status = doppler_context_get_adapter_info(p->context, &adapter)) != DOPPLER_STATUS_OK) {
        return status;
    }
    printf("\n%s (%s), doppler %s\n", adapter.name, adapter.backend, doppler_version_string());
    printf("%-8s %8s %10s %8s %12s %9s %9s %12s %10s\n", "phase", "submits", "dispatches", "buffers", "bind groups",
           "pipelines", "readbacks", "bytes read", "gpu ms");
    for (i = 0; i < 4; i++) {
        const doppler_phase_stats *s = &context.phases[i];
        unsigned long long readbacks = 0, bytes = 0;
        for (k = 0; k < 8; k++) {
            readbacks += s->readbacks[k];
            bytes += s->readback_bytes[k];
        }
        printf("%-8s %8llu %10llu %8llu %12llu %9llu %9llu %12llu ", names[i], (unsigned long long)s->submits,
               (unsigned long long)s->dispatches, (unsigned long long)s->buffers_created,
               (unsigned long long)s->bind_groups, (unsigned long long)s->pipelines, readbacks, bytes);
        if (context.gpu_time_source == DOPPLER_GPU_TIME_SOURCE_TIMESTAMP) {
            printf("%10.2f\n", (double)s->gpu_ns / 1e6);
        } else {
            printf("%10s\n", "-");
        }
    }
    printf("prefill %llu tokens, %.1f tokens/s; decode %llu tokens, %.1f tokens/s; first token after %.1f ms\n",
           (unsigned long long)session.prefill_tokens, per_second(session.prefill_tokens, session.prefill_ns),
           (unsigned long long)session.decode_tokens, per_second(session.decode_tokens, session.decode_ns),
           (double)session.first_token_ns / 1e6);
    printf("device memory %.1f MB, at most %.1f MB\n", (double)context.memory_total / 1e6,
           (double)context.memory_peak / 1e6);
    return DOPPLER_STATUS_OK;
}

int main(int argc, char **argv) {
    program p = {NULL, NULL, NULL};
    doppler_context_options options;
    doppler_generate_options generation;
    doppler_status status;
    int i, with_prompt = 0;

    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [--adapter NAME] [prompt ...]\n", argv[0]);
        return 2;
    }
    if (doppler_abi_version() != DOPPLER_ABI_VERSION) {
        fprintf(stderr, "the library has ABI %u, this program was built for %u\n", (unsigned)doppler_abi_version(),
                (unsigned)DOPPLER_ABI_VERSION);
        return 2;
    }
    doppler_context_options_init(&options, sizeof options);
    options.allow_software = 1;
    options.gpu_timing = 1;
    for (i = 2; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--adapter") == 0) {
            options.adapter_name = argv[i + 1];
        }
    }
    if ((status = doppler_context_create(&options, &p.context)) != DOPPLER_STATUS_OK) {
        return fail(&p, "opening the device", status);
    }
    if ((status = doppler_model_load(p.context, argv[1], NULL, &p.model)) != DOPPLER_STATUS_OK) {
        return fail(&p, "loading the model", status);
    }
    if ((status = doppler_session_create(p.model, NULL, &p.session)) != DOPPLER_STATUS_OK) {
        return fail(&p, "creating the session", status);
    }

    doppler_generate_options_init(&generation, sizeof generation);
    generation.max_tokens = 128;
    generation.temperature = 0.0f; /* the same text every time */
    for (i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--adapter") == 0) {
            i++;
            continue;
        }
        if (with_prompt) {
            status = doppler_session_append_text(p.session, " ", 1, 0, NULL);
        }
        if (status == DOPPLER_STATUS_OK) {
            status = doppler_session_append_text(p.session, argv[i], strlen(argv[i]), 0, NULL);
        }
        if (status != DOPPLER_STATUS_OK) {
            return fail(&p, "appending the prompt", status);
        }
        printf("%s%s", with_prompt ? " " : "", argv[i]);
        with_prompt = 1;
    }
    if (with_prompt) {
        status = doppler_session_generate(p.session, &generation, print_token, NULL, NULL);
        printf("\n");
    } else {
        status = converse(p.session, &generation);
    }
    if (status != DOPPLER_STATUS_OK) {
        return fail(&p, "generating", status);
    }
    if ((status = print_stats(&p)) != DOPPLER_STATUS_OK) {
        return fail(&p, "reading the counters", status);
    }
    return finish(&p, 0);
}
