// The tiles of grouped products and their grids. tiles[1 + i] = (expert, first position in order, entries) of tile i, by
// position; tiles[0] = (tiles, tiles in one plane of the grid). grids: (x, y, z) of the indirect dispatch for two numbers of workgroups
// in x (one for each tile of weight rows). One workgroup.
override WG: u32 = 256u;
#import scan
const MAX_EXPERTS: u32 = 1024u;
const GRID_LIMIT: u32 = 65535u;
struct Params { n_expert: u32, tile: u32, width0: u32, width1: u32 }
@group(0) @binding(auto) var<storage, read> groups: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read_write> tiles: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read_write> grids: array<u32>;

// First tile of each expert.
var<workgroup> starts: array<u32, MAX_EXPERTS>;

fn tiles_of(expert: u32) -> u32 { return (groups[expert].y + params.tile - 1u) / params.tile; }

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let share = (params.n_expert + WG - 1u) / WG;
    let first = min(t.lid * share, params.n_expert);
    let end = min(first + share, params.n_expert);
    var mine = 0u;
    for (var e = first; e < end; e++) { mine += tiles_of(e); }
    let scan = workgroup_scan(vec2<u32>(mine, 0u), t);
    var at = scan.before.x;
    for (var e = first; e < end; e++) {
        starts[e] = at;
        at += tiles_of(e);
    }
    workgroupBarrier();
    let total = scan.total.x;
    for (var i = t.lid; i < total; i += WG) {
        // The last expert that starts at or before tile i: ones without entries start where the next does.
        var low = 0u;
        var high = params.n_expert;
        while (high - low > 1u) {
            let middle = (low + high) / 2u;
            if (starts[middle] <= i) { low = middle; } else { high = middle; }
        }
        let group = groups[low];
        let done = (i - starts[low]) * params.tile;
        tiles[1u + i] = vec4<u32>(low, group.x + done, min(params.tile, group.y - done), 0u);
    }
    if (t.lid == 0u) {
        let planes = max((total + GRID_LIMIT - 1u) / GRID_LIMIT, 1u);
        let plane = (total + planes - 1u) / planes;
        tiles[0] = vec4<u32>(total, plane, 0u, 0u);
        grids[0] = params.width0; grids[1] = plane; grids[2] = planes;
        grids[3] = params.width1; grids[4] = plane; grids[5] = planes;
    }
}
