// Work that takes as long in every workgroup and reads nothing: how many of them a device runs at once shows in how long they take together.
#import thread
struct Params {
    rounds: u32, // of eight operations, each of which waits for the one before
}
override WG: u32 = 256u;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    var v = f32(t.lid);
    for (var i = 0u; i < params.rounds; i++) {
        for (var j = 0u; j < 8u; j++) { v = v * 0.5 + 1.0; }
    }
    y[group_index(t) * WG + t.lid] = v;
}
