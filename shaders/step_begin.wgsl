// Begins a decode step by itself (lib/step_begin.wgsl), where the lookup of its tokens does not.
#import thread
struct Params { rows: u32, history_cap: u32, words: u32 }
override WG: u32 = 256u;
#import step_begin

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    clear_chains(i, max(params.words, 1u));
    if i < params.rows { begin_row(i); }
}
