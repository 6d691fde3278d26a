// Recurrence of a matrix state along sequences: for each head, with state S [key_dim][head_dim] and decay a = exp(heads.x * d),
// d = softplus(step + heads.y),
//     S = a S + k u^T,    y = S^T q,
// where u = d * v and y gets heads.z * v besides (Mamba-2, Dao and Gu 2024: k and q are B and C, v is x); or
// DELTA: u = sigmoid(beta) * (v - a S^T k) (gated delta rule, Yang et al. 2024).
// x[r] holds q, k of n_key heads each and v of n_head heads; g[r] holds step (and beta) of n_head heads. TILED: a head takes q and k of key head
// (head % n_key), else of head / (n_head / n_key).
// One workgroup walks the rows of a sequence for WG / PARTS columns of one head's state. PARTS threads share a column and keep PER of its rows each
// in registers. ROWS rows of the sequence are read at a time, so that reading waits for memory once for all of them.
// Rows are sequences * steps; a slot's states stand at its places: [place][head][key_dim][head_dim].
override WG: u32 = 64u;
override PARTS: u32 = 4u;
override PER: u32 = 32u;
override ROWS: u32 = 8u;
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

// Of the rows read at a time: k and q, zeros behind them; v of this group's columns; decay, and d or the strength of the delta rule.
var<workgroup> keys: array<vec2<f32>, ROWS * PARTS * PER>;
var<workgroup> values: array<f32, ROWS * (WG / PARTS)>;
var<workgroup> drives: array<vec2<f32>, ROWS>;
// Sums of each thread's part of a column, for even and odd rows: a row is not written before all have read the one before the last.
var<workgroup> partial: array<vec3<f32>, 2u * WG>;

// log(1 + exp(v)) without overflow, and without losing what is small.
fn softplus(v: f32) -> f32 {
    let e = exp(-abs(v));
    return max(v, 0.0) + select(log(1.0 + e), e - 0.5 * e * e, e < 1e-3);
}

// The sum over the threads of a column. All threads come here, with the row's number.
fn column_sum(v: vec3<f32>, id: u32, row: u32) -> vec3<f32> {
#if SUBGROUPS
    // No subgroup is smaller than 4, and the threads of a column are neighbours in one.
    if (PARTS <= 4u) {
        var s = v;
        for (var i = 1u; i < PARTS; i *= 2u) { s += subgroupShuffleXor(s, i); }
        return s;
    }
#endif
    let half = (row & 1u) * WG;
    partial[half + id] = v;
    workgroupBarrier();
    var s = vec3<f32>(0.0);
    let first = half + id - id % PARTS;
    for (var i = 0u; i < PARTS; i++) { s += partial[first + i]; }
    return s;
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let group = group_index(t);
    if (group >= params.groups) { return; }
#if SUBGROUPS
    let id = t.sg * (WG / t.n_sg) + t.lane;
#else
    let id = t.lid;
#endif
    let columns = WG / PARTS;
    let first_column = (group % params.column_groups) * columns;
    let column = first_column + id / PARTS;
    let part = id % PARTS;
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
    let q0 = params.q_at + key * params.key_dim;
    let k0 = params.k_at + key * params.key_dim;
    let v0 = params.v_at + head * params.head_dim;
    var s: array<f32, MOST>;
    for (var i = 0u; i < PER; i++) {
        let r = i * PARTS + part;
        s[i] = 0.0;
        if (inside && r < params.key_dim && place.before != NO_PLACE) {
            s[i] = memory[((place.before * params.n_head + head) * params.key_dim + r) * params.head_dim + column];
        }
    }
    for (var begin = 0u; begin < params.steps; begin += ROWS) {
        let count = min(ROWS, params.steps - begin);
        workgroupBarrier();
        for (var i = t.lid; i < count * PARTS * PER; i += WG) {
            let x0 = (first + begin + i / (PARTS * PER)) * params.x_stride;
            let r = i % (PARTS * PER);
            var kq = vec2<f32>(0.0);
            if (r < params.key_dim) { kq = vec2<f32>(x[x0 + k0 + r], x[x0 + q0 + r]); }
            keys[i] = kq;
        }
        for (var i = t.lid; i < count * columns; i += WG) {
            let c = first_column + i % columns;
            var v = 0.0;
            if (c < params.head_dim) { v = x[(first + begin + i / columns) * params.x_stride + v0 + c]; }
            values[i] = v;
        }
        if (t.lid < count) {
            let g0 = (first + begin + t.lid) * params.g_stride + head;
            let d = softplus(g[g0 + params.step_at] + constants.y);
#if DELTA
            drives[t.lid] = vec2<f32>(exp(constants.x * d), 1.0 / (1.0 + exp(-g[g0 + params.beta_at])));
#else
            drives[t.lid] = vec2<f32>(exp(constants.x * d), d);
#endif
        }
        workgroupBarrier();
        for (var step = 0u; step < count; step++) {
            let drive = drives[step];
            let v = values[step * columns + id / PARTS];
            let k = step * PARTS * PER + part;
            // S.k, S.q, k.q
            var sums = vec3<f32>(0.0);
            for (var i = 0u; i < PER; i++) {
                let kq = keys[k + i * PARTS];
                sums += vec3<f32>(s[i], s[i], kq.x) * vec3<f32>(kq.x, kq.y, kq.y);
            }
            sums = column_sum(sums, id, step);
#if DELTA
            let u = drive.y * (v - drive.x * sums.x);
            let out = drive.x * sums.y + u * sums.z;
#else
            let u = drive.y * v;
            let out = drive.x * sums.y + u * sums.z + constants.z * v;
#endif
            for (var i = 0u; i < PER; i++) { s[i] = drive.x * s[i] + keys[k + i * PARTS].x * u; }
            if (inside && part == 0u) {
                y[(first + begin + step) * params.y_stride + head * params.head_dim + column] = out;
            }
        }
    }
    if (place.after == NO_PLACE || !inside) { return; }
    for (var i = 0u; i < PER; i++) {
        let r = i * PARTS + part;
        if (r < params.key_dim) {
            memory[((place.after * params.n_head + head) * params.key_dim + r) * params.head_dim + column] = s[i];
        }
    }
}
