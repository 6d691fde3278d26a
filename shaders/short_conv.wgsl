// Causal depthwise convolution along sequences, with the columns before the first row taken from a state, and the last ones left in one:
// y[r, c] = act(sum_j w[c, j] * in[r - kernel + 1 + j, c] + bias[c]), in[r, c] = x[r, x_at + c]; act is SILU or nothing.
// GATED: in[r, c] = x[r, gate_at + c] * x[r, x_at + c], and y[r, c] gets the factor x[r, out_at + c].
// A state is [kernel - 1][channels]. Rows are sequences * steps, those of a sequence side by side; each slot has its states' places in `places`:
// which one to read and which one to write. One thread makes one element; the thread of a sequence's last row writes the channel's state.
#import thread
#import state
#import places
#import activation
override WG: u32 = 64u;
struct Params {
    sequences: u32, steps: u32, channels: u32, kernel: u32, x_stride: u32, x_at: u32, gate_at: u32, out_at: u32, y_stride: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<f32>;
@group(0) @binding(auto) var<storage, read> w: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> places: array<Places>;
@group(0) @binding(auto) var<storage, read_write> memory: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;

// Input of channel c at time i, where time kernel - 1 is the sequence's first row; what is before stands in the state.
fn input(first_row: u32, before: u32, i: u32, c: u32) -> f32 {
    let past = params.kernel - 1u;
    if (i < past) {
        if (before == NO_PLACE) { return 0.0; }
        return memory[(before * past + i) * params.channels + c];
    }
    let at = (first_row + i - past) * params.x_stride + c;
#if GATED
    return x[at + params.gate_at] * x[at + params.x_at];
#else
    return x[at + params.x_at];
#endif
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let row = i / params.channels;
    if (row >= params.sequences * params.steps) { return; }
    let c = i % params.channels;
    let step = row % params.steps;
    let first = row - step;
    let place = places[rows[first].slot];
    var v = 0.0;
#if BIAS
    v = bias[c];
#endif
    for (var j = 0u; j < params.kernel; j++) { v += w[c * params.kernel + j] * input(first, place.before, step + j, c); }
#if SILU
    v = silu(v);
#endif
#if GATED
    v *= x[row * params.x_stride + params.out_at + c];
#endif
    y[row * params.y_stride + c] = v;
    if (step + 1u < params.steps || place.after == NO_PLACE) { return; }
    // The state may be renewed where it stands, but only by sequences of one row: then a column is read before it is written.
    let past = params.kernel - 1u;
    for (var j = 0u; j < past; j++) {
        memory[(place.after * past + j) * params.channels + c] = input(first, place.before, params.steps + j, c);
    }
}
