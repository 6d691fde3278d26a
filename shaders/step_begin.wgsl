// Begins a decode step: the batch's rows and input tokens from the state of their slots.
// CHAINS: what stages of chains passed on before is cleared, but for the first word (lib/chain.wgsl).
#import thread
#import state

struct Params {
    rows: u32,
    history_cap: u32,
    words: u32,
}

override WG: u32 = 256u;

@group(0) @binding(0) var<storage, read> slots: array<u32>;
@group(0) @binding(1) var<storage, read> states: array<SeqState>;
@group(0) @binding(2) var<storage, read_write> rows: array<Row>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> history: array<u32>; // [slots, history_cap]

#if CHAINS
@group(0) @binding(auto) var<storage, read_write> chain_words: array<u32>;
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t) * WG + t.lid;
#if CHAINS
    if row + 1u < params.words {
        chain_words[row + 1u] = 0u;
    }
#endif
    if row >= params.rows {
        return;
    }
    let slot = slots[row];
    let seq = states[slot];
    rows[row] = Row(slot, seq.pos);
    tokens[row] = seq.token;
    if seq.stop == STOP_NONE && seq.pos < params.history_cap {
        history[slot * params.history_cap + seq.pos] = seq.token;
    }
}
