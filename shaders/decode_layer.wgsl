// A layer of a decode step, for one row, in one dispatch whose workgroups all run at once and hand each other what they make (exchange.wgsl):
// x += out(attention(norm(x))); x += down(act(gate(norm(x))) * up(norm(x))). Between its five parts each workgroup waits for the numbers that it
// reads and for nothing else; a dispatch of its own for each part costs some microseconds more, and leaves the memory idle meanwhile.
// Every workgroup stages the whole input of a product; teams of threads, those of a workgroup spread over the rows, make a row each.
// Weights: q and k (and v if it has the same format) in `first`, v in `second` if not, `out`, gate over up in `up`, `down`.
// All weights have bytes, or with FLOATS none. Widths are multiples of 32.
override WG: u32 = 512u;
override TEAM: u32 = 32u;
override HEAD_DIM: u32 = 128u;
override G: u32 = 1u;
override K_MOST: u32 = 32u;
// Threads of a position's score.
override ATTENTION_TEAM: u32 = 16u;
struct Params {
    tag: u32, patience: u32, forms: u32, n_embd: u32, n_first: u32, n_second: u32, n_ff: u32, n_head: u32, n_kv: u32,
    parts: u32, block_tokens: u32, table_stride: u32, window: u32, n_rot: u32, scale: f32, softcap: f32, eps: f32,
}
// Bits of forms.
const FORM_CAPACITY: u32 = 1u;
const FORM_GELU: u32 = 2u;
const FORM_HALVES: u32 = 4u;
const FORM_HEAD_NORMS: u32 = 8u;
const FORM_SINKS: u32 = 16u;
const FORM_BIAS: u32 = 32u;
fn has(form: u32) -> bool { return (params.forms & form) != 0u; }

#import thread
#import exchange
#import reduce
#import staged
// The residual stream: a number is read and written by the team that makes its row.
@group(0) @binding(auto) var<storage, read_write> x: array<f32>;
@group(0) @binding(auto) var<storage, read> attn_norm: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> ffn_norm: array<vec4<f32>>;
// What a form says is not there may be bound to anything.
@group(0) @binding(auto) var<storage, read> bias_first: array<f32>;
@group(0) @binding(auto) var<storage, read> bias_second: array<f32>;
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
@group(0) @binding(auto) var<storage, read> q_w: array<f32>;
@group(0) @binding(auto) var<storage, read> k_w: array<f32>;
@group(0) @binding(auto) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;

#set FRESH
#set QK_NORM
#set KEYS_AHEAD
const ATTENTION_AHEAD: u32 = 4u;
fn fresh_load(row: u32, i: u32) -> vec4<f32> { return receive(i); }
fn heads_normed() -> bool { return has(FORM_HEAD_NORMS); }
fn halves_turn() -> bool { return has(FORM_HALVES); }
#import attention_row
#instance staged_product first
#instance staged_product second
#instance staged_product out
#instance staged_product up
#instance staged_product down

// (Top, total) of the parts of G heads.
var<workgroup> part_tops: array<vec2<f32>, 64u * G>;

// Where in `mail`, in fours: q, k and v; what attention gives; the stream between the halves; gate times up; parts of attention.
fn mail_attn() -> u32 { return (params.n_first + params.n_second) / 4u; }
fn mail_x() -> u32 { return mail_attn() + params.n_head * HEAD_DIM / 4u; }
fn mail_inner() -> u32 { return mail_x() + params.n_embd / 4u; }
fn mail_parts() -> u32 { return mail_inner() + params.n_ff / 4u; }
// A part: the sums of its heads, then (top, total) of each.
fn part_at(item: u32) -> u32 { return mail_parts() + item * G * (HEAD_DIM / 4u + 1u); }

// Stages n numbers that others make, from `at` on. Returns this thread's sum of squares. NORMED: times ffn_norm.
fn stage_mail(t: Thread, at: u32, n: u32, normed: bool) -> f32 {
    let n4 = n / 4u;
    var squares = 0.0;
    for (var i = t.lid; i < n4; i += 4u * WG) {
        let i1 = i + WG;
        let i2 = i + 2u * WG;
        let i3 = i + 3u * WG;
        let w0 = mail[at + i];
        let w1 = mail[at + min(i1, n4 - 1u)];
        let w2 = mail[at + min(i2, n4 - 1u)];
        let w3 = mail[at + min(i3, n4 - 1u)];
        squares += stage_one(received(w0, at + i), i, normed);
        if (i1 < n4) { squares += stage_one(received(w1, at + i1), i1, normed); }
        if (i2 < n4) { squares += stage_one(received(w2, at + i2), i2, normed); }
        if (i3 < n4) { squares += stage_one(received(w3, at + i3), i3, normed); }
    }
    return squares;
}
fn stage_one(v: vec4<f32>, i: u32, normed: bool) -> f32 {
    if (normed) { stage(i, v * ffn_norm[i]); } else { stage(i, v); }
    return dot(v, v);
}
// The factor of rows that are normalised, from the threads' sums of squares. All have staged when it is known.
fn norm_factor(t: Thread, squares: f32) -> f32 { return 1.0 / sqrt(workgroup_sum(squares, t) / f32(params.n_embd) + params.eps); }

