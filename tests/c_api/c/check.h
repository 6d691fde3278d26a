/* What the test programs share. Each is run as: program MODEL.gguf EMPTY_FOLDER */
#ifndef CHECK_H
#define CHECK_H

#include <doppler.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define EXPECT(call, wanted) expect((call), (wanted), #call, __FILE__, __LINE__)
#define OK(call) EXPECT(call, DOPPLER_STATUS_OK)

static inline const char *last_error(void) {
    static char text[4096];
    doppler_last_error(text, sizeof text);
    return text;
}

static inline void expect(doppler_status status, doppler_status wanted, const char *call, const char *file, int line) {
    if (status != wanted) {
        fprintf(stderr, "%s:%d: %s\n  gave %s (%s), not %s\n", file, line, call, doppler_status_name(status),
                status == DOPPLER_STATUS_OK ? "" : last_error(), doppler_status_name(wanted));
        exit(1);
    }
}

static inline doppler_context *open_context(uint32_t guard_mode) {
    doppler_context_options options;
    doppler_context *context = NULL;
    OK(doppler_context_options_init(&options, sizeof options));
    options.allow_software = 1;
    options.guard_mode = guard_mode;
    OK(doppler_context_create(&options, &context));
    REQUIRE(context != NULL);
    return context;
}

static inline doppler_model *open_model(doppler_context *context, const char *path) {
    doppler_model *model = NULL;
    OK(doppler_model_load(context, path, NULL, &model));
    REQUIRE(model != NULL);
    return model;
}

static inline doppler_session *open_session(doppler_model *model) {
    doppler_session *session = NULL;
    OK(doppler_session_create(model, NULL, &session));
    REQUIRE(session != NULL);
    return session;
}

static inline doppler_generate_options greedy(uint32_t max_tokens) {
    doppler_generate_options options;
    OK(doppler_generate_options_init(&options, sizeof options));
    options.temperature = 0.0f;
    options.max_tokens = max_tokens;
    return options;
}

static inline void ask(doppler_session *session, const char *text) {
    doppler_message message;
    message.role = "user";
    message.content = text;
    OK(doppler_session_append_messages(session, &message, 1, 1, NULL));
}

/* Collects the text of a generation. */
typedef struct reply {
    char text[8192];
    size_t bytes;
    uint32_t events;
} reply;

static inline int collect(void *user, const doppler_token_event *event) {
    reply *r = (reply *)user;
    REQUIRE(event->struct_size == sizeof *event);
    REQUIRE(event->text[event->text_bytes] == '\0');
    REQUIRE(event->index == r->events);
    REQUIRE(r->bytes + event->text_bytes < sizeof r->text);
    memcpy(r->text + r->bytes, event->text, event->text_bytes + 1);
    r->bytes += event->text_bytes;
    r->events++;
    return 0;
}

static inline doppler_generate_result generate(doppler_session *session, const doppler_generate_options *options,
                                               reply *r) {
    doppler_generate_result result;
    memset(r, 0, sizeof *r);
    result.struct_size = sizeof result;
    OK(doppler_session_generate(session, options, collect, r, &result));
    return result;
}

/* A session of this model still answers. */
static inline void still_generates(doppler_model *model) {
    doppler_session *session = open_session(model);
    doppler_generate_options options = greedy(4);
    reply r;
    ask(session, "Hi!");
    REQUIRE(generate(session, &options, &r).n_tokens > 0);
    OK(doppler_session_destroy(session));
}

/* Whether these bytes are whole UTF-8 characters. */
static inline int whole_utf8(const char *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        unsigned char c = (unsigned char)text[i];
        size_t more = c < 0x80 ? 0 : c < 0xc2 ? 9 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 9;
        if (more == 9 || i + more >= n) {
            return 0;
        }
        for (i++; more > 0; more--, i++) {
            if (((unsigned char)text[i] & 0xc0) != 0x80) {
                return 0;
            }
        }
    }
    return 1;
}

#endif
