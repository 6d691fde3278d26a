// y[r, :] /= max(|y[r, :]|, 1e-12), in place. One workgroup a row.
override WG: u32 = 256u;
#import reduce
struct Params { rows: u32, cols: u32 }
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if (row >= params.rows) { return; }
    let base = row * params.cols;
    // Squares of what is divided by the largest number neither overflow nor vanish.
    var best = 0.0;
    for (var i = t.lid; i < params.cols; i += WG) { best = max(best, abs(y[base + i])); }
    let top = max(workgroup_max(best, t), 1e-30);
    var s = 0.0;
    for (var i = t.lid; i < params.cols; i += WG) {
        let v = y[base + i] / top;
        s += v * v;
    }
    let inverse = 1.0 / max(sqrt(workgroup_sum(s, t)) * top, 1e-12);
    for (var i = t.lid; i < params.cols; i += WG) { y[base + i] *= inverse; }
}
