// The experts of each row: ids[r, j] and weights[r, j] for j = 0..n_used, by falling logit, the lower id first among equals.
// weight = scale * softmax over all experts (over the chosen ones: RENORMALIZE). NaN counts as -inf; a row without a
// logit above -inf has weights 0. One workgroup a row.
// An expert's place is the number of experts before it, which each thread counts for its own ones: whatever the logits, the
// places are distinct, so n_used different ids come out.
override WG: u32 = 64u;
#import reduce
#import order
const MAX_EXPERTS: u32 = 1024u;
const MAX_EXPERTS_USED: u32 = 64u;
struct Params { rows: u32, n_expert: u32, n_used: u32, stride: u32, offset: u32, scale: f32 }
@group(0) @binding(auto) var<storage, read> logits: array<u32>; // f32 bits
@group(0) @binding(auto) var<storage, read_write> ids: array<u32>;
@group(0) @binding(auto) var<storage, read_write> weights: array<f32>;

var<workgroup> keys: array<u32, MAX_EXPERTS>;
var<workgroup> chosen: array<f32, MAX_EXPERTS_USED>;

// The logit as a finite number.
fn finite(key: u32) -> f32 { return key_value(clamp(key, KEY_NEG_INF + 1u, KEY_POS_INF - 1u)); }

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if (row >= params.rows) { return; }
    let base = params.offset + row * params.stride;
    var best = finite(0u);
    for (var e = t.lid; e < params.n_expert; e += WG) {
        let key = order_key(logits[base + e]);
        keys[e] = key;
        best = max(best, finite(key));
    }
    // Its barriers also make the keys visible.
    let top = workgroup_max(best, t);
    var mass = 0.0;
    for (var e = t.lid; e < params.n_expert; e += WG) {
        let key = keys[e];
        var place = 0u;
        for (var i = 0u; i < params.n_expert; i++) {
            place += select(0u, 1u, better(vec2<u32>(keys[i], i), vec2<u32>(key, e)));
        }
        let m = select(exp(finite(key) - top), 0.0, key <= KEY_NEG_INF);
        if (place < params.n_used) {
            chosen[place] = m;
            ids[row * params.n_used + place] = e;
        }
#if RENORMALIZE
        if (place < params.n_used) { mass += m; }
#else
        mass += m;
#endif
    }
    let total = workgroup_sum(mass, t);
    if (t.lid < params.n_used) {
        weights[row * params.n_used + t.lid] = select(params.scale * (chosen[t.lid] / total), 0.0, total == 0.0);
    }
}
