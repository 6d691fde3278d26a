// Keys and values as signed bytes, 32 neighbouring dimensions with an f16 scale: scale = max|x| / 127, byte = x / scale rounded, halves away
// from zero (GGML's Q8_0). Rows as in f16.wgsl; a row is head_dim / 4 words of bytes, then the scales of its blocks, two a word.
// Rounds halves away from zero; `round` rounds them to even.
fn kv_nearest(x: vec2<f32>) -> vec2<i32> {
    let whole = trunc(x);
    return vec2<i32>(whole + select(vec2<f32>(0.0), sign(x), abs(x - whole) >= vec2<f32>(0.5)));
}

#if KV_WRITE
@group(0) @binding(auto) var<storage, read_write> kv_k: array<u32>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<u32>;
var<workgroup> kv_staged: array<vec2<f32>, WG>;

// The scale of the block whose 16 pairs begin at thread `first`.
fn kv_scale(first: u32) -> f32 {
    var largest = 0.0;
    for (var i = first; i < first + 16u; i++) {
        let x = abs(kv_staged[i]);
        largest = max(largest, max(x.x, x.y));
    }
    return largest / 127.0;
}

// A workgroup holds whole pairs of blocks (64 dimensions, 32 threads); a head whose blocks are odd in number ends with idle threads.
fn kv_store(t: Thread, kind: u32, row: u32, d: u32, v: vec2<f32>) {
    kv_staged[t.lid] = v;
    workgroupBarrier();
    if (kind == KV_NONE || (t.lid & 1u) != 0u) { return; }
    let first = t.lid & ~15u;
    let scale = kv_scale(first);
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    let q = vec4<i32>(kv_nearest(v * inverse), kv_nearest(kv_staged[t.lid + 1u] * inverse)) & vec4<i32>(255);
    let word = u32(q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u));
    let at = row * (params.head_dim / 4u + (params.head_dim + 63u) / 64u);
    let scale_at = at + params.head_dim / 4u + d / 64u;
    let leads = (t.lid & 31u) == 0u;
    var scales = 0u;
    if (leads) { scales = pack2x16float(vec2<f32>(scale, kv_scale(first + 16u))); }
    if (kind == KV_K) {
        kv_k[at + d / 4u] = word;
        if (leads) { kv_k[scale_at] = scales; }
    } else {
        kv_v[at + d / 4u] = word;
        if (leads) { kv_v[scale_at] = scales; }
    }
}
#else
#if FRESH
@group(0) @binding(auto) var<storage, read_write> kv_k: array<u32>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<u32>;
// The scale of a block of the new key or value; 0 for one past the head's end.
fn kv_new_scale(j: u32, block: u32) -> f32 {
    var largest = 0.0;
    for (var i = block * 8u; i < min(block * 8u + 8u, HEAD_DIM / 4u); i++) {
        let v = abs(fresh_four(j, i));
        largest = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
    }
    return largest / 127.0;
}
fn kv_word(j: u32, d4: u32) -> u32 {
    let scale = kv_new_scale(j, d4 / 8u);
    let v = fresh_four(j, d4) * select(0.0, 1.0 / scale, scale > 0.0);
    let q = vec4<i32>(kv_nearest(v.xy), kv_nearest(v.zw)) & vec4<i32>(255);
    return u32(q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u));
}
fn kv_new_scales(j: u32, d4: u32) -> u32 {
    return pack2x16float(vec2<f32>(kv_new_scale(j, d4 / 16u * 2u), kv_new_scale(j, d4 / 16u * 2u + 1u)));
}
// The new key (j = 0) and value (1) as they are kept, after a barrier.
var<workgroup> kv_new: array<vec2<u32>, HEAD_DIM / 2u>;
fn kv_round(j: u32, d4: u32) { kv_new[j * (HEAD_DIM / 4u) + d4] = vec2<u32>(kv_word(j, d4), kv_new_scales(j, d4)); }
fn kv_fresh(j: u32, d4: u32) -> KvRaw { return kv_new[j * (HEAD_DIM / 4u) + d4]; }
fn kv_keep(row: u32, d4: u32) {
    let at = kv_row(row);
    let k = kv_new[d4];
    let v = kv_new[HEAD_DIM / 4u + d4];
    kv_k[at + d4] = k.x;
    kv_v[at + d4] = v.x;
    if (d4 % 16u == 0u) {
        kv_k[at + HEAD_DIM / 4u + d4 / 16u] = k.y;
        kv_v[at + HEAD_DIM / 4u + d4 / 16u] = v.y;
    }
}
#else
@group(0) @binding(auto) var<storage, read> kv_k: array<u32>;
@group(0) @binding(auto) var<storage, read> kv_v: array<u32>;
#endif
fn kv_row(row: u32) -> u32 { return row * (HEAD_DIM / 4u + (HEAD_DIM + 63u) / 64u); }
// Four signed bytes, and the scales of their block and its neighbour.
alias KvRaw = vec2<u32>;
fn k_raw(row: u32, d4: u32) -> KvRaw {
    let at = kv_row(row);
    return vec2<u32>(kv_k[at + d4], kv_k[at + HEAD_DIM / 4u + d4 / 16u]);
}
fn v_raw(row: u32, d4: u32) -> KvRaw {
    let at = kv_row(row);
    return vec2<u32>(kv_v[at + d4], kv_v[at + HEAD_DIM / 4u + d4 / 16u]);
}
fn kv_four(w: KvRaw, d4: u32) -> vec4<f32> {
    let q = bitcast<vec4<i32>>(vec4<u32>(w.x << 24u, w.x << 16u, w.x << 8u, w.x)) >> vec4<u32>(24u);
    return unpack2x16float(w.y)[(d4 >> 3u) & 1u] * vec4<f32>(q);
}
fn k_load4(row: u32, d4: u32) -> vec4<f32> { return kv_four(k_raw(row, d4), d4); }
fn v_load4(row: u32, d4: u32) -> vec4<f32> { return kv_four(v_raw(row, d4), d4); }
#endif
