// Rows that an earlier stage sends, brought to workgroup memory: of bytes, or of numbers. The host declares CHAIN_IN_AT, their first word, CHAIN_BLOCKS,
// the most blocks that a workgroup of any stage takes at a time, and CHAIN_FOURS, the most words of four that they take up. The caller declares WG.
// NORM: with the blocks' sums of squares.
#import thread
#import chain
var<workgroup> chain_x: array<vec4<u32>, CHAIN_FOURS>;
#if NORM
var<workgroup> chain_squares: array<f32, CHAIN_BLOCKS>;
#endif

// Waits until the word at `at` is there, the first of what comes: workgroups wait long and all for the same words, and if all their threads asked for all of
// them all the time, the memory that has these would do little else. Where one is there, the others soon are.
fn chain_await(t: Thread, at: u32) {
    if (t.lid == 0u) {
        for (var n = 0u; n < CHAIN_POLLS; n++) {
            if (chain_there(vec4<u32>(chain_read(at))) || chain_stops(n)) { break; }
        }
    }
    workgroupBarrier();
}
#if BYTES
#import bytes
var<workgroup> chain_scales: array<vec2<u32>, CHAIN_BLOCKS>;

// Waits for `rows` rows of k_blocks from `row0` on. They are kept as byte_rows are, from row 0 on.
fn chain_receive(t: Thread, row0: u32, rows: u32, k_blocks: u32) {
#if ROUTE_IN
    // Rows of experts: waits are long, and for many rows at a time. Else it does not pay for bytes, which few threads ask for.
    if (rows > 0u) { chain_await(t, CHAIN_IN_AT + row0 * CHAIN_WORDS * k_blocks); }
#endif
    for (var i = t.lid; i < rows * k_blocks; i += WG) {
        let row = i / k_blocks;
        let b = i % k_blocks;
        let at = CHAIN_IN_AT + (row0 + row) * CHAIN_WORDS * k_blocks + b;
        var w0 = vec4<u32>(0u);
        var w1 = vec4<u32>(0u);
        var w2 = vec4<u32>(0u);
        // Without NORM nothing is sent for it.
        var squares = chain_tag();
        var there = false;
        for (var n = 0u; n < CHAIN_POLLS; n++) {
            w0 = vec4<u32>(chain_read(at), chain_read(at + k_blocks), chain_read(at + 2u * k_blocks), chain_read(at + 3u * k_blocks));
            w1 = vec4<u32>(chain_read(at + 4u * k_blocks), chain_read(at + 5u * k_blocks),
                chain_read(at + 6u * k_blocks), chain_read(at + 7u * k_blocks));
            w2 = vec4<u32>(chain_read(at + 8u * k_blocks), chain_read(at + 9u * k_blocks),
                chain_read(at + 10u * k_blocks), chain_read(at + 11u * k_blocks));
#if NORM
            squares = chain_read(at + 12u * k_blocks);
#endif
            there = chain_there(w0) && chain_there(w1) && chain_there(w2) && chain_there(vec4<u32>(squares));
            if (there || chain_stops(n)) { break; }
        }
        if (!there) { chain_give_up(); }
        // Twelve bytes from each four words.
        let lo = vec4<u32>((w0.x & 0xffffffu) | (w0.y << 24u), ((w0.y >> 8u) & 0xffffu) | (w0.z << 16u),
            ((w0.z >> 16u) & 0xffu) | (w0.w << 8u), (w1.x & 0xffffffu) | (w1.y << 24u));
        let hi = vec4<u32>(((w1.y >> 8u) & 0xffffu) | (w1.z << 16u), ((w1.z >> 16u) & 0xffu) | (w1.w << 8u),
            (w2.x & 0xffffffu) | (w2.y << 24u), ((w2.y >> 8u) & 0xffffu) | (w2.z << 16u));
        chain_x[row * 2u * k_blocks + b] = lo;
        chain_x[(row * 2u + 1u) * k_blocks + b] = hi;
        let ones = vec4<u32>(0x01010101u);
        let sums = vec2<i32>(bytes_dot(lo, ones), bytes_dot(hi, ones));
        chain_scales[i] = vec2<u32>(w2.w << 8u, (u32(sums.x) & 0xffffu) | (u32(sums.y) << 16u));
#if NORM
        chain_squares[i] = bitcast<f32>(squares << 8u);
#endif
    }
    workgroupBarrier();
}
#else

// The words of number i of the fours of rows from `row0` on.
fn chain_four(row0: u32, i: u32, k_blocks: u32) -> vec4<u32> {
    let fours = k_blocks * 8u;
    let at = CHAIN_IN_AT + (row0 + i / fours) * CHAIN_NUMBER_WORDS * k_blocks + i % fours;
    return vec4<u32>(chain_read(at), chain_read(at + fours), chain_read(at + 2u * fours), chain_read(at + 3u * fours));
}
// The words of the squares of the block that number i of the fours belongs to, of both halves; without NORM nothing is sent for it.
fn chain_squares_of(row0: u32, i: u32, k_blocks: u32) -> vec2<u32> {
#if NORM
    let block = i / 8u;
    let at = CHAIN_IN_AT + ((row0 + block / k_blocks) * CHAIN_NUMBER_WORDS + 32u) * k_blocks + block % k_blocks;
    return vec2<u32>(chain_read(at), chain_read(at + k_blocks));
#else
    return vec2<u32>(chain_tag());
#endif
}
fn chain_keep(i: u32, k_blocks: u32, w: vec4<u32>, squares: vec2<u32>) {
    let fours = k_blocks * 8u;
    let k = i % fours;
    chain_x[i - k + k % 2u * (fours / 2u) + k / 2u] = w << vec4<u32>(8u);
#if NORM
    if (i % 8u == 0u) { chain_squares[i / 8u] = bitcast<f32>(squares.x << 8u) + bitcast<f32>(squares.y << 8u); }
#endif
}
// Waits for `rows` rows of k_blocks from `row0` on. Of a row first its even fours of numbers are kept, then the odd ones, from row 0 on.
fn chain_receive(t: Thread, row0: u32, rows: u32, k_blocks: u32) {
    if (rows > 0u) { chain_await(t, CHAIN_IN_AT + row0 * CHAIN_NUMBER_WORDS * k_blocks); }
    let fours = rows * k_blocks * 8u;
    // Two fours at a time, where there are more than threads.
    let two = fours > WG;
    for (var i = t.lid; i < fours; i += select(WG, 2u * WG, two)) {
        let j = min(i + WG, fours - 1u);
        var a = vec4<u32>(0u);
        var b = vec4<u32>(chain_tag());
        var squares = vec4<u32>(chain_tag());
        var there = false;
        for (var n = 0u; n < CHAIN_POLLS; n++) {
            a = chain_four(row0, i, k_blocks);
            squares = chain_squares_of(row0, i, k_blocks).xyxy;
            if (two) {
                b = chain_four(row0, j, k_blocks);
                squares = vec4<u32>(squares.xy, chain_squares_of(row0, j, k_blocks));
            }
            there = chain_there(a) && chain_there(b) && chain_there(squares);
            if (there || chain_stops(n)) { break; }
        }
        if (!there) { chain_give_up(); }
        chain_keep(i, k_blocks, a, squares.xy);
        if (two && i + WG < fours) { chain_keep(j, k_blocks, b, squares.zw); }
    }
    workgroupBarrier();
}
#endif
