// Embedding rows: y[t, :] = scale * W[id, :], for the ids whose row lies in this part of the table (rows row_start .. row_start + part_rows). A workgroup has a block of 32
// columns of four rows, eight threads for each. The id is tokens[t]. POSITIONS: it is the position of row t of a batch, and the table's row is added to y.
// BEGINS: this begins a decode step as well (lib/step_begin.wgsl), and the ids are those of the states.
// OUT_BYTES, OUT_NUMBERS: y is left ready for the next product, as lib/next_rows.wgsl has it; columns are a multiple of 32.
#import thread
override WG: u32 = 64u;
const BYTE_TOGETHER: u32 = 1u;
struct Params {
    n_tokens: u32, cols: u32, k_blocks: u32, row_start: u32, part_rows: u32, y_stride: u32, scale: f32, groups: u32, history_cap: u32, words: u32,
}
#if BEGINS
#import step_begin
#else
#if POSITIONS
#import state
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
#else
@group(0) @binding(auto) var<storage, read> tokens: array<u32>;
#endif
#endif
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#slot weight
#if OUT_BYTES
#set NEXT
#endif
#if OUT_NUMBERS
#set NEXT
#endif
#if NEXT
const NEXT_FOURS: u32 = 8u;
const BYTE_THREADS: u32 = 32u;
#import next_rows
#endif

fn id_of(token: u32) -> u32 {
#if BEGINS
    return states[slots[token]].token;
#else
#if POSITIONS
    return rows[token].pos;
#else
    return tokens[token];
#endif
#endif
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
#if BEGINS
    let i = g * WG + t.lid;
    clear_chains(i, params.groups * WG);
    if (i < params.n_tokens) { begin_row(i); }
#endif
    let block = g % params.k_blocks;
    let place = place_of(t);
    let token = g / params.k_blocks * 4u + place / 8u;
    let mine = place < 32u && token < params.n_tokens;
    var row = 0xffffffffu;
    // Wraps to a large number for rows before this part.
    if (mine) { row = id_of(token) - params.row_start; }
    let on = row < params.part_rows;
    let column = block * 32u;
#if NEXT
    let next = next_weights(t, on, column);
#endif
    if (on) {
        var w = weight_block(row * params.k_blocks + block);
        let v = params.scale * w[place % 8u];
        let at = column + place % 8u * 4u;
        let base = token * params.y_stride + at;
        for (var e = 0u; e < 4u; e++) {
            if (at + e < params.cols) {
#if POSITIONS
                y[base + e] += v[e];
#else
                y[base + e] = v[e];
#endif
            }
#if NEXT
            next_values[place * 4u + e] = v[e];
#endif
        }
    }
#if NEXT
    next_leave(t, on, params.n_tokens, token, params.k_blocks, column, next);
#endif
}
