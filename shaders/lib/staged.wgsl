// The input of a product in workgroup memory, for products of it with many rows of weights: as signed bytes (as in byte_rows.wgsl: 32 neighbours
// share a scale), or with FLOATS as f32. Needs subgroups of 8 or more threads whose numbers are those of the workgroup in order.
// The caller declares WG, and K_MOST: the widest input, a multiple of 32.
#if FLOATS
// Vectors of even and of odd number, so that neighbouring threads read neighbouring addresses.
var<workgroup> staged_even: array<vec4<f32>, K_MOST / 8u>;
var<workgroup> staged_odd: array<vec4<f32>, K_MOST / 8u>;
// Numbers 4 * i on. Eight neighbouring threads come here together.
fn stage(i: u32, v: vec4<f32>) {
    if ((i & 1u) == 0u) { staged_even[i / 2u] = v; } else { staged_odd[i / 2u] = v; }
}
fn staged_eight(w: array<vec4<f32>, 2>, i: u32) -> f32 { return dot(w[0], staged_even[i]) + dot(w[1], staged_odd[i]); }
#else
#import bytes
// Of each block the first and the second half; its scale; the scale times the sum of either half.
var<workgroup> staged_lo: array<vec4<u32>, K_MOST / 32u>;
var<workgroup> staged_hi: array<vec4<u32>, K_MOST / 32u>;
var<workgroup> staged_scales: array<f32, K_MOST / 32u>;
var<workgroup> staged_sums: array<vec2<f32>, K_MOST / 32u>;
// Numbers 4 * i on. Eight neighbouring threads come here together and hold a block.
fn stage(i: u32, v: vec4<f32>) {
    let size = abs(v);
    var top = max(max(size.x, size.y), max(size.z, size.w));
    top = max(top, subgroupShuffleXor(top, 1u));
    top = max(top, subgroupShuffleXor(top, 2u));
    top = max(top, subgroupShuffleXor(top, 4u));
    let scale = top / 127.0;
    // Numbers near the smallest there are count as zeros: the inverse of their scale would be infinite.
    let inverse = select(0.0, 1.0 / scale, scale > 1e-37);
    let q = vec4<i32>(round(v * inverse));
    var sum = q.x + q.y + q.z + q.w;
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    let other = subgroupShuffleXor(sum, 4u);
    let block = i / 8u;
    let word = i % 8u;
    if (word < 4u) { staged_lo[block][word] = pack4xI8(q); } else { staged_hi[block][word - 4u] = pack4xI8(q); }
    if (word == 0u) {
        staged_scales[block] = scale;
        staged_sums[block] = scale * vec2<f32>(vec2<i32>(sum, other));
    }
}
fn staged_block(w: Bytes, b: u32) -> f32 {
    let whole = vec2<f32>(f32(bytes_dot(w.lo, staged_lo[b])), f32(bytes_dot(w.hi, staged_hi[b])));
    return staged_scales[b] * dot(w.scale, whole) + dot(w.offset, staged_sums[b]);
}
#endif

// Sum over a team of TEAM neighbouring threads, at most a subgroup.
fn team_add(v: f32) -> f32 {
    var s = v;
    for (var m = TEAM / 2u; m > 0u; m /= 2u) { s += subgroupShuffleXor(s, m); }
    return s;
}
