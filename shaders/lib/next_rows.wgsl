// What the last product of a block leaves for the next one: rows of y * next_w, with OUT_BYTES as signed bytes, with OUT_NUMBERS as they are, and for
// each 32 columns of y their sum of squares, from which who reads the rows has the root mean square. CHAIN_OUT: they go to a later stage of a chain.
// A workgroup has a block of 32 columns of some rows, BYTE_THREADS / 8. The caller declares that and BYTE_TOGETHER (lib/byte_rows.wgsl);
// threads count as place_of says.
#import thread
@group(0) @binding(auto) var<storage, read> next_w: array<f32>;
#if !CHAIN_OUT
@group(0) @binding(auto) var<storage, read_write> block_sums: array<f32>;
#endif
#set NEIGHBOURS
#if OUT_BYTES
#import byte_rows
#endif
#if OUT_NUMBERS
#import number_rows
#endif
// The block's columns of each row, from the caller.
var<workgroup> next_values: array<f32, 4u * BYTE_THREADS>;

// The norm's weights of a thread's columns, of a block that begins with `column`; eight threads have a row. Those without a row are not on.
fn next_weights(t: Thread, on: bool, column: u32) -> vec4<f32> {
    if (!on) { return vec4<f32>(0.0); }
    let k = column + place_of(t) % 8u * 4u;
    return vec4<f32>(next_w[k], next_w[k + 1u], next_w[k + 2u], next_w[k + 3u]);
}
// Leaves the block to row `row` of the thread's eight, rows of `blocks`. All threads come here.
fn next_leave(t: Thread, on: bool, row: u32, blocks: u32, column: u32, next: vec4<f32>) {
    workgroupBarrier();
    let place = place_of(t);
    let first = place / 8u * 32u;
    var v = vec4<f32>(0.0);
    var squares = 0.0;
    if (on) {
        let i = first + place % 8u * 4u;
        v = vec4<f32>(next_values[i], next_values[i + 1u], next_values[i + 2u], next_values[i + 3u]);
        squares = dot(v, v);
        v *= next;
    }
#if SUBGROUPS
    let together = BYTE_TOGETHER >= 8u;
    if (together) {
        for (var apart = 1u; apart < 8u; apart *= 2u) { squares += subgroupShuffleXor(squares, apart); }
    }
#else
    const together = false;
#endif
    if (on) {
        if (place % 8u == 0u) {
            if (!together) {
                squares = 0.0;
                for (var e = first; e < first + 32u; e++) { squares += next_values[e] * next_values[e]; }
            }
#if OUT_BYTES
            // As many bits as CHAIN_OUT sends beside bytes.
            squares = bitcast<f32>((bitcast<u32>(squares) + 128u) & ~255u);
#endif
#if CHAIN_OUT
#if OUT_BYTES
            byte_squares(row, blocks, column / 32u, squares);
#endif
#if OUT_NUMBERS
            number_squares(row, blocks, column / 32u, squares);
#endif
#else
            block_sums[row * blocks + column / 32u] = squares;
#endif
        }
    }
    let four = column / 4u + place % 8u;
#if OUT_NUMBERS
    if (on) { number_store(row, blocks, four, v); }
#endif
#if OUT_BYTES
    byte_store(t, on, row, blocks, four, v);
#endif
}
