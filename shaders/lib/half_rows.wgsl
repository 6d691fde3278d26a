// Rows as f16 for cooperative products: h[r, k] = x[r, k] * 2^e, scales[r] = 2^-e, with the row's largest magnitude brought to 2^14..2^15,
// so that no row leaves the range of f16 and what is lost is far below its sums. h is padded with zeros to whole blocks of 32.
// A row with an infinity or a NaN keeps it.
// With params.x_tiles tiles of 16 rows (0: none) h is in tiles for matmul_few.wgsl: [steps of 64 columns, 4, x_tiles, 16 rows, 16
// columns], padded with zeros to whole rounds of 256 columns, where a tile has two units of four of each of a step's two blocks: the j-th of both before the next of either.
@group(0) @binding(auto) var<storage, read_write> h: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read_write> scales: array<f32>;

// e for a row whose largest magnitude is `top`, as f32 stores it; its negative must be a normal number too.
fn half_exponent(top: f32) -> u32 { return min(268u - ((bitcast<u32>(top) >> 23u) & 255u), 253u); }
fn half_factor(e: u32) -> f32 { return bitcast<f32>(e << 23u); }
fn half_scale(e: u32) -> f32 { return bitcast<f32>((254u - e) << 23u); }
fn half_four(v: vec4<f32>) -> vec2<u32> { return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }
fn largest(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}
// Where the i-th four numbers of a row go.
fn half_at(r: u32, i: u32) -> u32 {
    if (params.x_tiles == 0u) { return r * params.padded4 + i; }
    let j = i % 8u;
    return ((i / 16u * 4u + j / 2u) * params.x_tiles + r / 16u) * 64u + r % 16u * 4u + j % 2u * 2u + i / 8u % 2u;
}
