// The experts of each row: ids[r, j] and weights[r, j] for j = 0..n_used, as lib/route.wgsl has it. One workgroup a row.
override WG: u32 = 64u;
#import route
struct Params { rows: u32, n_expert: u32, n_used: u32, stride: u32, offset: u32, scale: f32 }
@group(0) @binding(auto) var<storage, read> logits: array<u32>; // f32 bits
@group(0) @binding(auto) var<storage, read_write> ids: array<u32>;
@group(0) @binding(auto) var<storage, read_write> weights: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if (row >= params.rows) { return; }
    let base = params.offset + row * params.stride;
    for (var e = t.lid; e < params.n_expert; e += WG) { route_take(e, logits[base + e]); }
    route(t, params.n_expert, params.n_used, params.scale);
    if (t.lid < params.n_used) {
        ids[row * params.n_used + t.lid] = route_ids[t.lid];
        weights[row * params.n_used + t.lid] = route_weights[t.lid];
    }
}
