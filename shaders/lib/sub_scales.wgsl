// The two 6-bit numbers of block j of a super-block, as src/quant/sub_scales.rs packs them; the first word is not looked at.
fn sub_scales(s: vec4<u32>, j: u32) -> vec2<f32> {
    let t = s.yzw >> vec3<u32>(j * 4u);
    return vec2<f32>(vec2<u32>((t.x & 15u) | ((t.z & 3u) << 4u), (t.y & 15u) | ((t.z & 12u) << 2u)));
}
