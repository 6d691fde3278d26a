// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]): few rows of x, weights read once. A team of threads makes one row of W.
// BYTES, TAIL, NORM, QUAD, STAGED and CHAIN_IN: see lib/team.wgsl. BIAS adds a bias; ACCUMULATE adds to what y holds. With CHAIN_IN, where each workgroup waits for
// x, one makes CHAIN_TILES groups of rows. CHAIN_Y_OUT: y goes to a later stage of a chain, and nowhere else. CHAIN_BEST_OUT: of one row of y, the
// largest goes to a later stage.
override WG: u32 = 64u;
override TEAM: u32 = 32u;
override NT: u32 = 1u;
override K_BLOCKS: u32 = 1u;
override REDUCE: u32 = 1u;
override SPREAD: u32 = 1u;
override SPLIT: u32 = 1u;
// Rows of W that a workgroup makes.
override MADE: u32 = WG / TEAM * TEAM_ROWS;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32, eps: f32,
}
#if !CHAIN_Y_OUT
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#endif
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#import team
#import team_tile
#if CHAIN_Y_OUT
#import chain_y
#endif
#if CHAIN_BEST_OUT
#import chain_best
// The best result that the thread has made: its key, and its place in the row.
var<private> best_made: vec2<u32> = NO_BEST;
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
#if CHAIN_IN
    let first = group_index(t) * CHAIN_TILES;
    for (var g = first; g < min(first + CHAIN_TILES, params.groups); g++) {
        let tile = team_tile(g);
        let rows = min(NT, params.t_rows - tile.y * NT);
        // What is there from the first of the tiles stays.
        make(t, tile, select(0u, rows, g == first));
    }
#if CHAIN_BEST_OUT
    let place = place_of(t);
    best_send(t, place < MADE, group_index(t) * (MADE / REDUCE) + place / REDUCE, REDUCE, best_made);
#endif
#else
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let tile = team_tile(g);
    make(t, tile, 0u);
#endif
}

fn make(t: Thread, tile: vec2<u32>, missing: u32) {
    let row0 = tile.x * MADE;
    let t0 = tile.y * NT;
    team_products_of(t, min(team_rows(t, row0), vec4<u32>(params.n - 1u)), t0, params.t_rows - 1u, missing);
    let place = place_of(t);
    if (place < MADE * NT) {
        let i = place % MADE;
        let team = i % TEAMS;
        let r = row0 + i;
        let c = place / MADE;
        if (r < params.n && t0 + c < params.t_rows) {
            var s = team_sum(team, i / TEAMS, c) * team_scale(team, c);
#if BIAS
            s += bias[r];
#endif
            let o = (t0 + c) * params.y_stride + params.y_offset + r;
#if ACCUMULATE
            s += y[o];
#endif
#if CHAIN_Y_OUT
            chain_send_y(CHAIN_Y_OUT_AT + 2u * o, s);
#else
            y[o] = s;
#endif
#if CHAIN_BEST_OUT
            let entry = vec2<u32>(order_key(bitcast<u32>(s)), r);
            if (better(entry, best_made)) { best_made = entry; }
#endif
        }
    }
}
