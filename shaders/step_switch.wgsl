// Decides between decode steps whether those that follow are done: if a row's sequence still runs, their dispatches get the workgroups that they were
// recorded with; else none, and the ring says of each row that it has stopped, as every such step would. One workgroup.
#import thread
#import state
struct Params {
    rows: u32,
    words: u32, // of grids
}
override WG: u32 = 256u;
@group(0) @binding(auto) var<storage, read> slots: array<u32>;
@group(0) @binding(auto) var<storage, read> states: array<SeqState>;
@group(0) @binding(auto) var<storage, read> grids: array<u32>;
@group(0) @binding(auto) var<storage, read_write> live: array<u32>;
@group(0) @binding(auto) var<storage, read_write> ring: array<vec2<u32>>; // (token, stop)
var<workgroup> running: atomic<u32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    if (t.lid == 0u) { atomicStore(&running, 0u); }
    workgroupBarrier();
    for (var row = t.lid; row < params.rows; row += WG) {
        if (states[slots[row]].stop == STOP_NONE) { atomicStore(&running, 1u); }
    }
    workgroupBarrier();
    let on = atomicLoad(&running) != 0u;
    for (var i = t.lid; i < params.words; i += WG) { live[i] = select(0u, grids[i], on); }
    if (!on) {
        for (var row = t.lid; row < params.rows; row += WG) { ring[row] = vec2<u32>(NO_TOKEN, states[slots[row]].stop); }
    }
}
