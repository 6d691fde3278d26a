// Embedding rows: y[t, :] = scale * W[id, :], for the ids whose row lies in this part of the table
// (rows row_start .. row_start + part_rows). One thread decodes one block of 32.
// The id is tokens[t]. POSITIONS: it is the position of row t of a batch, and the table's row is added to y.
#import thread
override WG: u32 = 64u;
struct Params { n_tokens: u32, cols: u32, k_blocks: u32, row_start: u32, part_rows: u32, y_stride: u32, scale: f32 }
#if POSITIONS
#import state
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
#else
@group(0) @binding(auto) var<storage, read> tokens: array<u32>;
#endif
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#slot weight

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let token = i / params.k_blocks;
    if (token >= params.n_tokens) { return; }
    let block = i % params.k_blocks;
#if POSITIONS
    let id = rows[token].pos;
#else
    let id = tokens[token];
#endif
    // Wraps to a large number for rows before this part.
    let row = id - params.row_start;
    if (row >= params.part_rows) { return; }
    var w = weight_block(row * params.k_blocks + block);
    let base = token * params.y_stride + block * 32u;
    let n = min(params.cols - block * 32u, 32u);
    for (var j = 0u; j < n; j++) {
        let v = params.scale * w[j >> 2u][j & 3u];
#if POSITIONS
        y[base + j] += v;
#else
        y[base + j] = v;
#endif
    }
}
