// y[t, r] += sum_j weights[t, j] * (x[t * n_used + j] . W[ids[t, j]][r]): the last product of few rows' experts and their weighted sum, x as
// bytes. SHARED adds sigmoid(gate[t]) * shared_y[t, r]. NEXT leaves y ready for the next block, as lib/next_rows.wgsl has it. A workgroup makes 32 results
// of a row: a team walks the blocks of all its experts' rows as if they were one row. CHAIN_IN: see lib/team.wgsl; CHAIN_OUT: what NEXT leaves goes to a
// later stage of a chain; ROUTE_IN: ids and weights come from an earlier one's logits; CHAIN_Y_IN: so does what is added to y.
#set BYTES
override WG: u32 = 64u;
override TEAM: u32 = 2u;
override K_BLOCKS: u32 = 1u;
override REDUCE: u32 = 1u;
override BYTE_TOGETHER: u32 = REDUCE;
override N_USED: u32 = 1u;
const NT: u32 = 1u;
const SPREAD: u32 = 1u;
const SPLIT: u32 = 1u;
const NEXT_FOURS: u32 = 8u;
const BYTE_THREADS: u32 = 8u;
struct Params {
    groups: u32, row_groups: u32, n: u32, y_stride: u32, y_offset: u32, shared_stride: u32, shared_offset: u32,
}
#if ROUTE_IN
#import route_in
fn expert(row: u32, j: u32) -> u32 { return route_ids[j]; }
fn weight(row: u32, j: u32) -> f32 { return route_weights[j]; }
#else
@group(0) @binding(auto) var<storage, read> ids: array<u32>;
@group(0) @binding(auto) var<storage, read> weights: array<f32>;
// Number j of a row's experts, and its weight.
fn expert(row: u32, j: u32) -> u32 { return ids[row * N_USED + j]; }
fn weight(row: u32, j: u32) -> f32 { return weights[row * N_USED + j]; }
#endif
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if SHARED
@group(0) @binding(auto) var<storage, read> gate: array<f32>;
@group(0) @binding(auto) var<storage, read> shared_y: array<f32>;
#endif
#import team
#if CHAIN_Y_IN
#import chain_y
#endif
#if NEXT
#set OUT_BYTES
#import next_rows
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let row = g / params.row_groups;
    let row0 = (g % params.row_groups) * 32u;
    let member = team_of(t, TEAM).y;
    let r = row0 + team_of(t, TEAM).x;
#if ROUTE_IN
    route_receive(t, row);
#endif
    let entry0 = row * N_USED;
    var acc = 0.0;
    var i = member;
#if CHAIN_IN
    // The first weights are asked for before x is there; it is kept from the row's first entry on.
    let first = min(member, N_USED * K_BLOCKS - 1u);
    let w0 = team_w((expert(row, first / K_BLOCKS) * params.n + r) * K_BLOCKS + first % K_BLOCKS);
    chain_receive(t, entry0, N_USED, K_BLOCKS);
    if (member < N_USED * K_BLOCKS) { acc = weight(row, first / K_BLOCKS) * team_add_product(0.0, w0, team_x(team_row(first / K_BLOCKS), first % K_BLOCKS)); }
    i += TEAM;
    let x0 = 0u;
#else
    let x0 = entry0;
#endif
    for (; i < N_USED * K_BLOCKS; i += TEAM) {
        let j = i / K_BLOCKS;
        let b = i % K_BLOCKS;
        let w = team_w((expert(row, j) * params.n + r) * K_BLOCKS + b);
        acc += weight(row, j) * team_add_product(0.0, w, team_x(team_row(x0 + j), b));
    }
    team_leave(team_of(t, TEAM), 0u, acc);
    workgroupBarrier();
    if (t.lid < 32u) {
        var s = team_total(t.lid, 0u);
        let c = row0 + t.lid;
#if SHARED
        s += 1.0 / (1.0 + exp(-gate[row])) * shared_y[row * params.shared_stride + params.shared_offset + c];
#endif
        let o = row * params.y_stride + params.y_offset + c;
#if CHAIN_Y_IN
        s += chain_take_y(CHAIN_Y_IN_AT + 2u * o, chain_ask_y(CHAIN_Y_IN_AT + 2u * o));
#else
        s += y[o];
#endif
        y[o] = s;
#if NEXT
        next_values[t.lid] = s;
#endif
    }
#if NEXT
    let on = place_of(t) < 8u;
    next_leave(t, on, params.groups / params.row_groups, row, params.row_groups, row0, next_weights(t, on, row0));
#endif
}
