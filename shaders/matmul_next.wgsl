// y[t, y_offset + r] += sum_k x[t, k] * W[r, k] (+ bias[r]): the last product of a block, which leaves y ready for the next one, as lib/next_rows.wgsl
// has it. BYTES, QUAD, STAGED and CHAIN_IN: see lib/team.wgsl; CHAIN_Y_OUT: y goes to a later stage of a chain, and nowhere else; CHAIN_Y_IN: what is
// added to y comes from an earlier one. A workgroup makes a block of 32 columns, or without OUT_BYTES half a block; columns of the whole of y are a multiple of
// 32, out_blocks of them.
override WG: u32 = 64u;
override TEAM: u32 = 2u;
override NT: u32 = 1u;
override K_BLOCKS: u32 = 1u;
override REDUCE: u32 = 1u;
override SPREAD: u32 = 1u;
override SPLIT: u32 = 1u;
override BYTE_TOGETHER: u32 = REDUCE * SPLIT;
// Rows of weights that a workgroup makes.
override MADE: u32 = WG / TEAM * TEAM_ROWS;
override NEXT_FOURS: u32 = MADE / 4u;
override BYTE_THREADS: u32 = NEXT_FOURS * NT;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32, out_column: u32, out_blocks: u32,
}
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#import team
#import team_tile
#import next_rows
#if CHAIN_Y_IN
#import chain_y
#endif
#if CHAIN_Y_OUT
#import chain_y
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let tile = team_tile(g);
    let row0 = tile.x * MADE;
    let t0 = tile.y * NT;
    // What the results are added to, and the weights of the next norm, are asked for before the product is made.
    let mine = row0 + t.lid % MADE;
    let adds = t.lid < MADE * NT && t0 + t.lid / MADE < params.t_rows;
    let o = (t0 + t.lid / MADE) * params.y_stride + params.y_offset + mine;
    var before = 0.0;
#if CHAIN_Y_IN
    var asked = vec2<u32>(0u);
    if (adds) { asked = chain_ask_y(CHAIN_Y_IN_AT + 2u * o); }
#endif
    if (adds) {
#if !CHAIN_Y_IN
        before = y[o];
#endif
#if BIAS
        before += bias[mine];
#endif
    }
    let column = params.out_column + row0;
    let c = place_of(t) / NEXT_FOURS;
    let on = c < NT && t0 + c < params.t_rows;
    let next = next_weights(t, on, column);
    team_products(t, team_rows(t, row0), t0, params.t_rows - 1u);
    if (t.lid < MADE * NT) {
#if CHAIN_Y_IN
        if (adds) { before += chain_take_y(CHAIN_Y_IN_AT + 2u * o, asked); }
#endif
        let r = t.lid % MADE;
        let s = team_sum(r % TEAMS, r / TEAMS, t.lid / MADE) + before;
#if CHAIN_Y_OUT
        if (adds) { chain_send_y(CHAIN_Y_OUT_AT + 2u * o, s); }
#else
        if (adds) { y[o] = s; }
#endif
        next_values[t.lid] = s;
    }
    next_leave(t, on, params.t_rows, t0 + c, params.out_blocks, column, next);
}
