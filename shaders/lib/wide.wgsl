// 64-bit unsigned integers as (low word, high word).

fn wide_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn wide_sub(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn wide_less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn wide_mul(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
    let high = (a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u);
    return vec2<u32>((other << 16u) | (low & 0xffffu), high);
}

// a · b / 2^32, rounded down.
fn wide_share(a: u32, b: vec2<u32>) -> vec2<u32> {
    return wide_add(wide_mul(a, b.y), vec2<u32>(wide_mul(a, b.x).y, 0u));
}

// a · b / 2^32, rounded up.
fn wide_share_up(a: u32, b: vec2<u32>) -> vec2<u32> {
    return wide_add(wide_share(a, b), vec2<u32>(select(0u, 1u, a * b.x != 0u), 0u));
}
