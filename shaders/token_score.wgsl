// scores[first + e] = ln p(targets[first + e]) under row e * row_step of the logits, from what log_sum left of the row's chunks:
// logit - largest - ln(sum of e^(logit - largest)); the lowest number where the logit is -inf or NaN. One workgroup an entry.
override WG: u32 = 64u;
#import reduce
struct Params { entries: u32, first: u32, row_step: u32, vocab: u32, chunks: u32 }
@group(0) @binding(auto) var<storage, read> logits: array<f32>;
@group(0) @binding(auto) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read> targets: array<u32>;
@group(0) @binding(auto) var<storage, read_write> scores: array<f32>;
#import finite

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let e = group_index(t);
    if (e >= params.entries) { return; }
    let row = e * params.row_step;
    let base = row * params.chunks;
    var best = LOWEST;
    for (var i = t.lid; i < params.chunks; i += WG) { best = max(best, partial[base + i].x); }
    let top = workgroup_max(best, t);
    var s = 0.0;
    for (var i = t.lid; i < params.chunks; i += WG) {
        let part = partial[base + i];
        s += exp(part.x - top) * part.y;
    }
    let total = workgroup_sum(s, t);
    if (t.lid == 0u) {
        let v = finite(logits[row * params.vocab + min(targets[params.first + e], params.vocab - 1u)]);
        scores[params.first + e] = select(v - top - log(total), LOWEST, v <= LOWEST);
    }
}
