// Recurrence of a matrix state along sequences: for each head, with state S [key_dim][head_dim] and decay a = exp(heads.x * d),
// d = softplus(step + heads.y),
//     S = a S + k u^T,    y = S^T q,
// where u = d * v and y gets heads.z * v besides (Mamba-2, Dao and Gu 2024: k and q are B and C, v is x); or
// DELTA: u = sigmoid(beta) * (v - a S^T k) (gated delta rule, Yang et al. 2024).
// x[r] holds q, k of n_key heads each and v of n_head heads; g[r] holds step (and beta) of n_head heads. TILED: a head takes q and k of key head
// (head % n_key), else of head / (n_head / n_key).
// One workgroup walks the rows of a sequence for WG / PARTS columns of one head's state. PARTS threads share a column and keep four times PER of its
// rows each, in variables by name: an array that is indexed in a loop may not end up in registers. ROWS rows of the sequence are read at a time,
// so that reading waits for memory once for all of them.
// Rows are sequences * steps; a slot's states stand at its places: [place][head][key_dim][head_dim].
override WG: u32 = 64u;
override PARTS: u32 = 4u;
override PER: u32 = 8u; // at most 8
override ROWS: u32 = 8u;
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
var<workgroup> keys: array<vec4<f32>, ROWS * PARTS * PER>;
var<workgroup> queries: array<vec4<f32>, ROWS * PARTS * PER>;
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

// Four neighbouring numbers of x from `at` on, of which those from `row` on to key_dim count.
fn four(at: u32, row: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) { if (row + i < params.key_dim) { v[i] = x[at + row + i]; } }
    return v;
}

// Rows `row` to `row + 3` of the column that stands at `at` of the states.
fn load(at: u32, row: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) { if (row + i < params.key_dim) { v[i] = memory[at + (row + i) * params.head_dim]; } }
    return v;
}

fn store(at: u32, row: u32, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) { if (row + i < params.key_dim) { memory[at + (row + i) * params.head_dim] = v[i]; } }
}

// S.k, S.q, k.q of four rows of a column, at one place of the rows read.
fn products(s: vec4<f32>, at: u32) -> vec3<f32> {
    let k = keys[at];
    let q = queries[at];
    return vec3<f32>(dot(s, k), dot(s, q), dot(k, q));
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
    let state = params.n_head * params.key_dim * params.head_dim;
    let own = head * params.key_dim * params.head_dim + column;
    let row = 4u * part;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    if (inside && place.before != NO_PLACE) {
        let at = place.before * state + own;
        s0 = load(at, row);
        s1 = load(at, row + 4u * PARTS);
        s2 = load(at, row + 8u * PARTS);
        s3 = load(at, row + 12u * PARTS);
        s4 = load(at, row + 16u * PARTS);
        s5 = load(at, row + 20u * PARTS);
        s6 = load(at, row + 24u * PARTS);
        s7 = load(at, row + 28u * PARTS);
    }
    for (var begin = 0u; begin < params.steps; begin += ROWS) {
        let count = min(ROWS, params.steps - begin);
        workgroupBarrier();
        for (var i = t.lid; i < count * PARTS * PER; i += WG) {
            let x0 = (first + begin + i / (PARTS * PER)) * params.x_stride;
            let r = i % (PARTS * PER) * 4u;
            keys[i] = four(x0 + k0, r);
            queries[i] = four(x0 + q0, r);
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
            var sums = products(s0, k);
            if (PER > 1u) { sums += products(s1, k + PARTS); }
            if (PER > 2u) { sums += products(s2, k + 2u * PARTS); }
            if (PER > 3u) { sums += products(s3, k + 3u * PARTS); }
            if (PER > 4u) { sums += products(s4, k + 4u * PARTS); }
            if (PER > 5u) { sums += products(s5, k + 5u * PARTS); }
            if (PER > 6u) { sums += products(s6, k + 6u * PARTS); }
            if (PER > 7u) { sums += products(s7, k + 7u * PARTS); }
            sums = column_sum(sums, id, step);
#if DELTA
            let u = drive.y * (v - drive.x * sums.x);
            let out = drive.x * sums.y + u * sums.z;
#else
            let u = drive.y * v;
            let out = drive.x * sums.y + u * sums.z + constants.z * v;
#endif
            s0 = drive.x * s0 + u * keys[k];
            if (PER > 1u) { s1 = drive.x * s1 + u * keys[k + PARTS]; }
            if (PER > 2u) { s2 = drive.x * s2 + u * keys[k + 2u * PARTS]; }
            if (PER > 3u) { s3 = drive.x * s3 + u * keys[k + 3u * PARTS]; }
            if (PER > 4u) { s4 = drive.x * s4 + u * keys[k + 4u * PARTS]; }
            if (PER > 5u) { s5 = drive.x * s5 + u * keys[k + 5u * PARTS]; }
            if (PER > 6u) { s6 = drive.x * s6 + u * keys[k + 6u * PARTS]; }
            if (PER > 7u) { s7 = drive.x * s7 + u * keys[k + 7u * PARTS]; }
            if (inside && part == 0u) {
                y[(first + begin + step) * params.y_stride + head * params.head_dim + column] = out;
            }
        }
    }
    if (place.after == NO_PLACE || !inside) { return; }
    let at = place.after * state + own;
    store(at, row, s0);
    store(at, row + 4u * PARTS, s1);
    store(at, row + 8u * PARTS, s2);
    store(at, row + 12u * PARTS, s3);
    store(at, row + 16u * PARTS, s4);
    store(at, row + 20u * PARTS, s5);
    store(at, row + 24u * PARTS, s6);
    store(at, row + 28u * PARTS, s7);
}
