// Unsigned keys in the order of the floats they stand for, made from bits alone, so that no compiler
// may assume that there is no NaN or infinity. NaN is 0, below −∞; both zeros have one key.

const KEY_NEG_INF: u32 = 0x007fffffu;
const KEY_POS_INF: u32 = 0xff800000u;

fn order_keys(bits: vec4<u32>) -> vec4<u32> {
    let nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let key = select(bits | vec4<u32>(0x80000000u), ~bits, bits > vec4<u32>(0x80000000u));
    return select(key, vec4<u32>(0u), nan);
}

fn order_key(bits: u32) -> u32 {
    return order_keys(vec4<u32>(bits)).x;
}

fn key_value(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// The better of two (key, id): the larger key, then the lower id.
fn better(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}
