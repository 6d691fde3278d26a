// Of each chunk of each row of logits: the largest, and the sum of e^(logit - largest). One workgroup a chunk; token_score puts a row's chunks
// together. NaN counts as -inf, infinities as the largest number.
override WG: u32 = 256u;
#import reduce
struct Params { rows: u32, vocab: u32, chunks: u32, chunk: u32 }
@group(0) @binding(auto) var<storage, read> logits: array<f32>;
@group(0) @binding(auto) var<storage, read_write> partial: array<vec2<f32>>;
#import finite

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let group = group_index(t);
    if (group >= params.rows * params.chunks) { return; }
    let base = group / params.chunks * params.vocab;
    let first = group % params.chunks * params.chunk;
    let end = min(first + params.chunk, params.vocab);
    var best = LOWEST;
    for (var i = first + t.lid; i < end; i += WG) { best = max(best, finite(logits[base + i])); }
    let top = workgroup_max(best, t);
    var s = 0.0;
    for (var i = first + t.lid; i < end; i += WG) {
        let v = finite(logits[base + i]);
        s += select(exp(v - top), 0.0, v <= LOWEST);
    }
    let total = workgroup_sum(s, t);
    if (t.lid == 0u) { partial[group] = vec2<f32>(top, total); }
}
