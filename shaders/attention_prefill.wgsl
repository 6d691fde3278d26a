// Attention of runs of rows of one sequence: a workgroup takes 16 consecutive rows of one head, and shares each tile of KT keys
// and values in workgroup memory; online softmax in f32. Formula, window and softcap as in attention_decode.wgsl.
// Four threads work on a row: each has a quarter of its scores and of its output. The rows of a dispatch must belong to one sequence at
// consecutive positions. HEAD_DIM is a multiple of 16, at most 16 * MAX_PIECES.
#import thread
#import state
#import activation
const WG: u32 = 64u;
const QT: u32 = 16u;
// Vectors of a row's output that one thread keeps; a constant, since an override cannot size a variable in private memory.
const MAX_PIECES: u32 = 16u;
override HEAD_DIM: u32 = 64u;
override KT: u32 = 32u;
struct Params {
    groups: u32, t_rows: u32, n_head: u32, n_kv: u32, block_tokens: u32, table_stride: u32, window: u32, scale: f32,
    softcap: f32,
}
@group(0) @binding(auto) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#slot kv
#if SINKS
// A logit for each query head that takes part in the softmax and has no value.
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif

var<workgroup> qs: array<vec4<f32>, QT * HEAD_DIM / 4u>;
var<workgroup> tile: array<vec4<f32>, KT * HEAD_DIM / 4u>;
var<workgroup> scores: array<f32, QT * KT>;
const LOWEST: f32 = -3.4028234e38;

// Sixteen terms of q . k.
fn dot4(a: u32, b: u32) -> f32 {
    return dot(qs[a], tile[b]) + dot(qs[a + 1u], tile[b + 1u])
        + (dot(qs[a + 2u], tile[b + 2u]) + dot(qs[a + 3u], tile[b + 3u]));
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let d4 = HEAD_DIM / 4u;
    let head = g % params.n_head;
    let row0 = (g / params.n_head) * QT;
    let kv_head = head / (params.n_head / params.n_kv);
    let last_row = min(row0 + QT, params.t_rows) - 1u;
    let table = rows[row0].slot * params.table_stride;
    for (var i = t.lid; i < QT * d4; i += WG) {
        let r = min(row0 + i / d4, last_row);
        qs[i] = q[(r * params.n_head + head) * d4 + i % d4];
    }
    let r = t.lid / 4u;
    let quarter = t.lid % 4u;
    let pos = rows[min(row0 + r, last_row)].pos;
    var row_lo = 0u;
    if (params.window != 0u && pos + 1u > params.window) { row_lo = pos + 1u - params.window; }
    let end = rows[last_row].pos + 1u;
    var lo = 0u;
    if (params.window != 0u && rows[row0].pos + 1u > params.window) { lo = rows[row0].pos + 1u - params.window; }
    var acc: array<vec4<f32>, MAX_PIECES>;
    for (var i = 0u; i < HEAD_DIM / 16u; i++) { acc[i] = vec4<f32>(0.0); }
    var top = LOWEST;
    var total = 0.0;
#if SINKS
    top = sinks[head];
    total = 1.0;
#endif
    for (var base = lo; base < end; base += KT) {
        workgroupBarrier();
        for (var i = t.lid; i < KT * d4; i += WG) {
            let p = min(base + i / d4, end - 1u);
            let block = tables[table + p / params.block_tokens];
            let at = (block * params.n_kv + kv_head) * params.block_tokens + p % params.block_tokens;
            tile[i] = k_load4(at, i % d4);
        }
        workgroupBarrier();
        for (var j = quarter; j < KT; j += 4u) {
            let p = base + j;
            var s = LOWEST;
            if (p <= pos && p >= row_lo) {
                s = 0.0;
                // Eight at a time: some software drivers end loops that turn too often (Mesa's llvmpipe: all loops of a thread together,
                // after 65,535 turns).
                for (var i = 0u; i < d4; i += 8u) {
                    s += dot4(r * d4 + i, j * d4 + i);
                    if (i + 4u < d4) { s += dot4(r * d4 + i + 4u, j * d4 + i + 4u); }
                }
                s *= params.scale;
                if (params.softcap > 0.0) { s = params.softcap * safe_tanh(s / params.softcap); }
            }
            scores[r * KT + j] = s;
        }
        workgroupBarrier();
        for (var i = t.lid; i < KT * d4; i += WG) {
            let p = min(base + i / d4, end - 1u);
            let block = tables[table + p / params.block_tokens];
            let at = (block * params.n_kv + kv_head) * params.block_tokens + p % params.block_tokens;
            tile[i] = v_load4(at, i % d4);
        }
        var new_top = top;
        for (var j = 0u; j < KT; j++) { new_top = max(new_top, scores[r * KT + j]); }
        let rescale = exp(top - new_top);
        total *= rescale;
        for (var i = 0u; i < HEAD_DIM / 16u; i++) { acc[i] *= rescale; }
        top = new_top;
        workgroupBarrier();
        for (var j = 0u; j < KT; j++) {
            let s = scores[r * KT + j];
            if (s > LOWEST) {
                let w = exp(s - top);
                total += w;
                for (var i = 0u; i < HEAD_DIM / 16u; i++) { acc[i] += w * tile[j * d4 + i * 4u + quarter]; }
            }
        }
    }
    if (row0 + r <= last_row) {
        let o = ((row0 + r) * params.n_head + head) * d4;
        for (var i = 0u; i < HEAD_DIM / 16u; i++) { y[o + i * 4u + quarter] = acc[i] / total; }
    }
}
