/* The whole way, twice: the same greedy text, and decoding within its budget. */
#include "check.h"

static uint64_t sum(const uint64_t *values, size_t n) {
    uint64_t total = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        total += values[i];
    }
    return total;
}

int main(int argc, char **argv) {
    doppler_context *context;
    doppler_model *model;
    doppler_session *session;
    doppler_model_info info;
    doppler_adapter_info adapter, first;
    doppler_model_stats loaded;
    doppler_session_stats stats;
    doppler_context_stats total;
    const doppler_phase_stats *decode;
    doppler_generate_options options = greedy(32);
    doppler_generate_result result;
    reply once, twice;
    uint32_t length = 0, adapters = 0, i;
    uint32_t tokens[256];
    size_t needed = 0;

    REQUIRE(argc == 3);
    REQUIRE(doppler_abi_version() == DOPPLER_ABI_VERSION);
    REQUIRE(strcmp(doppler_status_name(DOPPLER_STATUS_OK), "DOPPLER_STATUS_OK") == 0);
    REQUIRE(strcmp(doppler_status_name(77777), "DOPPLER_STATUS_UNKNOWN") == 0);
    REQUIRE(strlen(doppler_version_string()) >= 5);
    OK(doppler_adapter_count(&adapters));
    REQUIRE(adapters > 0);
    first.struct_size = sizeof first;
    OK(doppler_adapter_get_info(0, &first));
    REQUIRE(first.name[0] != '\0' && first.max_buffer_bytes > 0);
    EXPECT(doppler_adapter_get_info(adapters, &first), DOPPLER_STATUS_INVALID_ARGUMENT);

    context = open_context(DOPPLER_GUARD_MODE_STRICT);
    adapter.struct_size = sizeof adapter;
    OK(doppler_context_get_adapter_info(context, &adapter));
    REQUIRE(adapter.name[0] != '\0');
    model = open_model(context, argv[1]);
    info.struct_size = sizeof info;
    OK(doppler_model_get_info(model, &info));
    REQUIRE(strcmp(info.architecture, "llama") == 0 && strcmp(info.format, "Q8_0") == 0);
    REQUIRE(info.n_layer == 6 && info.n_embd == 256 && info.n_vocab == 2048 && info.n_ctx == 1024);
    REQUIRE(info.has_chat_template == 1 && info.eos_token == 2 && info.adds_bos == 0);
    loaded.struct_size = sizeof loaded;
    OK(doppler_model_get_stats(model, &loaded));
    REQUIRE(loaded.load_ns > 0 && loaded.file_bytes == info.file_bytes && loaded.kv_block_tokens > 0);
    REQUIRE(loaded.load_open_ns > 0 && loaded.load_weights_ns > 0 && loaded.load_repack_ns > 0);
    REQUIRE(loaded.load_vocabulary_ns > 0 && loaded.load_prewarm_ns > 0 && loaded.load_prewarm_ns <= loaded.load_ns);

    session = open_session(model);
    ask(session, "Who are you?");
    result = generate(session, &options, &once);
    REQUIRE(result.n_tokens > 0 && result.n_tokens <= 32 && once.bytes > 0);
    REQUIRE(result.reason == DOPPLER_FINISH_REASON_END_TOKEN || result.reason == DOPPLER_FINISH_REASON_MAX_TOKENS);
    REQUIRE(result.stop_string == DOPPLER_NONE);
    REQUIRE(result.prefill_tokens > 0 && result.decode_tokens == result.n_tokens - 1);
    REQUIRE(result.first_token_ns > 0 && result.first_token_ns <= result.total_ns);
    OK(doppler_session_get_length(session, &length));
    REQUIRE(length == result.prefill_tokens + result.n_tokens);
    OK(doppler_session_get_tokens(session, tokens, 256, &needed));
    REQUIRE(needed == length);
    EXPECT(doppler_session_get_tokens(session, tokens, length - 1, &needed), DOPPLER_STATUS_BUFFER_TOO_SMALL);

    stats.struct_size = sizeof stats;
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.generated_tokens == result.n_tokens && stats.n_tokens == length && stats.n_ctx == 1024);
    decode = &stats.phases[DOPPLER_PHASE_DECODE];
    REQUIRE(decode->submits <= stats.decode_tokens && decode->submits > 0 && decode->dispatches > 0);
    REQUIRE(sum(decode->readbacks, 8) <= stats.decode_tokens);
    REQUIRE(sum(decode->readback_bytes, 8) <= 16 * stats.decode_tokens);
    REQUIRE(decode->buffers_created == 0 && decode->bind_groups == 0 && decode->pipelines == 0);
    REQUIRE(sum(stats.submit_histogram, 32) >= decode->submits);
    total.struct_size = sizeof total;
    OK(doppler_context_get_stats(context, &total));
    REQUIRE(total.phases[DOPPLER_PHASE_LOAD].buffers_created > 0 && total.phases[DOPPLER_PHASE_LOAD].upload_bytes > 0);
    REQUIRE(total.phases[DOPPLER_PHASE_DECODE].submits == decode->submits);
    REQUIRE(total.memory[DOPPLER_MEMORY_CLASS_WEIGHTS] >= 5000000 && total.memory_peak >= total.memory_total);
    REQUIRE(sum(total.memory, 8) == total.memory_total && total.live_buffers > 0 && total.cached_pipelines > 0);

    /* The same again after a reset, and in another session. */
    OK(doppler_session_reset(session));
    OK(doppler_session_reset_stats(session));
    OK(doppler_session_get_stats(session, &stats));
    REQUIRE(stats.n_tokens == 0 && stats.generated_tokens == 0 && stats.phases[DOPPLER_PHASE_DECODE].submits == 0);
    ask(session, "Who are you?");
    generate(session, &options, &twice);
    REQUIRE(strcmp(once.text, twice.text) == 0);
    OK(doppler_session_destroy(session));
    session = open_session(model);
    ask(session, "Who are you?");
    generate(session, &options, &twice);
    REQUIRE(strcmp(once.text, twice.text) == 0);

    /* Truncating to the prompt gives the same continuation. */
    OK(doppler_session_truncate(session, result.prefill_tokens));
    EXPECT(doppler_session_truncate(session, 1000), DOPPLER_STATUS_INVALID_ARGUMENT);
    generate(session, &options, &twice);
    REQUIRE(strcmp(once.text, twice.text) == 0);

    /* Seeded draws repeat too; several tokens a submit give the same text. */
    {
        doppler_session_options many;
        doppler_session *batched = NULL;
        options.temperature = 0.9f;
        options.seed = 7;
        OK(doppler_session_reset(session));
        ask(session, "Tell me a short story about a hedgehog.");
        generate(session, &options, &once);
        OK(doppler_session_options_init(&many, sizeof many));
        many.tokens_per_submit = 8;
        OK(doppler_session_create(model, &many, &batched));
        ask(batched, "Tell me a short story about a hedgehog.");
        generate(batched, &options, &twice);
        REQUIRE(strcmp(once.text, twice.text) == 0);
        OK(doppler_session_destroy(batched));
    }

    OK(doppler_context_reset_stats(context));
    OK(doppler_context_get_stats(context, &total));
    for (i = 0; i < 4; i++) {
        REQUIRE(total.phases[i].submits == 0);
    }
    REQUIRE(total.memory_total > 0);
    OK(doppler_session_destroy(session));
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    EXPECT(doppler_context_destroy(context), DOPPLER_STATUS_BAD_HANDLE);
    printf("%s\n", once.text);
    return 0;
}
