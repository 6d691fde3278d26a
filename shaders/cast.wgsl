// Element-type conversion between packed words; one thread, two elements. n counts elements, an odd last one included.
// TO_F16: f32 -> f16 pairs. FROM_F16: f16 pairs -> f32. FROM_BF16: bf16 pairs -> f32.
#import thread
override WG: u32 = 64u;
struct Params { n: u32 }
@group(0) @binding(auto) var<storage, read> x: array<u32>;
@group(0) @binding(auto) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = (group_index(t) * WG + t.lid) * 2u;
    if (i >= params.n) { return; }
#if TO_F16
    var b = 0.0;
    if (i + 1u < params.n) { b = bitcast<f32>(x[i + 1u]); }
    y[i / 2u] = pack2x16float(vec2<f32>(bitcast<f32>(x[i]), b));
#else
#if FROM_F16
    let v = bitcast<vec2<u32>>(unpack2x16float(x[i / 2u]));
#else
    let w = x[i / 2u];
    let v = vec2<u32>(w << 16u, w & 0xffff0000u);
#endif
    y[i] = v.x;
    if (i + 1u < params.n) { y[i + 1u] = v.y; }
#endif
}
