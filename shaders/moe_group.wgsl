// The entries of each expert. Entry e = row * n_used + place names one use of an expert; order lists the entries by expert
// and, for one expert, by rising e; groups[x] = (first position in order, count) of expert x.
// One workgroup an expert: it counts the entries of all experts before its own, so none waits for another and nothing must be zero before.
override WG: u32 = 256u;
#import scan
struct Params { entries: u32, n_expert: u32 }
@group(0) @binding(auto) var<storage, read> ids: array<u32>;
@group(0) @binding(auto) var<storage, read_write> groups: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read_write> order: array<u32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let expert = group_index(t);
    if (expert >= params.n_expert) { return; }
    let share = (params.entries + WG - 1u) / WG;
    let first = min(t.lid * share, params.entries);
    let end = min(first + share, params.entries);
    // Entries of earlier experts, and of this one.
    var mine = vec2<u32>(0u);
    for (var i = first; i < end; i++) {
        let id = ids[i];
        mine += vec2<u32>(select(0u, 1u, id < expert), select(0u, 1u, id == expert));
    }
    let scan = workgroup_scan(mine, t);
    if (t.lid == 0u) { groups[expert] = vec2<u32>(scan.total.x, scan.total.y); }
    var at = scan.total.x + scan.before.y;
    for (var i = first; i < end; i++) {
        if (ids[i] == expert) {
            order[at] = i;
            at += 1u;
        }
    }
}
