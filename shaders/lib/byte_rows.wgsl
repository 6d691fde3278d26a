// Rows as signed bytes, for products with whole numbers: 32 neighbouring numbers share a scale, max|x| / 127 in 15 bits of mantissa, and x is about
// scale * byte.
// A row is a vec4 of words for the first half of each of its k_blocks blocks, then one for the second half of each; an entry of the scales is
// the scale's bits and the sums of the bytes of both halves, as two i16. The caller declares
// `override BYTE_THREADS`, a multiple of 8: threads from there on have nothing to write.
// CHAIN_OUT: they go to a later stage of a chain instead, as lib/chain.wgsl has it. The host declares CHAIN_OUT_AT, the first of their words.
#import thread
#if CHAIN_OUT
#import chain
var<workgroup> byte_words: array<u32, BYTE_THREADS>;
#else
@group(0) @binding(auto) var<storage, read_write> byte_quants: array<u32>;
@group(0) @binding(auto) var<storage, read_write> byte_scales: array<vec2<u32>>;
var<workgroup> byte_sums: array<i32, BYTE_THREADS>;
#endif
var<workgroup> byte_tops: array<f32, BYTE_THREADS>;

#if CHAIN_OUT
// Three bytes of a block, from byte 3 * w on.
fn byte_three(first: u32, w: u32) -> u32 {
    let at = 3u * w;
    let word = first + at / 4u;
    let shift = at % 4u * 8u;
    let lo = byte_words[word] >> shift;
    if (shift <= 8u) { return lo; }
    return lo | (byte_words[min(word + 1u, first + 7u)] << (32u - shift));
}
// What goes with a block beside: the sum of squares of what it was made from.
fn byte_squares(row: u32, k_blocks: u32, block: u32, squares: f32) {
    chain_send(CHAIN_OUT_AT + (row * CHAIN_WORDS + 12u) * k_blocks + block, bitcast<u32>(squares) >> 8u);
}
#endif
// The four numbers v at 4 * i of a row. Eight neighbouring threads hold a block; all threads come here, those with nothing to write with
// on = false.
fn byte_store(t: Thread, on: bool, row: u32, k_blocks: u32, i: u32, v: vec4<f32>) {
    let takes_part = t.lid < BYTE_THREADS;
    let size = abs(v);
    if (takes_part) { byte_tops[t.lid] = max(max(size.x, size.y), max(size.z, size.w)); }
    workgroupBarrier();
    let first = t.lid & ~7u;
    var top = 0.0;
    if (takes_part) {
        for (var j = 0u; j < 8u; j++) { top = max(top, byte_tops[first + j]); }
    }
    // As many bits as CHAIN_OUT sends, and not less, so that no byte is beyond 127.
    let scale = bitcast<f32>((bitcast<u32>(top / 127.0) + 255u) & ~255u);
    // Numbers near the smallest there are count as zeros: the inverse of their scale would be infinite.
    let inverse = select(0.0, 1.0 / scale, scale > 1e-37);
    let q = vec4<i32>(round(v * inverse));
#if CHAIN_OUT
    if (takes_part) { byte_words[t.lid] = pack4xI8(q); }
    workgroupBarrier();
    if (on && takes_part) {
        let at = CHAIN_OUT_AT + row * CHAIN_WORDS * k_blocks + i / 8u;
        let j = i % 8u;
        chain_send(at + j * k_blocks, byte_three(first, j));
        if (j < 3u) { chain_send(at + (j + 8u) * k_blocks, byte_three(first, j + 8u)); }
        if (j == 3u) { chain_send(at + 11u * k_blocks, bitcast<u32>(scale) >> 8u); }
    }
#else
    if (takes_part) { byte_sums[t.lid] = q.x + q.y + q.z + q.w; }
    workgroupBarrier();
    if (on && takes_part) {
        let block = i / 8u;
        let word = i % 8u;
        byte_quants[((row * 2u + word / 4u) * k_blocks + block) * 4u + word % 4u] = pack4xI8(q);
        if (word == 0u) {
            var sums = vec2<i32>(0);
            for (var j = 0u; j < 4u; j++) { sums += vec2<i32>(byte_sums[first + j], byte_sums[first + 4u + j]); }
            let packed = (u32(sums.x) & 0xffffu) | (u32(sums.y) << 16u);
            byte_scales[row * k_blocks + block] = vec2<u32>(bitcast<u32>(scale), packed);
        }
    }
#endif
    workgroupBarrier();
}
