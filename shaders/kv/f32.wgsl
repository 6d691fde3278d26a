// Keys and values as f32. Rows as in f16.wgsl.
#if KV_WRITE
@group(0) @binding(auto) var<storage, read_write> kv_k: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<vec2<f32>>;
fn kv_store(t: Thread, kind: u32, row: u32, d: u32, v: vec2<f32>) {
    let i = (row * params.head_dim + d) >> 1u;
    if (kind == KV_K) { kv_k[i] = v; }
    if (kind == KV_V) { kv_v[i] = v; }
}
#else
#if FRESH
@group(0) @binding(auto) var<storage, read_write> kv_k: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<vec4<f32>>;
fn kv_round(j: u32, d4: u32) {}
fn kv_fresh(j: u32, d4: u32) -> KvRaw { return fresh_four(j, d4); }
fn kv_keep(row: u32, d4: u32) {
    kv_k[row * (HEAD_DIM / 4u) + d4] = fresh_four(0u, d4);
    kv_v[row * (HEAD_DIM / 4u) + d4] = fresh_four(1u, d4);
}
#else
@group(0) @binding(auto) var<storage, read> kv_k: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> kv_v: array<vec4<f32>>;
#endif
alias KvRaw = vec4<f32>;
fn k_raw(row: u32, d4: u32) -> KvRaw { return kv_k[row * (HEAD_DIM / 4u) + d4]; }
fn v_raw(row: u32, d4: u32) -> KvRaw { return kv_v[row * (HEAD_DIM / 4u) + d4]; }
fn kv_four(w: KvRaw, d4: u32) -> vec4<f32> { return w; }
fn k_load4(row: u32, d4: u32) -> vec4<f32> { return k_raw(row, d4); }
fn v_load4(row: u32, d4: u32) -> vec4<f32> { return v_raw(row, d4); }
#endif
