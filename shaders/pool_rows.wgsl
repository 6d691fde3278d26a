// y[s, c] (+)= scale * sum of x[r, c] over the rows r of stretch s. One workgroup makes 32 columns of a stretch: 8 threads a column take every
// eighth row, then what they have is put together.
#import thread
const WG: u32 = 256u;
const COLS: u32 = 32u;
struct Params { stretches: u32, cols: u32, col_groups: u32, x_stride: u32 }
// `add`: to what y holds.
struct Stretch { first: u32, rows: u32, add: u32, scale: f32 }
@group(0) @binding(auto) var<storage, read> stretches: array<Stretch>;
@group(0) @binding(auto) var<storage, read> x: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
var<workgroup> sums: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.stretches * params.col_groups) { return; }
    let s = stretches[g / params.col_groups];
    let col = g % params.col_groups * COLS + t.lid % COLS;
    var sum = 0.0;
    if (col < params.cols) {
        for (var r = t.lid / COLS; r < s.rows; r += WG / COLS) { sum += x[(s.first + r) * params.x_stride + col]; }
    }
    sums[t.lid] = sum;
    workgroupBarrier();
    if (t.lid < COLS && col < params.cols) {
        for (var i = 1u; i < WG / COLS; i++) { sum += sums[i * COLS + t.lid]; }
        let at = g / params.col_groups * params.cols + col;
        var value = s.scale * sum;
        if (s.add != 0u) { value += y[at]; }
        y[at] = value;
    }
}
