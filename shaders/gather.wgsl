// Embedding rows: y[t, :] = scale * W[tokens[t], :], for the tokens whose row lies in this part of the table
// (rows row_start .. row_start + part_rows). One thread decodes one block of 32.
#import thread
override WG: u32 = 64u;
struct Params { n_tokens: u32, cols: u32, k_blocks: u32, row_start: u32, part_rows: u32, y_stride: u32, scale: f32 }
@group(0) @binding(auto) var<storage, read> tokens: array<u32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#slot weight

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let token = i / params.k_blocks;
    if (token >= params.n_tokens) { return; }
    let block = i % params.k_blocks;
    // Wraps to a large number for rows before this part.
    let row = tokens[token] - params.row_start;
    if (row >= params.part_rows) { return; }
    var w = weight_block(row * params.k_blocks + block);
    let base = token * params.y_stride + block * 32u;
    let n = min(params.cols - block * 32u, 32u);
    for (var j = 0u; j < n; j++) { y[base + j] = params.scale * w[j >> 2u][j & 3u]; }
}
