// Keys and values as f16. Index in elements: ((block * n_kv_head + head) * block_tokens + position in block) * head_dim + dim.
#if KV_WRITE
@group(0) @binding(auto) var<storage, read_write> kv_k: array<u32>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<u32>;
fn k_store2(i: u32, v: vec2<f32>) { kv_k[i >> 1u] = pack2x16float(v); }
fn v_store2(i: u32, v: vec2<f32>) { kv_v[i >> 1u] = pack2x16float(v); }
#else
@group(0) @binding(auto) var<storage, read> kv_k: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read> kv_v: array<vec2<u32>>;
fn k_load4(i: u32) -> vec4<f32> {
    let w = kv_k[i >> 2u];
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}
fn v_load4(i: u32) -> vec4<f32> {
    let w = kv_v[i >> 2u];
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}
#endif
