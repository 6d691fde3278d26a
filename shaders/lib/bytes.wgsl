// The 32 weights of a block as signed bytes: weight = scale * byte + offset, the first 16 with .x, the others with .y. Byte e of word c is
// that of weight 4c + e of its half. A format sets ONE_SCALE where both halves have the same scale and offset, UNSHIFTED where the offset is 0.
struct Bytes { lo: vec4<u32>, hi: vec4<u32>, scale: vec2<f32>, offset: vec2<f32> }

// Sum of the products of 16 signed bytes.
fn bytes_dot(a: vec4<u32>, b: vec4<u32>) -> i32 { return bytes_dot_add(0, a, b); }
// The same added to others, one after another: a device adds three numbers at a time.
fn bytes_dot_add(sum: i32, a: vec4<u32>, b: vec4<u32>) -> i32 {
    return sum + dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}
