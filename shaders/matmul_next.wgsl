// y[t, y_offset + r] += sum_k x[t, k] * W[r, k] (+ bias[r]): the last product of a block, which leaves y ready for the next one: as rows of
// signed bytes of y * next_w, and for each 32 columns their sum of squares, from which who reads the bytes has the root mean square.
// BYTES: see lib/team.wgsl. A workgroup makes a block of 32 columns; columns of the whole of y are a multiple of 32, out_blocks of them.
override WG: u32 = 64u;
override TEAM: u32 = 2u;
override NT: u32 = 1u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32, k_blocks: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32, out_column: u32, out_blocks: u32,
}
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
@group(0) @binding(auto) var<storage, read> next_w: array<f32>;
@group(0) @binding(auto) var<storage, read_write> block_sums: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#import team
// Eight for each row of x.
const BYTE_THREADS: u32 = 32u;
#import byte_rows
var<workgroup> block_values: array<f32, 128>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    // Neighbouring workgroups share rows of weights.
    let t_groups = params.groups / params.row_groups;
    let row0 = (g / t_groups) * 32u;
    let t0 = (g % t_groups) * NT;
    team_products(t, vec2<u32>(row0 + t.lid / TEAM), t0, params.t_rows - 1u);
    if (t.lid < 32u * NT) {
        let team = t.lid % 32u;
        let c = t.lid / 32u;
        var s = team_sum(team, 0u, c);
        if (t0 + c < params.t_rows) {
#if BIAS
            s += bias[row0 + team];
#endif
            let o = (t0 + c) * params.y_stride + params.y_offset + row0 + team;
            s += y[o];
            y[o] = s;
        }
        block_values[t.lid] = s;
    }
    workgroupBarrier();
    let column = params.out_column + row0;
    let c = t.lid / 8u;
    let on = c < NT && t0 + c < params.t_rows;
    var v = vec4<f32>(0.0);
    if (on) {
        let j = t.lid % 8u * 4u;
        let i = c * 32u + j;
        v = vec4<f32>(block_values[i], block_values[i + 1u], block_values[i + 2u], block_values[i + 3u]);
        let k = column + j;
        v *= vec4<f32>(next_w[k], next_w[k + 1u], next_w[k + 2u], next_w[k + 3u]);
        if (j == 0u) {
            var squares = 0.0;
            for (var e = 0u; e < 32u; e++) { squares += block_values[c * 32u + e] * block_values[c * 32u + e]; }
            block_sums[(t0 + c) * params.out_blocks + column / 32u] = squares;
        }
    }
    byte_store(t, on, t0 + c, params.out_blocks, column / 4u + t.lid % 8u, v);
}
