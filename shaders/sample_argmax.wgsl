// The best token of each chunk of a row: (key of the largest logit, lowest id that has it).
// One workgroup a chunk; sample_pick reduces the chunks.
#import thread
#import order

struct Params {
    rows: u32,
    vocab: u32,
    chunks: u32, // of a row
    chunk: u32,  // tokens in each, but the last
}

override WG: u32 = 256u;

@group(0) @binding(0) var<storage, read> logits: array<u32>; // f32 bits [rows, vocab]
@group(0) @binding(1) var<storage, read_write> partial: array<vec2<u32>>; // [rows, chunks]

var<workgroup> best_of: array<vec2<u32>, WG>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let group = group_index(t);
    if group >= params.rows * params.chunks {
        return;
    }
    let row = group / params.chunks;
    let first = (group % params.chunks) * params.chunk;
    let end = min(first + params.chunk, params.vocab);
    var best = vec2<u32>(0u, 0xffffffffu);
    for (var id = first + t.lid; id < end; id += WG) {
        let entry = vec2<u32>(order_key(logits[row * params.vocab + id]), id);
        if better(entry, best) {
            best = entry;
        }
    }
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
        partial[group] = best;
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
    if t.lid == 0u {
        partial[group] = best;
    }
#endif
}
