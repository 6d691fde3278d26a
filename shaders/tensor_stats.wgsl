// Statistics of a float tensor: counts of what is not finite or beyond a limit, extrema, sums. Elements that are not finite are in no extremum
// or sum. A workgroup reduces one chunk of the rows x cols elements (in order of row, column) to one Stats; COMBINE reduces those to one.
// All sums have a fixed order: the same tensor gives the same bits.
#import thread
override WG: u32 = 64u;
struct Params { rows: u32, cols: u32, stride: u32, offset: u32, chunk: u32, parts: u32, target_index: u32, limit: f32 }
struct Stats {
    count: u32, nan: u32, inf: u32, over: u32, first_bad: u32, low: f32, high: f32, sum: f32, sum_sq: f32, pad: u32,
}
#if COMBINE
@group(0) @binding(auto) var<storage, read> partial: array<Stats>;
#else
@group(0) @binding(auto) var<storage, read> x: array<f32>;
#endif
@group(0) @binding(auto) var<storage, read_write> stats: array<Stats>;

const NONE: u32 = 0xffffffffu;
const HUGE: f32 = 3.4028234e38;
var<workgroup> parts: array<Stats, WG>;

fn merge(a: Stats, b: Stats) -> Stats {
    return Stats(a.count + b.count, a.nan + b.nan, a.inf + b.inf, a.over + b.over, min(a.first_bad, b.first_bad),
        min(a.low, b.low), max(a.high, b.high), a.sum + b.sum, a.sum_sq + b.sum_sq, 0u);
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.parts) { return; }
    var s = Stats(0u, 0u, 0u, 0u, NONE, HUGE, -HUGE, 0.0, 0.0, 0u);
#if COMBINE
    for (var i = t.lid; i < params.chunk; i += WG) { s = merge(s, partial[i]); }
#else
    let n = params.rows * params.cols;
    let start = g * params.chunk;
    let end = min(n, start + params.chunk);
    for (var i = start + t.lid; i < end; i += WG) {
        let v = x[params.offset + (i / params.cols) * params.stride + i % params.cols];
        let bits = bitcast<u32>(v) & 0x7fffffffu;
        s.count += 1u;
        if (bits >= 0x7f800000u) {
            if (bits > 0x7f800000u) { s.nan += 1u; } else { s.inf += 1u; }
            s.first_bad = min(s.first_bad, i);
            continue;
        }
        if (bits > bitcast<u32>(params.limit)) {
            s.over += 1u;
            s.first_bad = min(s.first_bad, i);
        }
        s.low = min(s.low, v);
        s.high = max(s.high, v);
        s.sum += v;
        s.sum_sq += v * v;
    }
#endif
    parts[t.lid] = s;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (t.lid < n) { parts[t.lid] = merge(parts[t.lid], parts[t.lid + n]); }
        workgroupBarrier();
    }
    if (t.lid == 0u) { stats[params.target_index + g] = parts[0]; }
}
