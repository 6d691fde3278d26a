/* Structures of other versions: older ones are served, newer ones if what is unknown is zero, garbage is refused. */
#include "check.h"

#define BAD(call) EXPECT(call, DOPPLER_STATUS_BAD_STRUCT_SIZE)

typedef struct newer_options {
    doppler_session_options options;
    uint64_t unknown;
} newer_options;

typedef struct newer_stats {
    doppler_session_stats stats;
    uint64_t unknown;
} newer_stats;

int main(int argc, char **argv) {
    doppler_context *context = open_context(DOPPLER_GUARD_MODE_OFF), *other = NULL;
    doppler_model *model = open_model(context, argv[1]), *second = NULL;
    doppler_session *session = NULL;
    doppler_context_options a;
    doppler_model_options b;
    doppler_session_options c;
    doppler_generate_options d;
    doppler_generate_result result;
    doppler_context_stats e;
    doppler_model_info f;
    doppler_model_stats g;
    doppler_session_stats h;
    doppler_adapter_info i;
    doppler_guard j;
    doppler_probe_options l;
    doppler_choose_options m;
    doppler_embed_options o;
    const char *text = "a";
    newer_options newer;
    newer_stats wide;
    const size_t bad[] = {0, 1, sizeof(size_t), 1 << 20, (size_t)-1};
    size_t k, k_needed = 0;

    REQUIRE(argc == 3);
    OK(doppler_context_options_init(&a, sizeof a));
    OK(doppler_model_options_init(&b, sizeof b));
    OK(doppler_session_options_init(&c, sizeof c));
    OK(doppler_generate_options_init(&d, sizeof d));
    OK(doppler_guard_init(&j, sizeof j, DOPPLER_GUARD_PRESET_PRODUCTION));
    OK(doppler_probe_options_init(&l, sizeof l));
    OK(doppler_choose_options_init(&m, sizeof m));
    OK(doppler_embed_options_init(&o, sizeof o));
    REQUIRE(a.struct_size == sizeof a && b.struct_size == sizeof b && c.struct_size == sizeof c && d.struct_size == sizeof d);
    REQUIRE(a.adapter_index == DOPPLER_NONE && b.prewarm == 1 && c.guard_mode == DOPPLER_GUARD_MODE_INHERIT);
    REQUIRE(d.temperature > 0.79f && d.top_k == 40 && d.repeat_penalty > 0.99f);
    OK(doppler_session_create(model, &c, &session));

    for (k = 0; k < sizeof bad / sizeof bad[0]; k++) {
        BAD(doppler_context_options_init(&a, bad[k]));
        BAD(doppler_model_options_init(&b, bad[k]));
        BAD(doppler_session_options_init(&c, bad[k]));
        BAD(doppler_generate_options_init(&d, bad[k]));
        BAD(doppler_guard_init(&j, bad[k], DOPPLER_GUARD_PRESET_PRODUCTION));
        BAD(doppler_probe_options_init(&l, bad[k]));
        BAD(doppler_choose_options_init(&m, bad[k]));
        BAD(doppler_embed_options_init(&o, bad[k]));
        m.struct_size = o.struct_size = bad[k];
        BAD(doppler_session_choose(session, &text, 1, &m, NULL, NULL));
        BAD(doppler_model_embed(model, &text, 1, &o, NULL, NULL, 0, &k_needed));
        j.struct_size = l.struct_size = bad[k];
        BAD(doppler_context_set_guard(context, &j));
        BAD(doppler_context_get_guard(context, &j));
        BAD(doppler_session_set_guard(session, &j));
        BAD(doppler_session_set_probe(session, &l));
        a.struct_size = b.struct_size = c.struct_size = d.struct_size = bad[k];
        e.struct_size = f.struct_size = g.struct_size = h.struct_size = i.struct_size = result.struct_size = bad[k];
        BAD(doppler_context_create(&a, &other));
        BAD(doppler_model_load(context, argv[1], &b, &second));
        BAD(doppler_session_create(model, &c, &session));
        BAD(doppler_session_generate(session, &d, NULL, NULL, NULL));
        BAD(doppler_session_generate(session, NULL, NULL, NULL, &result));
        BAD(doppler_context_get_stats(context, &e));
        BAD(doppler_model_get_info(model, &f));
        BAD(doppler_model_get_stats(model, &g));
        BAD(doppler_session_get_stats(session, &h));
        BAD(doppler_context_get_adapter_info(context, &i));
        BAD(doppler_adapter_get_info(0, &i));
    }
    REQUIRE(strstr(last_error(), "struct_size") != NULL);
    OK(doppler_session_destroy(session));

    /* A newer program. */
    memset(&newer, 0xff, sizeof newer);
    OK(doppler_session_options_init(&newer.options, sizeof newer));
    REQUIRE(newer.options.struct_size == sizeof newer && newer.unknown == 0);
    OK(doppler_session_create(model, &newer.options, &session));
    newer.unknown = 1;
    BAD(doppler_session_create(model, &newer.options, &session));
    memset(&wide, 0xff, sizeof wide);
    wide.stats.struct_size = sizeof wide;
    OK(doppler_session_get_stats(session, &wide.stats));
    REQUIRE(wide.stats.struct_size == sizeof wide && wide.unknown == 0 && wide.stats.n_ctx == 1024);

    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
