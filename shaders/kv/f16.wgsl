// Keys and values as f16. A row is one head at one position: (block * n_kv_head + head) * block_tokens + position in block.
#if KV_WRITE
@group(0) @binding(auto) var<storage, read_write> kv_k: array<u32>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<u32>;
fn kv_store(t: Thread, kind: u32, row: u32, d: u32, v: vec2<f32>) {
    let i = (row * params.head_dim + d) >> 1u;
    if (kind == KV_K) { kv_k[i] = pack2x16float(v); }
    if (kind == KV_V) { kv_v[i] = pack2x16float(v); }
}
#else
#if FRESH
@group(0) @binding(auto) var<storage, read_write> kv_k: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<vec2<u32>>;
// The new key (j = 0) and value (1), packed: in workgroup memory, since a compiler may drop a rounding that is undone at once.
var<workgroup> kv_packed: array<vec2<u32>, HEAD_DIM / 2u>;
fn kv_round(j: u32, d4: u32) {
    let v = fresh_four(j, d4);
    kv_packed[j * (HEAD_DIM / 4u) + d4] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
// What the cache gives back of them, after a barrier.
fn kv_fresh(j: u32, d4: u32) -> KvRaw { return kv_packed[j * (HEAD_DIM / 4u) + d4]; }
fn kv_keep(row: u32, d4: u32) {
    kv_k[row * (HEAD_DIM / 4u) + d4] = kv_packed[d4];
    kv_v[row * (HEAD_DIM / 4u) + d4] = kv_packed[HEAD_DIM / 4u + d4];
}
#else
@group(0) @binding(auto) var<storage, read> kv_k: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read> kv_v: array<vec2<u32>>;
#endif
// Four dimensions as they are kept.
alias KvRaw = vec2<u32>;
fn k_raw(row: u32, d4: u32) -> KvRaw { return kv_k[row * (HEAD_DIM / 4u) + d4]; }
fn v_raw(row: u32, d4: u32) -> KvRaw { return kv_v[row * (HEAD_DIM / 4u) + d4]; }
fn kv_four(w: KvRaw, d4: u32) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn k_load4(row: u32, d4: u32) -> vec4<f32> { return kv_four(k_raw(row, d4), d4); }
fn v_load4(row: u32, d4: u32) -> vec4<f32> { return kv_four(v_raw(row, d4), d4); }
#endif
