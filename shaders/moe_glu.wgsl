// Bytes of act(x[t] . W[e][r]) * (x[t] . W[e][n + r]) for every entry, a use of expert e by a row t: gate and up of few rows' experts, with the
// activation. GELU: the tanh form; else SiLU. NORM: see lib/team.wgsl. A workgroup makes a block of 32 results of one entry, whose row of bytes
// has its number. CHAIN_IN: see lib/team.wgsl; CHAIN_OUT: they go to a later stage of a chain; ROUTE_IN: ids come from an earlier one's logits.
#set PAIR
#set BYTES
override WG: u32 = 64u;
override TEAM: u32 = 2u;
override K_BLOCKS: u32 = 1u;
override REDUCE: u32 = 1u;
override BYTE_TOGETHER: u32 = REDUCE;
#set NEIGHBOURS
const NT: u32 = 1u;
const SPREAD: u32 = 1u;
const SPLIT: u32 = 1u;
struct Params { groups: u32, row_groups: u32, n: u32, k4: u32, share: u32, eps: f32 }
#if ROUTE_IN
#import route_in
#else
@group(0) @binding(auto) var<storage, read> ids: array<u32>;
#endif
#import team
#import activation
const BYTE_THREADS: u32 = 8u;
#import byte_rows
var<workgroup> block_values: array<f32, 32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let entry = g / params.row_groups;
    let row0 = (g % params.row_groups) * 32u;
    let row = entry / params.share;
#if ROUTE_IN
    chain_receive(t, row, 1u, K_BLOCKS);
    route_receive(t, row);
    let id = route_ids[entry % params.share];
#else
    let id = ids[entry];
#endif
    let gate = id * 2u * params.n + row0 + team_of(t, TEAM).x;
#if ROUTE_IN
    // x is there before it is known which weights it is for.
    team_products_of(t, vec4<u32>(gate, gate + params.n, 0u, 0u), row, row, 0u);
#else
    team_products(t, vec4<u32>(gate, gate + params.n, 0u, 0u), row, row);
#endif
    if (t.lid < 32u) {
        let scale = team_scale(t.lid, 0u);
        let a = team_sum(t.lid, 0u, 0u) * scale;
        let b = team_sum(t.lid, 1u, 0u) * scale;
#if GELU
        block_values[t.lid] = gelu_tanh(a) * b;
#else
        block_values[t.lid] = silu(a) * b;
#endif
    }
    workgroupBarrier();
    let place = place_of(t);
    let i = place % 8u * 4u;
    let v = vec4<f32>(block_values[i], block_values[i + 1u], block_values[i + 2u], block_values[i + 3u]);
    byte_store(t, place < 8u, entry, params.n / 32u, row0 / 4u + place % 8u, v);
}
