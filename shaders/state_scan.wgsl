// Recurrence of a matrix state along sequences: for each head, with state S [key_dim][head_dim] and decay a = exp(heads.x * d),
// d = softplus(step + heads.y),
//     S = a S + k u^T,    y = S^T q,
// where u = d * v and y gets heads.z * v besides (Mamba-2, Dao and Gu 2024: k and q are B and C, v is x); or
// DELTA: u = sigmoid(beta) * (v - a S^T k) (gated delta rule, Yang et al. 2024).
// x[r] holds q, k of n_key heads each and v of n_head heads; g[r] holds step (and beta) of n_head heads. TILED: a head takes q and k of key head
// (head % n_key), else of head / (n_head / n_key).
// One workgroup walks the rows of a sequence for WG / PARTS columns of one head's state. PARTS threads share a column and keep PER of its rows each.
// Rows are sequences * steps; a slot's states stand at its places: [place][head][key_dim][head_dim].
override WG: u32 = 64u;
override PARTS: u32 = 4u;
override PER: u32 = 32u;
// PER at most; the host chooses PARTS by it.
const MOST: u32 = 32u;
#import thread
#import state
#import places
struct Params {
    groups: u32, steps: u32, n_head: u32, n_key: u32, key_dim: u32, head_dim: u32, column_groups: u32,
    x_stride: u32, q_at: u32, k_at: u32, v_at: u32, g_stride: u32, step_at: u32, beta_at: u32, y_stride: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<f32>;
@group(0) @binding(auto) var<storage, read> g: array<f32>;
@group(0) @binding(auto) var<storage, read> heads: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> places: array<Places>;
@group(0) @binding(auto) var<storage, read_write> memory: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;

// k and q of the row, zeros behind them.
var<workgroup> keys: array<vec2<f32>, PARTS * PER>;
// Of each thread's rows: S.k, S.q, k.q.
var<workgroup> partial: array<vec4<f32>, WG>;

// log(1 + exp(v)) without overflow, and without losing what is small.
fn softplus(v: f32) -> f32 {
    let e = exp(-abs(v));
    return max(v, 0.0) + select(log(1.0 + e), e - 0.5 * e * e, e < 1e-3);
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let group = group_index(t);
    if (group >= params.groups) { return; }
    let columns = WG / PARTS;
    let column = (group % params.column_groups) * columns + t.lid % columns;
    let part = t.lid / columns;
    let head = (group / params.column_groups) % params.n_head;
    let first = group / params.column_groups / params.n_head * params.steps;
#if TILED
    let key = head % params.n_key;
#else
    let key = head / (params.n_head / params.n_key);
#endif
    let place = places[rows[first].slot];
    let inside = column < params.head_dim;
    let constants = heads[head];
    var s: array<f32, MOST>;
    for (var i = 0u; i < PER; i++) {
        let r = i * PARTS + part;
        s[i] = 0.0;
        if (inside && r < params.key_dim && place.before != NO_PLACE) {
            s[i] = memory[((place.before * params.n_head + head) * params.key_dim + r) * params.head_dim + column];
        }
    }
    for (var step = 0u; step < params.steps; step++) {
        let row = first + step;
        let x0 = row * params.x_stride;
        workgroupBarrier();
        for (var i = t.lid; i < PARTS * PER; i += WG) {
            var kq = vec2<f32>(0.0);
            if (i < params.key_dim) {
                kq = vec2<f32>(x[x0 + params.k_at + key * params.key_dim + i], x[x0 + params.q_at + key * params.key_dim + i]);
            }
            keys[i] = kq;
        }
        let d = softplus(g[row * params.g_stride + params.step_at + head] + constants.y);
        let decay = exp(constants.x * d);
        var v = 0.0;
        if (inside) { v = x[x0 + params.v_at + head * params.head_dim + column]; }
        workgroupBarrier();
        var sums = vec4<f32>(0.0);
        for (var i = 0u; i < PER; i++) {
            let kq = keys[i * PARTS + part];
            sums += vec4<f32>(s[i] * kq.x, s[i] * kq.y, kq.x * kq.y, 0.0);
        }
        partial[t.lid] = sums;
        workgroupBarrier();
        sums = vec4<f32>(0.0);
        for (var i = 0u; i < PARTS; i++) { sums += partial[i * columns + t.lid % columns]; }
#if DELTA
        let u = (v - decay * sums.x) / (1.0 + exp(-g[row * params.g_stride + params.beta_at + head]));
        let out = decay * sums.y + u * sums.z;
#else
        let u = d * v;
        let out = decay * sums.y + u * sums.z + constants.z * v;
#endif
        for (var i = 0u; i < PER; i++) { s[i] = decay * s[i] + keys[i * PARTS + part].x * u; }
        if (inside && part == 0u) { y[row * params.y_stride + head * params.head_dim + column] = out; }
    }
    if (place.after == NO_PLACE || !inside) { return; }
    for (var i = 0u; i < PER; i++) {
        let r = i * PARTS + part;
        if (r < params.key_dim) {
            memory[((place.after * params.n_head + head) * params.key_dim + r) * params.head_dim + column] = s[i];
        }
    }
}
