// Ends a decode step of a row: hands its token to its slot and to the output ring, and stops a sequence that drew an end token or is full. A
// slot that had stopped before does not change, and its entry in the ring is NO_TOKEN.
// The caller declares params with out_offset: of this step in the ring.
#import state
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read_write> states: array<SeqState>;
@group(0) @binding(auto) var<storage, read> stop_ids: array<u32>; // [slots, STOP_IDS]
@group(0) @binding(auto) var<storage, read_write> ring: array<vec2<u32>>; // (token, stop)

// A row's slot and its state, to be asked for before its token is known.
struct Ending { slot: u32, seq: SeqState }
fn begin_ending(row: u32) -> Ending {
    let slot = rows[row].slot;
    return Ending(slot, states[slot]);
}
fn end_step(row: u32, ending: Ending, drawn: u32) {
    let slot = ending.slot;
    var seq = ending.seq;
    var token = NO_TOKEN;
    if seq.stop == STOP_NONE {
        token = drawn;
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
