// y[r, c] = act(x[r, gate_offset + c]) * x[r, up_offset + c] (GATED), or act(x[r, c]) without a gate. One thread an element.
// GELU: the tanh form; else SiLU. CLAMPED (gated): min(x, limit) * sigmoid(alpha * min(x, limit)) * (clamp(up, -limit, limit) + 1).
// BYTES: y is written as rows of signed bytes as well; a thread makes four columns, and cols is a multiple of 32.
#import thread
#import activation
override WG: u32 = 64u;
struct Params { rows: u32, cols: u32, x_stride: u32, gate_offset: u32, up_offset: u32, y_stride: u32, alpha: f32, limit: f32 }
@group(0) @binding(auto) var<storage, read> x: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BYTES
override BYTE_THREADS: u32 = WG;
#import byte_rows
#endif

fn activated(row: u32, c: u32) -> f32 {
    let g = x[row * params.x_stride + params.gate_offset + c];
#if CLAMPED
    let low = min(g, params.limit);
    let up = clamp(x[row * params.x_stride + params.up_offset + c], -params.limit, params.limit);
    let v = low / (1.0 + exp(-params.alpha * low)) * (up + 1.0);
#else
#if GELU
    var v = gelu_tanh(g);
#else
    var v = silu(g);
#endif
#if GATED
    v *= x[row * params.x_stride + params.up_offset + c];
#endif
#endif
    y[row * params.y_stride + c] = v;
    return v;
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
#if BYTES
    let fours = params.cols / 4u;
    let row = i / fours;
    let c = i % fours * 4u;
    let on = row < params.rows;
    var v = vec4<f32>(0.0);
    if (on) { v = vec4<f32>(activated(row, c), activated(row, c + 1u), activated(row, c + 2u), activated(row, c + 3u)); }
    byte_store(t, on, row, params.cols / 32u, c / 4u, v);
#else
    let row = i / params.cols;
    if (row >= params.rows) { return; }
    let v = activated(row, i % params.cols);
#endif
}
