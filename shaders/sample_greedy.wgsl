// Ends a decode step whose tokens are the largest logits: sample_pick and check_stop in one, for rows that are not drawn. One workgroup a row
// reduces the chunks of sample_argmax. CHAIN_BEST_IN: it is the last stage of a chain, whose product leaves the best of what it makes.
#import thread

struct Params {
    rows: u32,
    chunks: u32, // of a row
    out_offset: u32,
}

override WG: u32 = 256u;

#if CHAIN_BEST_IN
#import chain_best
fn entries() -> u32 { return BESTS; }
fn entry_of(row: u32, i: u32) -> vec2<u32> { return best_receive(i); }
#else
@group(0) @binding(auto) var<storage, read> partial: array<vec2<u32>>; // [rows, chunks]
fn entries() -> u32 { return params.chunks; }
fn entry_of(row: u32, i: u32) -> vec2<u32> { return partial[row * params.chunks + i]; }
#endif
@group(0) @binding(auto) var<storage, read_write> picked: array<u32>;
#import best
#import step_end

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if row >= params.rows {
        return;
    }
    let ending = begin_ending(row);
    var best = vec2<u32>(0u, 0xffffffffu);
    for (var i = t.lid; i < entries(); i += WG) {
        let entry = entry_of(row, i);
        if better(entry, best) {
            best = entry;
        }
    }
    best = group_best(t, best);
    if t.lid == 0u {
        picked[row] = best.y;
        end_step(row, ending, best.y);
    }
}
