/* Forks share what was evaluated and go their own ways; snapshots bring a session back, in another session and in another model. */
#include "check.h"

static doppler_model_stats model_stats(doppler_model *model) {
    doppler_model_stats stats;
    stats.struct_size = sizeof stats;
    OK(doppler_model_get_stats(model, &stats));
    return stats;
}

static void *snapshot(doppler_session *session, size_t *size) {
    void *bytes;
    size_t again = 0;
    OK(doppler_session_snapshot(session, NULL, 0, size));
    bytes = malloc(*size);
    REQUIRE(bytes != NULL);
    EXPECT(doppler_session_snapshot(session, bytes, *size - 1, &again), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    REQUIRE(again == *size);
    OK(doppler_session_snapshot(session, bytes, *size, &again));
    REQUIRE(again == *size);
    return bytes;
}

/* From a callback: the session is busy. */
static int busy(void *user, const doppler_token_event *event) {
    doppler_session *session = (doppler_session *)user, *other = NULL;
    size_t size = 0;
    (void)event;
    EXPECT(doppler_session_fork(session, &other), DOPPLER_STATUS_INVALID_STATE);
    EXPECT(doppler_session_snapshot(session, NULL, 0, &size), DOPPLER_STATUS_INVALID_STATE);
    EXPECT(doppler_session_restore(session, &size, sizeof size), DOPPLER_STATUS_INVALID_STATE);
    REQUIRE(other == NULL);
    return 0;
}

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_STRICT);
    doppler_model *model = open_model(context, argv[1]), *second = NULL;
    doppler_session *session = open_session(model), *fork = NULL, *fresh;
    doppler_generate_options options = greedy(24);
    doppler_model_options q8;
    doppler_model_stats before, after;
    doppler_model_info info;
    reply first, again;
    unsigned char *bytes;
    size_t size = 0, i;

    REQUIRE(argc == 3);
    ask(session, "Tell me about a lighthouse by the sea.");
    generate(session, &options, &first);

    /* A fork costs no block; both go on alike, and a third session that was told the same too. */
    before = model_stats(model);
    REQUIRE(before.kv_n_groups == 1 && before.kv_groups[0].window == 0 && before.kv_groups[0].n_layer == 6);
    REQUIRE(before.kv_used_bytes == before.kv_blocks_used * before.kv_block_bytes && before.kv_blocks_shared == 0);
    REQUIRE(before.n_recurrent_layer == 0 && before.states == 0 && before.state_bytes == 0 && before.states_bytes == 0);
    OK(doppler_session_fork(session, &fork));
    after = model_stats(model);
    REQUIRE(after.kv_blocks_used == before.kv_blocks_used && after.kv_blocks_shared == after.kv_blocks_used);
    REQUIRE(after.kv_copies == 0);
    ask(session, "And then?");
    generate(session, &options, &first);
    after = model_stats(model);
    REQUIRE(after.kv_blocks_used > before.kv_blocks_used && after.kv_copies <= 1);
    OK(doppler_session_generate(fork, &options, busy, fork, NULL));
    OK(doppler_session_destroy(fork));

    /* The parent may go first. */
    fork = NULL;
    OK(doppler_session_fork(session, &fork));
    ask(session, "Why?");
    generate(session, &options, &first);
    OK(doppler_session_destroy(session));
    ask(fork, "Why?");
    generate(fork, &options, &again);
    REQUIRE(strcmp(first.text, again.text) == 0 && first.bytes > 0);

    /* Snapshot, go on; restore and go on again; the same elsewhere. */
    bytes = (unsigned char *)snapshot(fork, &size);
    ask(fork, "Who lived there?");
    generate(fork, &options, &first);
    OK(doppler_session_restore(fork, bytes, size));
    ask(fork, "Who lived there?");
    generate(fork, &options, &again);
    REQUIRE(strcmp(first.text, again.text) == 0);
    fresh = open_session(model);
    OK(doppler_session_restore(fresh, bytes, size));
    ask(fresh, "Who lived there?");
    generate(fresh, &options, &again);
    REQUIRE(strcmp(first.text, again.text) == 0);
    OK(doppler_session_destroy(fresh));
    OK(doppler_session_destroy(fork));
    OK(doppler_model_destroy(model));
    model = open_model(context, argv[1]);
    fresh = open_session(model);
    OK(doppler_session_restore(fresh, bytes, size));
    ask(fresh, "Who lived there?");
    generate(fresh, &options, &again);
    REQUIRE(strcmp(first.text, again.text) == 0);

    /* Damaged, cut and foreign ones are refused, and the session stays what it was. */
    OK(doppler_session_restore(fresh, bytes, size));
    for (i = 0; i < size; i += size / 23 + 1) {
        bytes[i] ^= 4;
        EXPECT(doppler_session_restore(fresh, bytes, size), DOPPLER_STATUS_INVALID_ARGUMENT);
        bytes[i] ^= 4;
        EXPECT(doppler_session_restore(fresh, bytes, i), DOPPLER_STATUS_INVALID_ARGUMENT);
    }
    OK(doppler_model_options_init(&q8, sizeof q8));
    q8.kv_type = DOPPLER_KV_TYPE_Q8;
    OK(doppler_model_load(context, argv[1], &q8, &second));
    info.struct_size = sizeof info;
    OK(doppler_model_get_info(second, &info));
    REQUIRE(info.kv_type == DOPPLER_KV_TYPE_Q8);
    REQUIRE(model_stats(second).kv_block_bytes * 100 < before.kv_block_bytes * 54);
    session = open_session(second);
    EXPECT(doppler_session_restore(session, bytes, size), DOPPLER_STATUS_INVALID_ARGUMENT);
    REQUIRE(strstr(last_error(), "q8") != NULL);
    ask(session, "Hello!");
    REQUIRE(generate(session, &options, &again).n_tokens > 0);
    ask(fresh, "Who lived there?");
    generate(fresh, &options, &again);
    REQUIRE(strcmp(first.text, again.text) == 0);

    free(bytes);
    OK(doppler_session_destroy(session));
    OK(doppler_session_destroy(fresh));
    after = model_stats(model);
    REQUIRE(after.kv_blocks_used == 0 && after.kv_blocks_shared == 0 && after.kv_used_bytes == 0);
    OK(doppler_model_destroy(second));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
