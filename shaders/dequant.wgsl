// y[r, :] = W[r, :] in f32, from y_offset on. One thread decodes one block of 32.
#import thread
override WG: u32 = 64u;
struct Params { rows: u32, cols: u32, k_blocks: u32, y_offset: u32 }
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#slot weight

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let row = i / params.k_blocks;
    if (row >= params.rows) { return; }
    let block = i % params.k_blocks;
    var w = weight_block(i);
    let base = params.y_offset + row * params.cols + block * 32u;
    let n = min(params.cols - block * 32u, 32u);
    for (var j = 0u; j < n; j++) { y[base + j] = w[j >> 2u][j & 3u]; }
}
