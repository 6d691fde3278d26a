// Sums and maxima over a workgroup of WG threads (a power of two). Every thread gets the result.
// With subgroups: one operation a subgroup, then one over the subgroups' results, for any subgroup size.
// The caller declares `override WG: u32`.
#import thread
var<workgroup> reduce_scratch: array<f32, WG>;

#if SUBGROUPS
fn workgroup_sum(v: f32, t: Thread) -> f32 {
    let s = subgroupAdd(v);
    workgroupBarrier();
    if (t.lane == 0u) { reduce_scratch[t.sg] = s; }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < t.n_sg; i++) { total += reduce_scratch[i]; }
    return total;
}

fn workgroup_max(v: f32, t: Thread) -> f32 {
    let s = subgroupMax(v);
    workgroupBarrier();
    if (t.lane == 0u) { reduce_scratch[t.sg] = s; }
    workgroupBarrier();
    var best = reduce_scratch[0];
    for (var i = 1u; i < t.n_sg; i++) { best = max(best, reduce_scratch[i]); }
    return best;
}
#else
fn workgroup_sum(v: f32, t: Thread) -> f32 {
    workgroupBarrier();
    reduce_scratch[t.lid] = v;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (t.lid < n) { reduce_scratch[t.lid] += reduce_scratch[t.lid + n]; }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}

fn workgroup_max(v: f32, t: Thread) -> f32 {
    workgroupBarrier();
    reduce_scratch[t.lid] = v;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (t.lid < n) { reduce_scratch[t.lid] = max(reduce_scratch[t.lid], reduce_scratch[t.lid + n]); }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}
#endif
