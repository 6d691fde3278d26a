const LOWEST: f32 = -3.4028234e38;

// NaN and -inf become LOWEST and +inf the largest number, so that no difference is NaN.
fn finite(v: f32) -> f32 {
    // A NaN is the only number whose bits, sign aside, exceed infinity's; comparisons alone may be optimised away.
    let nan = (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
    return select(clamp(v, LOWEST, 3.4028234e38), LOWEST, nan);
}
