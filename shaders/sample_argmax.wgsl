// The best token of each chunk of a row: (key of the largest logit, lowest id that has it).
// One workgroup a chunk; sample_pick or sample_greedy reduces the chunks.
#import thread

struct Params {
    rows: u32,
    vocab: u32,
    chunks: u32, // of a row
    chunk: u32,  // tokens in each, but the last
}

override WG: u32 = 256u;

@group(0) @binding(0) var<storage, read> logits: array<u32>; // f32 bits [rows, vocab]
@group(0) @binding(1) var<storage, read_write> partial: array<vec2<u32>>; // [rows, chunks]

#import best

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
    best = group_best(t, best);
    if t.lid == 0u {
        partial[group] = best;
    }
}
