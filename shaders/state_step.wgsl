// After a step of a decode batch: the state that a sequence wrote is the one it reads next, and the sequences that have stopped write none any
// more, so that their states stay those of the tokens that count.
#import thread
#import state
#import places
override WG: u32 = 64u;
struct Params { rows: u32 }
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> states: array<SeqState>;
@group(0) @binding(auto) var<storage, read_write> places: array<Places>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t) * WG + t.lid;
    if (row >= params.rows) { return; }
    let slot = rows[row].slot;
    let after = places[slot].after;
    if (after == NO_PLACE) { return; }
    places[slot].before = after;
    if (states[slot].stop != STOP_NONE) { places[slot].after = NO_PLACE; }
}
