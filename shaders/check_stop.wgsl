// Ends a decode step with the tokens that were picked.
#import thread

struct Params {
    rows: u32,
    out_offset: u32,
}

override WG: u32 = 256u;

@group(0) @binding(auto) var<storage, read> picked: array<u32>;
#import step_end

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t) * WG + t.lid;
    if row >= params.rows {
        return;
    }
    end_step(row, begin_ending(row), picked[row]);
}
