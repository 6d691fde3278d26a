// What the last product of a block leaves for the next one: rows of y * next_w, with OUT_BYTES as signed bytes, with OUT_NUMBERS as shortened numbers, and for
// each block of 32 columns of y sums of squares, from which who reads the rows has the root mean square. CHAIN_OUT: they go to a later stage of a chain.
// A workgroup has a block of 32 columns of some rows, or without OUT_BYTES half a block. The caller declares NEXT_FOURS, threads that have a row's four columns
// each, 8 or 4, BYTE_THREADS, those of all rows, and BYTE_TOGETHER (lib/byte_rows.wgsl); threads count as place_of says.
// block_sums: [row, block], with OUT_NUMBERS of the blocks' first halves (or of the whole, and zeros later), and after those [row, block] of the second ones.
#import thread
@group(0) @binding(auto) var<storage, read> next_w: array<f32>;
#if !CHAIN_OUT
@group(0) @binding(auto) var<storage, read_write> block_sums: array<f32>;
#endif
#set NEIGHBOURS
#import short
#if OUT_BYTES
#import byte_rows
#endif
#if OUT_NUMBERS
#import number_rows
#endif
// The block's columns of each row, from the caller.
var<workgroup> next_values: array<f32, 4u * BYTE_THREADS>;

// The norm's weights of a thread's columns, of those that begin with `column`. Threads without a row are not on.
fn next_weights(t: Thread, on: bool, column: u32) -> vec4<f32> {
    if (!on) { return vec4<f32>(0.0); }
    let k = column + place_of(t) % NEXT_FOURS * 4u;
    return vec4<f32>(next_w[k], next_w[k + 1u], next_w[k + 2u], next_w[k + 3u]);
}
// Leaves the columns to row `row` of `rows`, rows of `blocks`. All threads come here.
fn next_leave(t: Thread, on: bool, rows: u32, row: u32, blocks: u32, column: u32, next: vec4<f32>) {
    workgroupBarrier();
    let place = place_of(t);
    let first = place / NEXT_FOURS * (4u * NEXT_FOURS);
    var v = vec4<f32>(0.0);
    var squares = 0.0;
    if (on) {
        let i = first + place % NEXT_FOURS * 4u;
        v = vec4<f32>(next_values[i], next_values[i + 1u], next_values[i + 2u], next_values[i + 3u]);
        squares = dot(v, v);
        v *= next;
    }
#if SUBGROUPS
    let together = BYTE_TOGETHER >= NEXT_FOURS;
    if (together) {
        for (var apart = 1u; apart < NEXT_FOURS; apart *= 2u) { squares += subgroupShuffleXor(squares, apart); }
    }
#else
    const together = false;
#endif
    if (on) {
        if (place % NEXT_FOURS == 0u) {
            if (!together) {
                squares = 0.0;
                for (var e = first; e < first + 4u * NEXT_FOURS; e++) { squares += next_values[e] * next_values[e]; }
            }
            squares = shortened(vec4<f32>(squares)).x;
#if CHAIN_OUT
#if OUT_BYTES
            byte_squares(row, blocks, column / 32u, squares);
#endif
#else
#if !OUT_NUMBERS
            block_sums[row * blocks + column / 32u] = squares;
#endif
#endif
        }
    }
    let four = column / 4u + place % NEXT_FOURS;
#if OUT_NUMBERS
    if (on) {
        number_store(row, blocks, four, v);
        if (place % NEXT_FOURS == 0u) {
            number_squares(rows, row, blocks, column / 32u, column / 16u % 2u, squares);
            if (NEXT_FOURS == 8u) { number_squares(rows, row, blocks, column / 32u, 1u, 0.0); }
        }
    }
#endif
#if OUT_BYTES
    byte_store(t, on, row, blocks, four, v);
#endif
}
