// The experts of a row, by falling logit, the lower id first among equals.
// weight = scale * softmax over all experts (over the chosen ones: RENORMALIZE). NaN counts as -inf; a row without a logit above -inf has weights 0.
// An expert's place is the number of experts before it: whatever the logits, the places are distinct, so n_used different ids come out. As many threads
// as there are count for each. The caller declares WG.
#import reduce
#import order
const MAX_EXPERTS: u32 = 1024u;
const MAX_EXPERTS_USED: u32 = 64u;
var<workgroup> route_keys: array<u32, MAX_EXPERTS>;
var<workgroup> route_places: array<atomic<u32>, MAX_EXPERTS>;
var<workgroup> route_ids: array<u32, MAX_EXPERTS_USED>;
var<workgroup> route_weights: array<f32, MAX_EXPERTS_USED>;

// The logit as a finite number.
fn route_finite(key: u32) -> f32 { return key_value(clamp(key, KEY_NEG_INF + 1u, KEY_POS_INF - 1u)); }

// Takes the logit of expert e, f32 bits, in the thread that has it: e is the thread's number modulo WG.
fn route_take(e: u32, logit: u32) {
    route_keys[e] = order_key(logit);
    atomicStore(&route_places[e], 0u);
}

// Leaves the first n_used in route_ids, their weights in route_weights.
fn route(t: Thread, n_expert: u32, n_used: u32, scale: f32) {
    var best = route_finite(0u);
    for (var e = t.lid; e < n_expert; e += WG) { best = max(best, route_finite(route_keys[e])); }
    // Its barriers also make the keys visible.
    let top = workgroup_max(best, t);
    let each = max(WG / n_expert, 1u);
    for (var i = t.lid; i < n_expert * each; i += WG) {
        let e = i % n_expert;
        let own = vec2<u32>(route_keys[e], e);
        var before = 0u;
        for (var o = i / n_expert; o < n_expert; o += each) { before += select(0u, 1u, better(vec2<u32>(route_keys[o], o), own)); }
        atomicAdd(&route_places[e], before);
    }
    workgroupBarrier();
    var mass = 0.0;
    for (var e = t.lid; e < n_expert; e += WG) {
        let key = route_keys[e];
        let place = atomicLoad(&route_places[e]);
        let m = select(exp(route_finite(key) - top), 0.0, key <= KEY_NEG_INF);
        if (place < n_used) {
            route_ids[place] = e;
            route_weights[place] = m;
        }
#if RENORMALIZE
        if (place < n_used) { mass += m; }
#else
        mass += m;
#endif
    }
    let total = workgroup_sum(mass, t);
    if (t.lid < n_used) { route_weights[t.lid] = select(scale * (route_weights[t.lid] / total), 0.0, total == 0.0); }
    workgroupBarrier();
}
