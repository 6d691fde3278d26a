// Unsigned keys in the order of the floats they stand for, made from bits alone, so that no compiler
// may assume that there is no NaN or infinity. NaN is 0, below −∞; both zeros have one key.

const KEY_NEG_INF: u32 = 0x007fffffu;
const KEY_POS_INF: u32 = 0xff800000u;

fn order_key(bits: u32) -> u32 {
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0u;
    }
    if bits > 0x80000000u {
        return ~bits;
    }
    return bits | 0x80000000u;
}

fn key_value(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// The better of two (key, id): the larger key, then the lower id.
fn better(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}
