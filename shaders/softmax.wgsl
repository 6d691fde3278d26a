// y[r, :] = softmax(x[r, :] / temperature). One workgroup a row. A row of -inf only gives zeros; NaN counts as -inf.
override WG: u32 = 256u;
#import reduce
struct Params { rows: u32, cols: u32, inv_temperature: f32 }
@group(0) @binding(auto) var<storage, read> x: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#import finite

fn value(i: u32) -> f32 { return finite(x[i]); }

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if (row >= params.rows) { return; }
    let base = row * params.cols;
    var best = LOWEST;
    for (var i = t.lid; i < params.cols; i += WG) { best = max(best, value(base + i)); }
    let top = workgroup_max(best, t);
    var s = 0.0;
    for (var i = t.lid; i < params.cols; i += WG) {
        let v = value(base + i);
        s += select(exp((v - top) * params.inv_temperature), 0.0, v <= LOWEST);
    }
    let total = workgroup_sum(s, t);
    let inv = select(1.0 / total, 0.0, total == 0.0);
    for (var i = t.lid; i < params.cols; i += WG) {
        let v = value(base + i);
        y[base + i] = select(exp((v - top) * params.inv_temperature) * inv, 0.0, v <= LOWEST);
    }
}
