/* Guards, submits by label, summaries, caches, profiles and probes. */
#include "check.h"
#include <math.h>

static doppler_session *asked(doppler_model *model) {
    doppler_session *session = open_session(model);
    ask(session, "Who are you?");
    return session;
}

static doppler_status generates(doppler_session *session, uint32_t n) {
    doppler_generate_options options = greedy(n);
    return doppler_session_generate(session, &options, NULL, NULL, NULL);
}

static void guards(doppler_context *context, doppler_model *model) {
    doppler_guard g, now;
    doppler_session *session = asked(model), *own = asked(model);
    memset(&now, 0, sizeof now);
    now.struct_size = sizeof now;
    OK(doppler_guard_init(&g, sizeof g, DOPPLER_GUARD_PRESET_PRODUCTION));
    REQUIRE(g.mode == DOPPLER_GUARD_MODE_STRICT && g.decode.submits == 1 && g.decode.readback_bytes_per_token == 16);
    REQUIRE(g.prefill.readbacks == 1 && g.prefill.pipelines == 0);
    EXPECT(doppler_guard_init(&g, sizeof g, 9), DOPPLER_STATUS_INVALID_ARGUMENT);
    OK(doppler_context_set_guard(context, &g));
    OK(doppler_context_get_guard(context, &now));
    REQUIRE(now.mode == DOPPLER_GUARD_MODE_STRICT && now.decode.readback_bytes_per_token == 16);
    OK(generates(session, 3));
    /* A budget that eight bytes a token break. */
    g.decode.readback_bytes_per_token = 7;
    OK(doppler_context_set_guard(context, &g));
    EXPECT(generates(session, 3), DOPPLER_STATUS_GUARD);
    REQUIRE(strstr(last_error(), "bytes read back") != NULL);
    /* A session's own guard wins, until it is taken away. */
    OK(doppler_guard_init(&now, sizeof now, DOPPLER_GUARD_PRESET_BENCHMARK));
    OK(doppler_session_set_guard(own, &now));
    OK(generates(own, 3));
    OK(doppler_session_set_guard(own, NULL));
    EXPECT(generates(own, 3), DOPPLER_STATUS_GUARD);
    g.decode.readback_bytes_per_token = UINT64_MAX;
    OK(doppler_context_set_guard(context, &g));
    OK(generates(own, 3));
    g.prefill.readback_bytes_per_token = 1;
    OK(doppler_context_set_guard(context, &g));
    OK(doppler_session_reset(own));
    ask(own, "And you?");
    EXPECT(generates(own, 3), DOPPLER_STATUS_GUARD);
    REQUIRE(strstr(last_error(), "prompt chunk") != NULL);
    g.mode = DOPPLER_GUARD_MODE_INHERIT;
    EXPECT(doppler_context_set_guard(context, &g), DOPPLER_STATUS_INVALID_ARGUMENT);
    OK(doppler_context_set_guard(context, &now));
    OK(doppler_session_destroy(session));
    OK(doppler_session_destroy(own));
}

