// y[t, r] = act(sum_k x[t, k] * W[r, k]) * sum_k x[t, k] * W[n + r, k]: gate and up as one product of few rows of x, with the activation.
// GELU: the tanh form; else SiLU. BYTES, NORM, STAGED and CHAIN_IN: see lib/team.wgsl. OUT_BYTES: y is written as rows of signed bytes as
// well. CHAIN_OUT: the bytes, or without OUT_BYTES y, go to a later stage of a chain and nowhere else. With either the results of a workgroup are a
// multiple of 32, whole blocks, and so is n.
#set PAIR
#if OUT_BYTES
#set BLOCKS
#endif
#if CHAIN_OUT
#set BLOCKS
#endif
override WG: u32 = 64u;
override TEAM: u32 = 32u;
override NT: u32 = 1u;
override K_BLOCKS: u32 = 1u;
override REDUCE: u32 = 1u;
override SPREAD: u32 = 1u;
override SPLIT: u32 = 1u;
override BYTE_TOGETHER: u32 = REDUCE * SPLIT;
#set NEIGHBOURS
// Results of a workgroup for each row of x.
override MADE: u32 = WG / TEAM;
#if BLOCKS
// Blocks of 32 results, for each of them and each row of x eight threads, and four results a thread.
override BLOCKS: u32 = MADE / 32u;
override BYTE_THREADS: u32 = 8u * NT * BLOCKS;
override BLOCK_VALUES: u32 = 4u * BYTE_THREADS;
#endif
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32, eps: f32,
}
#if !CHAIN_OUT
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#endif
#import team
#import team_tile
#import activation
#if OUT_BYTES
#import byte_rows
#else
#if CHAIN_OUT
#import number_rows
#endif
#endif
// Without a chain the same as with one, where this may be a stage of one.
#if SCALED
#if !BYTES
#if !OUT_BYTES
#set SHORTENED
#endif
#endif
#endif
#if SHORTENED
#import short
fn made(v: f32) -> f32 { return shortened(vec4<f32>(v)).x; }
#else
fn made(v: f32) -> f32 { return v; }
#endif
#if BLOCKS
var<workgroup> block_values: array<f32, BLOCK_VALUES>;
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let tile = team_tile(g);
    let row0 = tile.x * MADE;
    let t0 = tile.y * NT;
    let gate = min(row0 + team_at(t).x, params.n - 1u);
    team_products(t, vec4<u32>(gate, params.n + gate, 0u, 0u), t0, params.t_rows - 1u);
    if (t.lid < MADE * NT) {
        let i = t.lid % MADE;
        let c = t.lid / MADE;
        let scale = team_scale(i, c);
        let a = team_sum(i, 0u, c) * scale;
#if GELU
        let v = gelu_tanh(a) * (team_sum(i, 1u, c) * scale);
#else
        let v = silu(a) * (team_sum(i, 1u, c) * scale);
#endif
#if !CHAIN_OUT
        if (row0 + i < params.n && t0 + c < params.t_rows) { y[(t0 + c) * params.y_stride + params.y_offset + row0 + i] = made(v); }
#endif
#if BLOCKS
        block_values[t.lid] = v;
#endif
    }
#if BLOCKS
    workgroupBarrier();
    let c = place_of(t) / 8u / BLOCKS;
    let j = place_of(t) % (8u * BLOCKS) * 4u;
    var v = vec4<f32>(0.0);
    if (c < NT) {
        let i = c * MADE + j;
        v = vec4<f32>(block_values[i], block_values[i + 1u], block_values[i + 2u], block_values[i + 3u]);
    }
    let on = c < NT && t0 + c < params.t_rows && row0 + j < params.n;
#if OUT_BYTES
    byte_store(t, on, t0 + c, params.n / 32u, (row0 + j) / 4u, v);
#else
    if (on) { number_store(t0 + c, params.n / 32u, (row0 + j) / 4u, v); }
#endif
#endif
}
