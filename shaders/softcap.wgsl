// x[i] = cap * tanh(x[i] / cap), in place. One thread an element.
#import thread
#import activation
override WG: u32 = 64u;
struct Params { n: u32, cap: f32 }
@group(0) @binding(auto) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    if (i >= params.n) { return; }
    x[i] = params.cap * safe_tanh(x[i] / params.cap);
}