fn make_qkv(t: Thread, lane: u32, first: u32, step: u32) {
    var squares = 0.0;
    for (var i = t.lid; i < params.n_embd / 4u; i += WG) {
        let v = vec4<f32>(x[4u * i], x[4u * i + 1u], x[4u * i + 2u], x[4u * i + 3u]);
        squares += dot(v, v);
        stage(i, v * attn_norm[i]);
    }
    let factor = norm_factor(t, squares);
    for (var r = first; r < params.n_first + params.n_second; r += step) {
        var v = 0.0;
        var bias = 0.0;
        if (r < params.n_first) {
            v = row_first(r, params.n_embd, lane);
            if (has(FORM_BIAS)) { bias = bias_first[r]; }
        } else {
            v = row_second(r - params.n_first, params.n_embd, lane);
            if (has(FORM_BIAS)) { bias = bias_second[r - params.n_first]; }
        }
        if (lane == 0u) { post(r, v * factor + bias); }
    }
}

// G heads over a part of the positions.
fn make_part(t: Thread, item: u32) {
    let d4 = HEAD_DIM / 4u;
    let split = item % params.parts;
    let head0 = item / params.parts * G;
    let pos = rows[0].pos;
    let slot = rows[0].slot;
    let at = part_at(item);
    if (split >= count_tiles(pos)) {
        // Its words are written like all others, so that none is old.
        for (var i = t.lid; i < G * d4; i += WG) { post_four(at + i, vec4<f32>(0.0)); }
        if (t.lid < G) { post_four(at + G * d4 + t.lid, vec4<f32>(LOWEST, 0.0, 0.0, 0.0)); }
        return;
    }
    let ahead = look_ahead(t, slot, pos, head0, split);
    take_fresh(t, 0u, slot, pos, head0, split, params.parts);
    let a = attend(t, slot, pos, head0, split, params.parts, ahead);
    for (var c = 0u; c < G; c++) {
        // Relative to the top as the others get it.
        let top = kept(a.top[c]);
        let factor = exp(a.top[c] - top);
        let sum = attended_value(t, a, c) * factor;
        if (t.lid < d4) { post_four(at + c * d4 + t.lid, sum); }
        if (t.lid == 0u) { post_four(at + G * d4 + c, vec4<f32>(top, a.weights[c] * factor, 0.0, 0.0)); }
    }
}

// Puts the parts of G heads together, for every parts-th four dimensions. A thread takes one part of one four.
fn put_together(t: Thread, item: u32) {
    let d4 = HEAD_DIM / 4u;
    let group = item / params.parts;
    let i = item % params.parts + t.lid / params.parts * params.parts;
    let on = i < G * d4;
    workgroupBarrier();
    if (on) { scratch[t.lid] = receive(part_at(group * params.parts + t.lid % params.parts) + i); }
    for (var j = t.lid; j < G * params.parts; j += WG) {
        part_tops[j] = receive(part_at(group * params.parts + j % params.parts) + G * d4 + j / params.parts).xy;
    }
    workgroupBarrier();
    if (on && t.lid % params.parts == 0u) {
        let head = group * G + i / d4;
        let tops = i / d4 * params.parts;
        var all = LOWEST;
        for (var s = 0u; s < params.parts; s++) { all = max(all, part_tops[tops + s].x); }
        if (has(FORM_SINKS)) { all = max(all, sinks[head]); }
        var total = 0.0;
        var value = vec4<f32>(0.0);
        for (var s = 0u; s < params.parts; s++) {
            let weight = exp(part_tops[tops + s].x - all);
            total += weight * part_tops[tops + s].y;
            value += weight * scratch[t.lid + s];
        }
        if (has(FORM_SINKS)) { total += exp(sinks[head] - all); }
        post_four(mail_attn() + group * G * d4 + i, value / total);
    }
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    if (has(FORM_CAPACITY)) {
        capacity(t);
        return;
    }
    let lane = t.lid % TEAM;
    // Rows of a workgroup's teams lie far apart: if there are fewer rows than teams, all workgroups have some.
    let first = t.lid / TEAM * t.nwg.x + t.wid.x;
    let step = WG / TEAM * t.nwg.x;
    // Who has no rows does not read either: nobody would wait for it before the input is written anew.
    if (t.wid.x < params.n_first + params.n_second) { make_qkv(t, lane, first, step); }
    let items = params.n_head / G * params.parts;
    for (var item = t.wid.x; item < items; item += t.nwg.x) {
        workgroupBarrier();
        make_part(t, item);
    }
    for (var item = t.wid.x; item < items; item += t.nwg.x) { put_together(t, item); }
    workgroupBarrier();
    if (t.wid.x < params.n_embd) {
        _ = stage_mail(t, mail_attn(), params.n_head * HEAD_DIM, false);
        workgroupBarrier();
        for (var r = first; r < params.n_embd; r += step) {
            let v = row_out(r, params.n_head * HEAD_DIM, lane);
            if (lane == 0u) {
                let sum = x[r] + v;
                x[r] = sum;
                post(mail_x() * 4u + r, sum);
            }
        }
    }
    workgroupBarrier();
    if (t.wid.x < params.n_ff) {
        let factor = norm_factor(t, stage_mail(t, mail_x(), params.n_embd, true));
        for (var r = first; r < params.n_ff; r += step) {
            let v = rows_up(vec2<u32>(r, params.n_ff + r), params.n_embd, lane) * factor;
            if (lane == 0u) { post(mail_inner() * 4u + r, select(silu(v.x), gelu_tanh(v.x), has(FORM_GELU)) * v.y); }
        }
    }
    workgroupBarrier();
    if (t.wid.x < params.n_embd) {
        _ = stage_mail(t, mail_inner(), params.n_ff, false);
        workgroupBarrier();
        for (var r = first; r < params.n_embd; r += step) {
            let v = row_down(r, params.n_ff, lane);
            if (lane == 0u) { x[r] += v; }
        }
    }
}
