// Ends a decode step: hands the picked tokens to their slots and to the output ring, and stops the
// sequences that drew an end token or are full. A slot that had stopped before does not change, and its
// entry in the ring is NO_TOKEN.
#import thread
#import state

struct Params {
    rows: u32,
    out_offset: u32, // of this step in the ring
}

override WG: u32 = 256u;

const NO_TOKEN: u32 = 0xffffffffu;

@group(0) @binding(0) var<storage, read> picked: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<Row>;
@group(0) @binding(2) var<storage, read_write> states: array<SeqState>;
@group(0) @binding(3) var<storage, read> stop_ids: array<u32>; // [slots, STOP_IDS]
@group(0) @binding(4) var<storage, read_write> ring: array<vec2<u32>>; // (token, stop)

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t) * WG + t.lid;
    if row >= params.rows {
        return;
    }
    let slot = rows[row].slot;
    var seq = states[slot];
    var token = NO_TOKEN;
    if seq.stop == STOP_NONE {
        token = picked[row];
        seq.token = token;
        seq.pos += 1u;
        if seq.pos >= seq.limit {
            seq.stop = STOP_LIMIT;
        }
        let first = slot * STOP_IDS;
        for (var i = 0u; i < min(seq.n_stop, STOP_IDS); i++) {
            if stop_ids[first + i] == token {
                seq.stop = STOP_TOKEN;
            }
        }
        states[slot] = seq;
    }
    ring[params.out_offset + row] = vec2<u32>(token, seq.stop);
}
