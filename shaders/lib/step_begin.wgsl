// The beginning of a decode step: the batch's rows and input tokens from the states of their slots, which go to their history. CHAINS: what stages of
// chains passed on before is cleared, but for the first word (lib/chain.wgsl).
// The caller declares params with history_cap, and with CHAINS words.
#import state
@group(0) @binding(auto) var<storage, read> slots: array<u32>;
@group(0) @binding(auto) var<storage, read> states: array<SeqState>;
@group(0) @binding(auto) var<storage, read_write> rows: array<Row>;
@group(0) @binding(auto) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(auto) var<storage, read_write> history: array<u32>; // [slots, history_cap]
#if CHAINS
@group(0) @binding(auto) var<storage, read_write> chain_words: array<u32>;
#endif

// Row `row` of the batch.
fn begin_row(row: u32) {
    let slot = slots[row];
    let seq = states[slot];
    rows[row] = Row(slot, seq.pos);
    tokens[row] = seq.token;
    if seq.stop == STOP_NONE && seq.pos < params.history_cap {
        history[slot * params.history_cap + seq.pos] = seq.token;
    }
}
// By thread i of `threads`.
fn clear_chains(i: u32, threads: u32) {
#if CHAINS
    for (var w = i + 1u; w < params.words; w += threads) { chain_words[w] = 0u; }
#endif
}