static void counts(doppler_context *context, doppler_model *model) {
    doppler_session *session = asked(model);
    doppler_submit_stats list[64];
    doppler_pool_stats pool[32];
    doppler_session_stats stats;
    doppler_context_stats total;
    doppler_batching_saving saving;
    doppler_purged purged;
    char text[8192], tiny[8];
    size_t n = 0, i, needed = 0;
    uint64_t decodes = 0, dispatches = 0;

    OK(generates(session, 9));
    stats.struct_size = sizeof stats;
    total.struct_size = sizeof total;
    OK(doppler_session_get_stats(session, &stats));
    OK(doppler_session_get_submits(session, NULL, 0, &n));
    REQUIRE(n >= 2 && n <= 64);
    EXPECT(doppler_session_get_submits(session, list, n - 1, NULL), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    OK(doppler_session_get_submits(session, list, 64, &n));
    for (i = 0; i < n; i++) {
        REQUIRE(list[i].submits > 0 && list[i].min_ns <= list[i].max_ns && list[i].max_ns <= list[i].total_ns);
        if (strcmp(list[i].label, "decode") == 0 && list[i].phase == DOPPLER_PHASE_DECODE) {
            decodes += list[i].submits;
            dispatches += list[i].dispatches;
        }
    }
    REQUIRE(decodes == 8 && decodes == stats.phases[DOPPLER_PHASE_DECODE].submits);
    REQUIRE(dispatches == stats.phases[DOPPLER_PHASE_DECODE].dispatches);
    REQUIRE(stats.places[DOPPLER_PLACE_PIPELINE].readbacks == 9 && stats.places[DOPPLER_PLACE_PIPELINE].bytes == 72);
    OK(doppler_session_estimate_batching(session, 4, &saving));
    REQUIRE(saving.submits == 6);
    OK(doppler_session_estimate_batching(session, 1, &saving));
    REQUIRE(saving.submits == 0 && saving.submit_cpu_ns == 0);
    OK(doppler_context_get_submits(context, NULL, 0, &n));
    REQUIRE(n >= 3);

    OK(doppler_session_get_summary(session, text, sizeof text, &needed));
    REQUIRE(strlen(text) + 1 == needed && strstr(text, "submits decode.decode: 8 with") != NULL);
    REQUIRE(strstr(text, "4 tokens a submit would have saved 6 submits") != NULL);
    EXPECT(doppler_session_get_summary(session, tiny, sizeof tiny, NULL), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    OK(doppler_context_get_summary(context, text, sizeof text, NULL));
    REQUIRE(strstr(text, "device memory") != NULL && strstr(text, "hit rate") != NULL);

    OK(doppler_context_get_pool(context, pool, 32, &n));
    for (i = 0; i < n; i++) {
        REQUIRE(pool[i].label[0] != 0 && pool[i].requests > 0 && pool[i].leased == 0 && pool[i].leased_bytes == 0);
    }
    OK(doppler_context_get_stats(context, &total));
    REQUIRE(total.pool_leased == 0 && total.pool_leased_bytes == 0 && total.cached_pipelines > 10);
    OK(doppler_context_purge_caches(context, &purged));
    REQUIRE(purged.pipelines == total.cached_pipelines && purged.modules == total.cached_modules);
    REQUIRE(purged.pool_bytes == total.pool_idle_bytes);
    OK(doppler_context_get_stats(context, &total));
    REQUIRE(total.cached_pipelines == 0 && total.cached_group_layouts == 0 && total.pool_idle == 0);
    OK(doppler_context_purge_caches(context, NULL));
    OK(generates(session, 3));
    OK(doppler_session_destroy(session));
}

static void profiles(doppler_context *context, doppler_model *model, const char *folder) {
    doppler_session *session = asked(model);
    doppler_profile_info info;
    doppler_profile_row rows[512];
    char path[1024], text[16384];
    size_t n = 0, i, qkv = 0;
    FILE *file;

    EXPECT(doppler_context_stop_profile(context, &info), DOPPLER_STATUS_INVALID_STATE);
    EXPECT(doppler_context_get_profile(context, NULL, 0, &n), DOPPLER_STATUS_INVALID_STATE);
    if (doppler_context_start_profile(context) == DOPPLER_STATUS_UNSUPPORTED) {
        OK(doppler_session_destroy(session));
        return;
    }
    OK(generates(session, 3));
    OK(doppler_context_stop_profile(context, &info));
    /* Reading the times borrowed buffers. */
    OK(doppler_context_get_pool(context, NULL, 0, &n));
    REQUIRE(n >= 1);
    REQUIRE(info.gpu_time_source == DOPPLER_GPU_TIME_SOURCE_TIMESTAMP && info.dropped == 0);
    OK(doppler_context_get_profile(context, rows, 512, &n));
    for (i = 0; i < n; i++) {
        REQUIRE(rows[i].count > 0 && rows[i].min_ns <= rows[i].max_ns);
        if (strcmp(rows[i].label, "attn.qkv") == 0 && rows[i].phase == DOPPLER_PHASE_DECODE) {
            REQUIRE(rows[i].layer < 6);
            qkv++;
        }
    }
    REQUIRE(qkv == 6);
    OK(doppler_context_get_profile_text(context, text, sizeof text, NULL));
    REQUIRE(strstr(text, "ffn.down") != NULL && strstr(text, "layer 5") != NULL);
    snprintf(path, sizeof path, "%s/trace.json", folder);
    OK(doppler_context_write_trace(context, path));
    file = fopen(path, "r");
    REQUIRE(file != NULL && fgetc(file) == '{');
    fclose(file);
    EXPECT(doppler_context_write_trace(context, "/no/such/folder/trace.json"), DOPPLER_STATUS_IO);
    REQUIRE(strstr(last_error(), "/no/such/folder/trace.json") != NULL);
    OK(doppler_session_destroy(session));
}

static void probes(doppler_model *model) {
    doppler_session *session = asked(model);
    doppler_probe_options options;
    doppler_probe_reading list[16];
    const char *points[] = {"ffn.residual", "logits"}, *wrong[] = {"nose"};
    size_t n = 77, i;
    float first;

    OK(doppler_probe_options_init(&options, sizeof options));
    options.points = points;
    options.n_points = 2;
    options.first_layer = 4;
    OK(doppler_session_set_probe(session, &options));
    OK(generates(session, 2));
    OK(doppler_session_take_readings(session, NULL, 0, &n));
    REQUIRE(n == 2 * 3);
    EXPECT(doppler_session_take_readings(session, list, 5, NULL), DOPPLER_STATUS_BUFFER_TOO_SMALL);
    OK(doppler_session_take_readings(session, list, 16, &n));
    REQUIRE(n == 6 && list[0].layer == 4 && list[1].layer == 5 && list[2].layer == DOPPLER_NONE);
    for (i = 0; i < n; i++) {
        REQUIRE(list[i].has_stats == 1 && list[i].first_bad == DOPPLER_NONE && list[i].nan == 0 && list[i].n_words == 8);
        memcpy(&first, &list[i].words[0], sizeof first);
        REQUIRE(isfinite(first) && first >= list[i].min && first <= list[i].max && list[i].rms > 0.0);
    }
    REQUIRE(strcmp(list[2].point, "logits") == 0 && list[2].cols == 2048 && list[5].rows == 1);
    OK(doppler_session_take_readings(session, list, 16, &n));
    REQUIRE(n == 0);
    options.limit = 1e-6f;
    options.require_finite = 1;
    OK(doppler_session_set_probe(session, &options));
    EXPECT(generates(session, 2), DOPPLER_STATUS_NOT_FINITE);
    REQUIRE(strstr(last_error(), "layer 4") != NULL);
    options.points = wrong;
    options.n_points = 1;
    EXPECT(doppler_session_set_probe(session, &options), DOPPLER_STATUS_INVALID_ARGUMENT);
    options.n_points = 0;
    options.last_layer = 6;
    EXPECT(doppler_session_set_probe(session, &options), DOPPLER_STATUS_INVALID_ARGUMENT);
    OK(doppler_session_set_probe(session, NULL));
    OK(generates(session, 2));
    OK(doppler_session_destroy(session));
}

int main(int argc, char **argv) {
    doppler_context_options options;
    doppler_context *context = NULL;
    doppler_model *model;
    int round;
    REQUIRE(argc == 3);
    OK(doppler_context_options_init(&options, sizeof options));
    options.allow_software = 1;
    options.cache_dir = argv[2];
    /* The second context finds the compiled pipelines of the first, where the driver keeps any. */
    for (round = 0; round < 2; round++) {
        doppler_context_stats stats;
        OK(doppler_context_create(&options, &context));
        stats.struct_size = sizeof stats;
        OK(doppler_context_get_stats(context, &stats));
        REQUIRE(stats.cache_file_rejected == 0 && (round == 1 || stats.cache_file_bytes == 0));
        model = open_model(context, argv[1]);
        if (round == 0) {
            guards(context, model);
            counts(context, model);
        } else {
            profiles(context, model, argv[2]);
            probes(model);
        }
        OK(doppler_model_destroy(model));
        OK(doppler_context_destroy(context));
    }
    return 0;
}
