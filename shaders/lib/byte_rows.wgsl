// Rows as signed bytes, for products with whole numbers: 32 neighbouring numbers share a scale, max|x| / 127 in 15 bits of mantissa, and x is about
// scale * byte.
// A row is a vec4 of words for the first half of each of its k_blocks blocks, then one for the second half of each; an entry of the scales is
// the scale's bits and the sums of the bytes of both halves, as two i16. The caller declares
// `override BYTE_THREADS`, a multiple of 8: threads from there on have nothing to write.
// CHAIN_OUT: they go to a later stage of a chain instead, as lib/chain.wgsl has it. The host declares CHAIN_OUT_AT, the first of their words.
// NEIGHBOURS: the caller counts threads as place_of does, and declares BYTE_TOGETHER: as many neighbours as are sure to be of one subgroup. Eight need no
// barrier between them.
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

#if SUBGROUPS
#if NEIGHBOURS
#set SHUFFLED
#endif
#endif
// The number of a thread among those that have rows.
fn byte_thread(t: Thread) -> u32 {
#if NEIGHBOURS
    return place_of(t);
#else
    return t.lid;
#endif
}

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
#if SHUFFLED
// The same where the thread's seven neighbours, from thread `lane` of the subgroup on, have the others of the words.
fn byte_three_of(mine: u32, lane: u32, w: u32) -> u32 {
    let at = 3u * w;
    let shift = at % 4u * 8u;
    let lo = subgroupShuffle(mine, lane + min(at / 4u, 7u)) >> shift;
    let hi = subgroupShuffle(mine, lane + min(at / 4u + 1u, 7u));
    // A word is not moved by 32 bits.
    return lo | select(0u, hi << (32u - max(shift, 1u)), shift > 8u);
}
#endif
// What goes with a block beside: the sum of squares of what it was made from.
fn byte_squares(row: u32, k_blocks: u32, block: u32, squares: f32) {
    chain_send(CHAIN_OUT_AT + (row * CHAIN_WORDS + 12u) * k_blocks + block, bitcast<u32>(squares) >> 8u);
}
#endif
#if SHUFFLED
fn byte_largest(x: f32) -> f32 {
    var top = x;
    for (var apart = 1u; apart < 8u; apart *= 2u) { top = max(top, subgroupShuffleXor(top, apart)); }
    return top;
}
fn byte_sum(x: i32, apart: u32) -> i32 { return x + subgroupShuffleXor(x, apart); }
#endif
// The four numbers v at 4 * i of a row. Eight neighbouring threads hold a block; all threads come here, those with nothing to write with
// on = false.
fn byte_store(t: Thread, on: bool, row: u32, k_blocks: u32, i: u32, v: vec4<f32>) {
    let thread = byte_thread(t);
    let takes_part = thread < BYTE_THREADS;
    let size = abs(v);
    var top = max(max(size.x, size.y), max(size.z, size.w));
    let first = thread & ~7u;
#if SHUFFLED
    let together = BYTE_TOGETHER >= 8u;
#else
    const together = false;
#endif
    if (together) {
#if SHUFFLED
        top = byte_largest(top);
#endif
    } else {
        if (takes_part) { byte_tops[thread] = top; }
        workgroupBarrier();
        top = 0.0;
        if (takes_part) {
            for (var j = 0u; j < 8u; j++) { top = max(top, byte_tops[first + j]); }
        }
    }
    // As many bits as CHAIN_OUT sends, and not less, so that no byte is beyond 127.
    let scale = bitcast<f32>((bitcast<u32>(top / 127.0) + 255u) & ~255u);
    // Numbers near the smallest there are count as zeros: the inverse of their scale would be infinite.
    let inverse = select(0.0, 1.0 / scale, scale > 1e-37);
    let q = vec4<i32>(round(v * inverse));
#if CHAIN_OUT
    let j = i % 8u;
    var words = vec2<u32>(0u);
    if (together) {
#if SHUFFLED
        let lane = t.lane & ~7u;
        words = vec2<u32>(byte_three_of(pack4xI8(q), lane, j), byte_three_of(pack4xI8(q), lane, j + 8u));
#endif
    } else {
        if (takes_part) { byte_words[thread] = pack4xI8(q); }
        workgroupBarrier();
        if (takes_part) {
            words.x = byte_three(first, j);
            if (j < 3u) { words.y = byte_three(first, j + 8u); }
        }
    }
    if (on && takes_part) {
        let at = CHAIN_OUT_AT + row * CHAIN_WORDS * k_blocks + i / 8u;
        chain_send(at + j * k_blocks, words.x);
        if (j < 3u) { chain_send(at + (j + 8u) * k_blocks, words.y); }
        if (j == 3u) { chain_send(at + 11u * k_blocks, bitcast<u32>(scale) >> 8u); }
    }
#else
    let block = i / 8u;
    let word = i % 8u;
    var sums = vec2<i32>(q.x + q.y + q.z + q.w);
    if (together) {
#if SHUFFLED
        // Of the four threads of either half.
        let half = byte_sum(byte_sum(sums.x, 1u), 2u);
        sums = vec2<i32>(half, subgroupShuffleXor(half, 4u));
#endif
    } else {
        if (takes_part) { byte_sums[thread] = sums.x; }
        workgroupBarrier();
        sums = vec2<i32>(0);
        if (takes_part && word == 0u) {
            for (var j = 0u; j < 4u; j++) { sums += vec2<i32>(byte_sums[first + j], byte_sums[first + 4u + j]); }
        }
    }
    if (on && takes_part) {
        byte_quants[((row * 2u + word / 4u) * k_blocks + block) * 4u + word % 4u] = pack4xI8(q);
        if (word == 0u) {
            let packed = (u32(sums.x) & 0xffffu) | (u32(sums.y) << 16u);
            byte_scales[row * k_blocks + block] = vec2<u32>(bitcast<u32>(scale), packed);
        }
    }
#endif
    if (!together) { workgroupBarrier(); }
}
