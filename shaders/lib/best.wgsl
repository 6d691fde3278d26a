// The best of the entries (key, id) that the threads of a workgroup hold, for its first thread; others get something else.
// The caller declares WG.
#import order
var<workgroup> best_of: array<vec2<u32>, WG>;

fn group_best(t: Thread, mine: vec2<u32>) -> vec2<u32> {
    var best = mine;
#if SUBGROUPS
    let key = subgroupMax(best.x);
    let lowest = subgroupMin(select(0xffffffffu, best.y, best.x == key));
    if t.lane == 0u {
        best_of[t.sg] = vec2<u32>(key, lowest);
    }
    workgroupBarrier();
    if t.lid == 0u {
        best = best_of[0];
        for (var i = 1u; i < t.n_sg; i++) {
            if better(best_of[i], best) {
                best = best_of[i];
            }
        }
    }
#else
    best_of[t.lid] = best;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if t.lid < half && better(best_of[t.lid + half], best) {
            best = best_of[t.lid + half];
            best_of[t.lid] = best;
        }
        workgroupBarrier();
    }
#endif
    return best;
}
