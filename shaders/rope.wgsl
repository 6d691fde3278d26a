// Rotary position embedding of q and k, and the write of k and v to the paged cache, in one go.
// In: x[t, :] holds q heads, k heads and v heads at their offsets. Out: q_out[t, head, :]; k and v in their pages.
// A thread makes two neighbouring dimensions (2i, 2i + 1) of one head of one row; a head has head_threads of them, some of which may idle.
// NEOX rotates (i, i + n_rot/2), else pairs (2i, 2i + 1); dimensions from n_rot on pass through. NOPE: nothing is rotated.
// Angles: see lib/rotation.wgsl.
#set KV_WRITE
#import thread
#import state
override WG: u32 = 64u;
struct Params {
    t_rows: u32, n_head: u32, n_kv: u32, head_dim: u32, n_rot: u32,
    head_threads: u32, x_stride: u32, q_offset: u32, k_offset: u32, v_offset: u32, block_tokens: u32, table_stride: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
#if !NOPE
@group(0) @binding(auto) var<storage, read> angles: array<vec2<f32>>;
#endif
@group(0) @binding(auto) var<storage, read_write> q_out: array<vec2<f32>>;
// What kv_store writes: nothing, a key, a value.
const KV_NONE: u32 = 0u;
const KV_K: u32 = 1u;
const KV_V: u32 = 2u;
#slot kv

#if !NOPE
#import rotation

fn element(base: u32, d: u32) -> f32 { return x[(base + d) >> 1u][d & 1u]; }

// Dimension d of the rotated head that starts at base.
fn rotated(base: u32, d: u32, pos: u32) -> f32 {
    let n = params.n_rot / 2u;
    if (d < n) {
        let r = rotation(pos, d, n);
        return element(base, d) * r.x - element(base, d + n) * r.y;
    }
    let r = rotation(pos, d - n, n);
    return element(base, d) * r.x + element(base, d - n) * r.y;
}
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let heads = params.n_head + 2u * params.n_kv;
    let i = group_index(t) * WG + t.lid;
    let row = i / (heads * params.head_threads);
    let head = (i / params.head_threads) % heads;
    let d = (i % params.head_threads) * 2u;
    var kind = KV_NONE;
    var place = 0u;
    var v = vec2<f32>(0.0);
    if (row < params.t_rows && d < params.head_dim) {
        let pos = rows[row].pos;
        let is_q = head < params.n_head;
        let is_v = head >= params.n_head + params.n_kv;
        var index = head;
        var offset = params.q_offset;
        if (is_v) {
            index = head - params.n_head - params.n_kv;
            offset = params.v_offset;
        } else if (!is_q) {
            index = head - params.n_head;
            offset = params.k_offset;
        }
        let base = row * params.x_stride + offset + index * params.head_dim;
        v = x[(base + d) >> 1u];
#if !NOPE
        if (!is_v && d < params.n_rot) {
#if NEOX
            v = vec2<f32>(rotated(base, d, pos), rotated(base, d + 1u, pos));
#else
            let r = rotation(pos, d >> 1u, params.n_rot / 2u);
            v = vec2<f32>(v.x * r.x - v.y * r.y, v.y * r.x + v.x * r.y);
#endif
        }
#endif
        if (is_q) {
            q_out[(row * params.n_head * params.head_dim + index * params.head_dim + d) >> 1u] = v;
        } else if (pos / params.block_tokens < params.table_stride) {
            // A stopped sequence in a batch stays at its end, which may lie beyond its table: nothing may be written there.
            let block = tables[rows[row].slot * params.table_stride + pos / params.block_tokens];
            place = (block * params.n_kv + index) * params.block_tokens + pos % params.block_tokens;
            kind = select(KV_K, KV_V, is_v);
        }
    }
    // All threads come here: a storage of keys and values may need its neighbours' numbers.
    kv_store(t, kind, place, d, v);
}
