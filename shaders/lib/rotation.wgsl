// cos and sin of pair i of n at a position. The table has the angles of positions 0..255 in rows 0..255 (times the magnitude scale)
// and of multiples of 256 after them, combined by the addition theorem: exact to f32 rounding at any position, where sin(large) is not.
// The caller declares `angles`.
fn rotation(pos: u32, i: u32, n: u32) -> vec2<f32> {
    let lo = angles[(pos & 255u) * n + i];
    let hi = angles[(256u + (pos >> 8u)) * n + i];
    return vec2<f32>(hi.x * lo.x - hi.y * lo.y, hi.y * lo.x + hi.x * lo.y);
}
