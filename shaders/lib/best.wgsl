// The best of the entries (key, id) that the threads of a workgroup hold, for its first thread; others may get something else.
// The caller declares WG.
#import order
#if SUBGROUPS
// No subgroup has less than four threads.
var<workgroup> best_of: array<vec2<u32>, (WG + 3u) / 4u>;
fn subgroup_best(mine: vec2<u32>) -> vec2<u32> {
    let key = subgroupMax(mine.x);
    return vec2<u32>(key, subgroupMin(select(0xffffffffu, mine.y, mine.x == key)));
}
#else
var<workgroup> best_of: array<vec2<u32>, WG>;
#endif

fn group_best(t: Thread, mine: vec2<u32>) -> vec2<u32> {
    var best = mine;
#if SUBGROUPS
    best = subgroup_best(best);
    if t.lane == 0u {
        best_of[t.sg] = best;
    }
    workgroupBarrier();
    // Every subgroup looks at all of them.
    best = best_of[t.lane % t.n_sg];
    for (var i = t.lane + t.sg_size; i < t.n_sg; i += t.sg_size) {
        if better(best_of[i], best) {
            best = best_of[i];
        }
    }
    best = subgroup_best(best);
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
