// Rows as numbers for the product that comes next, shortened: in number_rows, or with CHAIN_OUT for a later stage of a chain, as lib/chain.wgsl has it.
// The host declares NUMBERS_OUT_AT, the first of their words; who leaves squares without a chain declares block_sums (lib/next_rows.wgsl).
#import short
#if CHAIN_OUT
#import chain
// The four numbers v at 4 * i of a row of k_blocks.
fn number_store(row: u32, k_blocks: u32, i: u32, v: vec4<f32>) {
    let at = NUMBERS_OUT_AT + row * CHAIN_NUMBER_WORDS * k_blocks + i;
    let w = bitcast<vec4<u32>>(shortened(v)) >> vec4<u32>(8u);
    for (var j = 0u; j < 4u; j++) { chain_send(at + j * k_blocks * 8u, w[j]); }
}
// What goes with either half of a block beside: the sum of squares of what it was made from.
fn number_squares(rows: u32, row: u32, k_blocks: u32, block: u32, half: u32, squares: f32) {
    chain_send(NUMBERS_OUT_AT + (row * CHAIN_NUMBER_WORDS + 32u + half) * k_blocks + block, bitcast<u32>(squares) >> 8u);
}
#else
@group(0) @binding(auto) var<storage, read_write> number_rows: array<vec4<f32>>;
fn number_store(row: u32, k_blocks: u32, i: u32, v: vec4<f32>) { number_rows[row * k_blocks * 8u + i] = shortened(v); }
fn number_squares(rows: u32, row: u32, k_blocks: u32, block: u32, half: u32, squares: f32) {
    block_sums[(half * rows + row) * k_blocks + block] = squares;
}
#endif
