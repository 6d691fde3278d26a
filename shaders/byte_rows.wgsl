// Rows of f32 as signed bytes. One thread four numbers; cols is a multiple of 32.
override WG: u32 = 64u;
struct Params { rows: u32, cols4: u32, x_stride4: u32, x_offset4: u32 }
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
override BYTE_THREADS: u32 = WG;
#import byte_rows

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let row = i / params.cols4;
    let c = i % params.cols4;
    let on = row < params.rows;
    var v = vec4<f32>(0.0);
    if (on) { v = x[row * params.x_stride4 + params.x_offset4 + c]; }
    byte_store(t, on, row, params.cols4 / 8u, c, v);
}
