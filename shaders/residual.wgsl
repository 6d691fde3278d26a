// y[i] = a[i] + scale * b[i % period] (period n: a residual; period = row width: a bias). One thread an element.
#import thread
override WG: u32 = 64u;
struct Params { n: u32, period: u32, scale: f32 }
@group(0) @binding(auto) var<storage, read> a: array<f32>;
@group(0) @binding(auto) var<storage, read> b: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    if (i >= params.n) { return; }
    y[i] = a[i] + params.scale * b[i % params.period];
}
