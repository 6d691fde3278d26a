// Puts the splits of attention_decode together: y[row, head, :] = sum_s e^(top_s - top) sum_s / sum_s e^(top_s - top) total_s over the splits
// that have a tile. One thread four dimensions. BYTES: y is written as rows of signed bytes as well; head_dim is a multiple of 32 then.
override WG: u32 = 64u;
#import thread
#import state
struct Params { t_rows: u32, n_head: u32, d4: u32, window: u32, splits: u32, tile: u32 }
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> tops: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if BYTES
#import byte_rows
#endif

fn combined(row: u32, head: u32, i: u32) -> vec4<f32> {
    let pos = rows[row].pos;
    var seen = pos + 1u;
    if (params.window != 0u) { seen = min(seen, params.window); }
    let n = min((seen + params.tile - 1u) / params.tile, params.splits);
    let part = (row * params.n_head + head) * params.splits;
    var top = tops[part].x;
    for (var s = 1u; s < n; s++) { top = max(top, tops[part + s].x); }
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var s = 0u; s < n; s++) {
        let one = tops[part + s];
        let weight = exp(one.x - top);
        total += weight * one.y;
        sum += weight * sums[(part + s) * params.d4 + i];
    }
    return sum / total;
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let width = params.n_head * params.d4;
    let row = i / width;
    let on = row < params.t_rows;
    var v = vec4<f32>(0.0);
    if (on) {
        v = combined(row, i % width / params.d4, i % params.d4);
        y[i] = v;
    }
#if BYTES
    byte_store(t, on, row, width / 8u, i % width, v);
#endif
}
