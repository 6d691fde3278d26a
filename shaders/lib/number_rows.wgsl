// Rows as numbers for the product that comes next: in number_rows, or with CHAIN_OUT for a later stage of a chain, as lib/chain.wgsl has it. The host
// declares NUMBERS_OUT_AT, the first of their words.
#if CHAIN_OUT
#import chain
// The four numbers v at 4 * i of a row of k_blocks.
fn number_store(row: u32, k_blocks: u32, i: u32, v: vec4<f32>) {
    let fours = k_blocks * 8u;
    let at = NUMBERS_OUT_AT + row * CHAIN_NUMBER_WORDS * k_blocks + i;
    let w = bitcast<vec4<u32>>(v);
    for (var j = 0u; j < 4u; j++) { chain_send(at + j * fours, w[j]); }
    chain_send(at + 4u * fours, (w.x >> 24u) | ((w.y >> 24u) << 8u));
    chain_send(at + 5u * fours, (w.z >> 24u) | ((w.w >> 24u) << 8u));
}
// What goes with a block beside: the sum of squares of what it was made from.
fn number_squares(row: u32, k_blocks: u32, block: u32, squares: f32) {
    let at = NUMBERS_OUT_AT + (row * CHAIN_NUMBER_WORDS + 48u) * k_blocks + block;
    chain_send(at, bitcast<u32>(squares));
    chain_send(at + k_blocks, bitcast<u32>(squares) >> 24u);
}
#else
@group(0) @binding(auto) var<storage, read_write> number_rows: array<vec4<f32>>;
fn number_store(row: u32, k_blocks: u32, i: u32, v: vec4<f32>) { number_rows[row * k_blocks * 8u + i] = v; }
#endif
