/* Destroyed from the bottom up: what is above goes on working, and the memory goes with the last one. */
#include "check.h"

int main(int argc, char **argv) {
    doppler_context *context, *watched;
    doppler_model *model;
    doppler_session *session, *second;
    doppler_generate_options options = greedy(8);
    doppler_context_stats before, during, after;
    reply r;

    REQUIRE(argc == 3);
    context = open_context(DOPPLER_GUARD_MODE_OFF);
    model = open_model(context, argv[1]);
    session = open_session(model);
    second = open_session(model);
    OK(doppler_context_destroy(context));
    still_generates(model);
    OK(doppler_model_destroy(model));
    ask(session, "Hi!");
    REQUIRE(generate(session, &options, &r).n_tokens > 0);
    OK(doppler_session_destroy(session));
    ask(second, "Hi!");
    REQUIRE(generate(second, &options, &r).n_tokens > 0);
    OK(doppler_session_destroy(second));

    watched = open_context(DOPPLER_GUARD_MODE_OFF);
    before.struct_size = during.struct_size = after.struct_size = sizeof before;
    OK(doppler_context_get_stats(watched, &before));
    model = open_model(watched, argv[1]);
    session = open_session(model);
    OK(doppler_model_destroy(model));
    OK(doppler_context_get_stats(watched, &during));
    REQUIRE(during.memory_total > before.memory_total + 5000000);
    OK(doppler_session_destroy(session));
    OK(doppler_context_get_stats(watched, &after));
    REQUIRE(after.memory[DOPPLER_MEMORY_CLASS_WEIGHTS] == 0 && after.memory[DOPPLER_MEMORY_CLASS_KV] == 0);
    REQUIRE(after.memory[DOPPLER_MEMORY_CLASS_SCRATCH] == 0 && after.pool_leased == 0);
    OK(doppler_context_destroy(watched));
    return 0;
}
