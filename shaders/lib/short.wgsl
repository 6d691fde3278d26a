// Floats without their last eight bits, rounded: as chains send them (lib/chain.wgsl), so that they are the same without a chain. What is not finite
// stays so.
fn shortened(v: vec4<f32>) -> vec4<f32> {
    let w = bitcast<vec4<u32>>(v);
    let finite = (w & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
    return bitcast<vec4<f32>>((w + select(vec4<u32>(0u), vec4<u32>(128u), finite)) & vec4<u32>(0xffffff00u));
}
