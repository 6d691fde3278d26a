/* Adapters: loaded for a model, chosen by sessions, changed between generations, destroyed while in use. */
#include "check.h"

/* The adapter that the repository has for the model of the tests. */
static const char *adapter_of(const char *model) {
    static char path[4096];
    const char *end = strstr(model, "assets/hearth-5m");
    REQUIRE(end != NULL && strlen(model) + 64 < sizeof path);
    memcpy(path, model, (size_t)(end - model));
    strcpy(path + (end - model), "tests/data/lora/hearth");
    return path;
}

static void told(doppler_session *session, reply *r) {
    doppler_generate_options options = greedy(12);
    OK(doppler_session_reset(session));
    ask(session, "Tell me about a lighthouse by the sea.");
    generate(session, &options, r);
}

/* From a callback: the session is busy. */
static int busy(void *user, const doppler_token_event *event) {
    (void)event;
    EXPECT(doppler_session_set_loras((doppler_session *)user, NULL, NULL, 0, 0), DOPPLER_STATUS_INVALID_STATE);
    return 0;
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model *model = open_model(context, argv[1]), *second;
    doppler_session *session = open_session(model), *fork = NULL;
    doppler_lora *lora = NULL, *other = NULL, *pair[2], *no_lora = NULL;
    doppler_lora_info info;
    doppler_session_stats stats;
    doppler_generate_options options = greedy(4);
    float scales[2] = {0.5f, 0.5f}, bad;
    const char *path = adapter_of(argv[1]);
    void *bytes;
    size_t size = 0;
    reply plain, adapted, again;

    REQUIRE(argc == 3);
    EXPECT(doppler_lora_load(model, "/no/such/adapter", &lora), DOPPLER_STATUS_IO);
    EXPECT(doppler_lora_load(model, argv[1], &lora), DOPPLER_STATUS_BAD_FILE);
    REQUIRE(lora == NULL && strstr(last_error(), "general.type") != NULL);
    OK(doppler_lora_load(model, path, &lora));
    info.struct_size = sizeof info;
    OK(doppler_lora_get_info(lora, &info));
    REQUIRE(strcmp(info.name, "hearth") == 0 && info.rank == 2 && info.n_tensors == 24 && info.bytes > 10000);

    /* On, off, on; the whole is two halves. */
    told(session, &plain);
    OK(doppler_session_set_loras(session, &lora, NULL, 1, 0));
    told(session, &adapted);
    REQUIRE(strcmp(plain.text, adapted.text) != 0);
    OK(doppler_session_set_loras(session, NULL, NULL, 0, 0));
    told(session, &again);
    REQUIRE(strcmp(plain.text, again.text) == 0);
    pair[0] = pair[1] = lora;
    OK(doppler_session_set_loras(session, pair, scales, 2, 0));
    told(session, &again);
    REQUIRE(strcmp(adapted.text, again.text) == 0);
    scales[0] = scales[1] = 0.0f;
    OK(doppler_session_set_loras(session, pair, scales, 2, 0));
    told(session, &again);
    REQUIRE(strcmp(plain.text, again.text) == 0);

    /* What was evaluated is forgotten, or kept. */
    stats.struct_size = sizeof stats;
    OK(doppler_session_set_loras(session, &lora, NULL, 1, 1));
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.cached_tokens > 0);
    OK(doppler_session_set_loras(session, NULL, NULL, 0, 0));
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.cached_tokens == 0 && stats.n_tokens > 0);
    OK(doppler_session_generate(session, &options, busy, session, NULL));

    /* Forks have the same ones; snapshots want them. The handle may go first. */
    OK(doppler_session_set_loras(session, &lora, NULL, 1, 0));
    OK(doppler_session_fork(session, &fork));
    OK(doppler_session_snapshot(session, NULL, 0, &size));
    bytes = malloc(size);
    REQUIRE(bytes != NULL);
    OK(doppler_session_snapshot(session, bytes, size, &size));
    OK(doppler_session_restore(fork, bytes, size));
    OK(doppler_session_set_loras(fork, NULL, NULL, 0, 0));
    EXPECT(doppler_session_restore(fork, bytes, size), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(strstr(last_error(), "adapters") != NULL);
    free(bytes);
    OK(doppler_lora_destroy(lora));
    EXPECT(doppler_lora_destroy(lora), DOPPLER_STATUS_BAD_HANDLE);
    EXPECT(doppler_session_set_loras(fork, &lora, NULL, 1, 0), DOPPLER_STATUS_BAD_HANDLE);
    EXPECT(doppler_session_set_loras(fork, &no_lora, NULL, 1, 0), DOPPLER_STATUS_NULL_POINTER);
    REQUIRE(strstr(last_error(), "loras[0]") != NULL);
    told(session, &again);
    REQUIRE(strcmp(adapted.text, again.text) == 0);

    /* Of another model, or senseless. */
    second = open_model(context, argv[1]);
    OK(doppler_lora_load(second, path, &other));
    OK(doppler_model_destroy(second));
    EXPECT(doppler_session_set_loras(session, &other, NULL, 1, 0), DOPPLER_STATUS_INVALID_ARGUMENT);
    OK(doppler_lora_load(model, path, &lora));
    bad = 1e38f;
    bad *= 1e38f;
    EXPECT(doppler_session_set_loras(session, &lora, &bad, 1, 0), DOPPLER_STATUS_INVALID_ARGUMENT);
    told(session, &again);
    REQUIRE(strcmp(adapted.text, again.text) == 0);

    /* An adapter keeps its model, a session its adapters. */
    OK(doppler_model_destroy(model));
    OK(doppler_session_set_loras(fork, &lora, NULL, 1, 0));
    OK(doppler_lora_destroy(lora));
    OK(doppler_session_destroy(session));
    told(fork, &again);
    REQUIRE(strcmp(adapted.text, again.text) == 0);
    OK(doppler_session_destroy(fork));
    OK(doppler_lora_get_info(other, &info));
    OK(doppler_lora_destroy(other));
    OK(doppler_lora_destroy(no_lora));
    OK(doppler_context_destroy(context));
    return 0;
}
