// Begins a decode step: the batch's rows and input tokens from the state of their slots.
#import thread
#import state

struct Params {
    rows: u32,
    history_cap: u32,
}

override WG: u32 = 256u;

@group(0) @binding(0) var<storage, read> slots: array<u32>;
@group(0) @binding(1) var<storage, read> states: array<SeqState>;
@group(0) @binding(2) var<storage, read_write> rows: array<Row>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> history: array<u32>; // [slots, history_cap]

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t) * WG + t.lid;
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
