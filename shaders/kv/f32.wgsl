// Keys and values as f32. Index as in f16.wgsl.
#if KV_WRITE
@group(0) @binding(auto) var<storage, read_write> kv_k: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read_write> kv_v: array<vec2<f32>>;
fn k_store2(i: u32, v: vec2<f32>) { kv_k[i >> 1u] = v; }
fn v_store2(i: u32, v: vec2<f32>) { kv_v[i >> 1u] = v; }
#else
@group(0) @binding(auto) var<storage, read> kv_k: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> kv_v: array<vec4<f32>>;
fn k_load4(i: u32) -> vec4<f32> { return kv_k[i >> 2u]; }
fn v_load4(i: u32) -> vec4<f32> { return kv_v[i >> 2u]; }
#endif
