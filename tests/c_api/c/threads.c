/* Cancelling from another thread, misuse by two threads, destroying during a call, error texts per thread. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>

static doppler_session *session;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int heard;

/* Tells the other thread that generation is under way. */
static int on_token(void *user, const doppler_token_event *event) {
    (void)user;
    (void)event;
    pthread_mutex_lock(&lock);
    heard++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    return 0;
}

static void wait_for_tokens(int n) {
    pthread_mutex_lock(&lock);
    while (heard < n) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}

static void *cancel(void *user) {
    uint32_t length = 0;
    (void)user;
    wait_for_tokens(3);
    EXPECT(doppler_session_get_length(session, &length), DOPPLER_STATUS_INVALID_STATE);
    EXPECT(doppler_session_reset(session), DOPPLER_STATUS_INVALID_STATE);
    EXPECT(doppler_session_generate(session, NULL, NULL, NULL, NULL), DOPPLER_STATUS_INVALID_STATE);
    REQUIRE(strstr(last_error(), "another call") != NULL);
    OK(doppler_session_cancel(session));
    return NULL;
}

static void *destroy(void *user) {
    (void)user;
    wait_for_tokens(3);
    OK(doppler_session_destroy(session));
    return NULL;
}

static void *other_error(void *user) {
    char text[64];
    (void)user;
    REQUIRE(doppler_last_error(text, sizeof text) == 1 && text[0] == '\0');
    EXPECT(doppler_session_reset(NULL), DOPPLER_STATUS_NULL_POINTER);
    doppler_last_error(text, sizeof text);
    REQUIRE(strcmp(text, "session is NULL") == 0);
    return NULL;
}

static void *separate_session(void *user) {
    still_generates((doppler_model *)user);
    return NULL;
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_OFF);
    doppler_model *model = open_model(context, argv[1]);
    doppler_generate_options options = greedy(400);
    doppler_generate_result result;
    pthread_t thread, second;
    char mine[4096];

    REQUIRE(argc == 3);
    EXPECT(doppler_adapter_get_info(9999, NULL), DOPPLER_STATUS_NULL_POINTER);
    strcpy(mine, last_error());
    REQUIRE(pthread_create(&thread, NULL, other_error, NULL) == 0);
    pthread_join(thread, NULL);
    REQUIRE(strcmp(mine, last_error()) == 0);

    session = open_session(model);
    options.ignore_eos = 1;
    result.struct_size = sizeof result;
    ask(session, "Tell me a story.");
    REQUIRE(pthread_create(&thread, NULL, cancel, NULL) == 0);
    OK(doppler_session_generate(session, &options, on_token, NULL, &result));
    pthread_join(thread, NULL);
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_CANCELLED && result.n_tokens >= 3 && result.n_tokens < 400);

    /* A request that comes between calls ends the next one; a reset takes it back. */
    OK(doppler_session_cancel(session));
    OK(doppler_session_generate(session, &options, NULL, NULL, &result));
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_CANCELLED && result.n_tokens == 0);
    OK(doppler_session_cancel(session));
    OK(doppler_session_reset(session));
    options.max_tokens = 4;
    ask(session, "Hi!");
    OK(doppler_session_generate(session, &options, NULL, NULL, &result));
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_MAX_TOKENS && result.n_tokens == 4);

    /* Two sessions of a model on two threads. */
    REQUIRE(pthread_create(&thread, NULL, separate_session, model) == 0);
    REQUIRE(pthread_create(&second, NULL, separate_session, model) == 0);
    pthread_join(thread, NULL);
    pthread_join(second, NULL);

    heard = 0;
    options.max_tokens = 400;
    OK(doppler_session_reset(session));
    ask(session, "Tell me a story.");
    REQUIRE(pthread_create(&thread, NULL, destroy, NULL) == 0);
    OK(doppler_session_generate(session, &options, on_token, NULL, &result));
    pthread_join(thread, NULL);
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_CANCELLED);
    EXPECT(doppler_session_reset(session), DOPPLER_STATUS_BAD_HANDLE);
    still_generates(model);
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
