#set ELEMENTS
@group(0) @binding(auto) var<storage, read> w_values: array<vec4<f32>>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let i = b * 8u;
    return array<vec4<f32>, 8>(
        w_values[i], w_values[i + 1u], w_values[i + 2u], w_values[i + 3u],
        w_values[i + 4u], w_values[i + 5u], w_values[i + 6u], w_values[i + 7u]);
}
fn weight_eight(i: u32) -> array<vec4<f32>, 2> { return array<vec4<f32>, 2>(w_values[i * 2u], w_values[i * 2u + 1u]); }
