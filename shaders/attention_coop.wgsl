// Attention of runs of rows of one sequence by cooperative matrices: f16 operands, f32 sums, online softmax in f32. Formula, window and
// softcap as in attention_decode.wgsl. A workgroup of 4 subgroups takes 64 consecutive rows of one head, each subgroup 16 of them; a step is
// one block of the cache, 32 positions. Queries are brought to f16 with a power of two a row, as in half_rows.wgsl.
// Weights are exp(score - reference), the reference a maximum seen before: it is raised, and what was summed is scaled down, only
// when a score passes it by more than SLACK, since matrices can be scaled by rows only in workgroup memory. So no weight passes exp(SLACK),
// which f16 holds. Two threads have a row between matrices: each has half of its scores. HEAD_DIM is a multiple of 16, at most 128.
enable f16;
enable wgpu_cooperative_matrix;
#import state
#import activation
const WG: u32 = 128u;
const QT: u32 = 64u;
const KT: u32 = 32u;
const SLACK: f32 = 8.0;
override HEAD_DIM: u32 = 64u;
struct Params {
    groups: u32, t_rows: u32, n_head: u32, n_kv: u32, block_tokens: u32, table_stride: u32, window: u32, scale: f32,
    softcap: f32,
}
@group(0) @binding(auto) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#slot kv
#if SINKS
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif

// Queries at first; then 32 keys, and 32 values. Two vectors beyond each row, so that rows start in different banks.
var<workgroup> tile: array<vec4<f16>, QT * (HEAD_DIM / 4u + 2u)>;
// Scores, and results on their way out: 16 rows of 32 for each subgroup, of 9 vectors.
var<workgroup> strip: array<vec4<f32>, 576>;
// Weights, rows of 10 vectors.
var<workgroup> ps: array<vec4<f16>, 640>;
// Whether a subgroup's references must be raised.
var<workgroup> raise: array<u32, 4>;
const LOWEST: f32 = -3.4028234e38;

@compute @workgroup_size(WG)
fn main(
    // Not as a structure: naga must see that all threads take the same way to the matrices.
    @builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32,
) {
    let g = wid.x + wid.y * nwg.x;
    if (g >= params.groups) { return; }
    let d4 = HEAD_DIM / 4u;
    let stride = d4 + 2u;
    let head = g % params.n_head;
    // The last rows see most positions: they come first, so that none of them is left alone at the end.
    let row0 = (params.groups - 1u - g) / params.n_head * QT;
    let kv_head = head / (params.n_head / params.n_kv);
    let last_row = min(row0 + QT, params.t_rows) - 1u;
    let table = rows[row0].slot * params.table_stride;
    // This thread's row and the half of it that it has.
    let r = sg * 16u + lane / 2u;
    let half = lane % 2u;
    let q_at = (min(row0 + r, last_row) * params.n_head + head) * d4;
    var top = 0.0;
    for (var i = half; i < d4; i += 2u) {
        let v = abs(q[q_at + i]);
        top = max(top, max(max(v.x, v.y), max(v.z, v.w)));
    }
    top = max(top, subgroupShuffleXor(top, 1u));
    let e = min(268u - ((bitcast<u32>(top) >> 23u) & 255u), 253u);
    let factor = bitcast<f32>(e << 23u);
    for (var i = half; i < d4; i += 2u) { tile[r * stride + i] = vec4<f16>(q[q_at + i] * factor); }
    let scale = bitcast<f32>((254u - e) << 23u) * params.scale;
    workgroupBarrier();
    let q_from = sg * 16u * stride;
    var q0 = coop_mat16x16<f16, A>();
    var q1 = coop_mat16x16<f16, A>();
    var q2 = coop_mat16x16<f16, A>();
    var q3 = coop_mat16x16<f16, A>();
    var q4 = coop_mat16x16<f16, A>();
    var q5 = coop_mat16x16<f16, A>();
    var q6 = coop_mat16x16<f16, A>();
    var q7 = coop_mat16x16<f16, A>();
    q0 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 0u], stride);
    if (HEAD_DIM > 16u) { q1 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 4u], stride); }
    if (HEAD_DIM > 32u) { q2 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 8u], stride); }
    if (HEAD_DIM > 48u) { q3 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 12u], stride); }
    if (HEAD_DIM > 64u) { q4 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 16u], stride); }
    if (HEAD_DIM > 80u) { q5 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 20u], stride); }
    if (HEAD_DIM > 96u) { q6 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 24u], stride); }
    if (HEAD_DIM > 112u) { q7 = coopLoadT<coop_mat16x16<f16, A>>(&tile[q_from + 28u], stride); }
    var o0 = coop_mat16x16<f32, C>();
    var o1 = coop_mat16x16<f32, C>();
    var o2 = coop_mat16x16<f32, C>();
    var o3 = coop_mat16x16<f32, C>();
    var o4 = coop_mat16x16<f32, C>();
    var o5 = coop_mat16x16<f32, C>();
    var o6 = coop_mat16x16<f32, C>();
    var o7 = coop_mat16x16<f32, C>();
    let pos = rows[min(row0 + r, last_row)].pos;
    var row_lo = 0u;
    if (params.window != 0u && pos + 1u > params.window) { row_lo = pos + 1u - params.window; }
    let end = rows[last_row].pos + 1u;
    var lo = 0u;
    if (params.window != 0u && rows[row0].pos + 1u > params.window) { lo = rows[row0].pos + 1u - params.window; }
    let start = lo / KT * KT;
    // Vectors of keys, and of values, that this thread loads in a step. In place of positions before the first and after the last that
    // any row sees, which may hold anything, those two are read.
    var k_next: array<vec4<f16>, 8>;
    var v_next: array<vec4<f16>, 8>;
    {
        let block = (tables[table + start / KT] * params.n_kv + kv_head) * KT;
        for (var i = 0u; i < HEAD_DIM / 16u; i++) {
            let at = lid + i * WG;
            let p = block + clamp(at / d4, lo - start, end - 1u - start);
            k_next[i] = vec4<f16>(k_load4(p, at % d4));
            v_next[i] = vec4<f16>(v_load4(p, at % d4));
        }
    }
    var reference = LOWEST;
    var total = 0.0;
    let s_at = r * 9u + half * 4u;
    for (var base = start; base < end; base += KT) {
        workgroupBarrier();
        for (var i = 0u; i < HEAD_DIM / 16u; i++) {
            let at = lid + i * WG;
            tile[at / d4 * stride + at % d4] = k_next[i];
            tile[(KT + at / d4) * stride + at % d4] = v_next[i];
        }
        workgroupBarrier();
        let next = min(base + KT, (end - 1u) / KT * KT);
        {
            let block = (tables[table + next / KT] * params.n_kv + kv_head) * KT;
            for (var i = 0u; i < HEAD_DIM / 16u; i++) {
                let at = lid + i * WG;
                let p = block + min(at / d4, end - 1u - next);
                k_next[i] = vec4<f16>(k_load4(p, at % d4));
                v_next[i] = vec4<f16>(v_load4(p, at % d4));
            }
        }
        var s0 = coop_mat16x16<f32, C>();
        var s1 = coop_mat16x16<f32, C>();
        {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[0u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 0u], stride);
            s0 = coopMultiplyAdd(q0, k0, s0);
            s1 = coopMultiplyAdd(q0, k1, s1);
        }
        if (HEAD_DIM > 16u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[4u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 4u], stride);
            s0 = coopMultiplyAdd(q1, k0, s0);
            s1 = coopMultiplyAdd(q1, k1, s1);
        }
        if (HEAD_DIM > 32u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[8u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 8u], stride);
            s0 = coopMultiplyAdd(q2, k0, s0);
            s1 = coopMultiplyAdd(q2, k1, s1);
        }
        if (HEAD_DIM > 48u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[12u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 12u], stride);
            s0 = coopMultiplyAdd(q3, k0, s0);
            s1 = coopMultiplyAdd(q3, k1, s1);
        }
        if (HEAD_DIM > 64u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 16u], stride);
            s0 = coopMultiplyAdd(q4, k0, s0);
            s1 = coopMultiplyAdd(q4, k1, s1);
        }
        if (HEAD_DIM > 80u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[20u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 20u], stride);
            s0 = coopMultiplyAdd(q5, k0, s0);
            s1 = coopMultiplyAdd(q5, k1, s1);
        }
        if (HEAD_DIM > 96u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[24u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 24u], stride);
            s0 = coopMultiplyAdd(q6, k0, s0);
            s1 = coopMultiplyAdd(q6, k1, s1);
        }
        if (HEAD_DIM > 112u) {
            let k0 = coopLoad<coop_mat16x16<f16, B>>(&tile[28u], stride);
            let k1 = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * stride + 28u], stride);
            s0 = coopMultiplyAdd(q7, k0, s0);
            s1 = coopMultiplyAdd(q7, k1, s1);
        }
        coopStoreT(s0, &strip[sg * 144u], 9u);
        coopStoreT(s1, &strip[sg * 144u + 4u], 9u);
        workgroupBarrier();
        var s: array<vec4<f32>, 4>;
        var most = LOWEST;
        for (var i = 0u; i < 4u; i++) {
            var v = strip[s_at + i] * scale;
            if (params.softcap > 0.0) {
                v /= params.softcap;
                v = params.softcap * vec4<f32>(safe_tanh(v.x), safe_tanh(v.y), safe_tanh(v.z), safe_tanh(v.w));
            }
            let p = vec4<u32>(base + half * 16u + i * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
            s[i] = select(vec4<f32>(LOWEST), v, (p <= vec4<u32>(pos)) & (p >= vec4<u32>(row_lo)));
            most = max(most, max(max(s[i].x, s[i].y), max(s[i].z, s[i].w)));
        }
        most = max(most, subgroupShuffleXor(most, 1u));
        let passed = subgroupAny(most > reference + SLACK);
        if (lane == 0u) { raise[sg] = u32(passed); }
        let raised = workgroupUniformLoad(&raise);
        if (raised[0] + raised[1] + raised[2] + raised[3] != 0u) {
            let higher = max(reference, most);
            let shrink = exp(reference - higher);
            reference = higher;
            total *= shrink;
            {
                workgroupBarrier();
                coopStoreT(o0, &strip[sg * 144u], 9u);
                if (HEAD_DIM > 16u) { coopStoreT(o1, &strip[sg * 144u + 4u], 9u); }
                workgroupBarrier();
                for (var i = 0u; i < 4u; i++) { strip[s_at + i] *= shrink; }
                workgroupBarrier();
                o0 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u], 9u);
                if (HEAD_DIM > 16u) { o1 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u + 4u], 9u); }
            }
            if (HEAD_DIM > 32u) {
                workgroupBarrier();
                coopStoreT(o2, &strip[sg * 144u], 9u);
                if (HEAD_DIM > 48u) { coopStoreT(o3, &strip[sg * 144u + 4u], 9u); }
                workgroupBarrier();
                for (var i = 0u; i < 4u; i++) { strip[s_at + i] *= shrink; }
                workgroupBarrier();
                o2 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u], 9u);
                if (HEAD_DIM > 48u) { o3 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u + 4u], 9u); }
            }
            if (HEAD_DIM > 64u) {
                workgroupBarrier();
                coopStoreT(o4, &strip[sg * 144u], 9u);
                if (HEAD_DIM > 80u) { coopStoreT(o5, &strip[sg * 144u + 4u], 9u); }
                workgroupBarrier();
                for (var i = 0u; i < 4u; i++) { strip[s_at + i] *= shrink; }
                workgroupBarrier();
                o4 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u], 9u);
                if (HEAD_DIM > 80u) { o5 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u + 4u], 9u); }
            }
            if (HEAD_DIM > 96u) {
                workgroupBarrier();
                coopStoreT(o6, &strip[sg * 144u], 9u);
                if (HEAD_DIM > 112u) { coopStoreT(o7, &strip[sg * 144u + 4u], 9u); }
                workgroupBarrier();
                for (var i = 0u; i < 4u; i++) { strip[s_at + i] *= shrink; }
                workgroupBarrier();
                o6 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u], 9u);
                if (HEAD_DIM > 112u) { o7 = coopLoadT<coop_mat16x16<f32, C>>(&strip[sg * 144u + 4u], 9u); }
            }
        }
        for (var i = 0u; i < 4u; i++) {
            let w = select(vec4<f32>(0.0), exp(s[i] - reference), s[i] > vec4<f32>(LOWEST));
            total += w.x + w.y + w.z + w.w;
            ps[r * 10u + half * 4u + i] = vec4<f16>(w);
        }
        workgroupBarrier();
        let p0 = coopLoadT<coop_mat16x16<f16, A>>(&ps[sg * 160u], 10u);
        let p1 = coopLoadT<coop_mat16x16<f16, A>>(&ps[sg * 160u + 4u], 10u);
        {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 0u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 0u], stride);
            o0 = coopMultiplyAdd(p0, v0, o0);
            o0 = coopMultiplyAdd(p1, v1, o0);
        }
        if (HEAD_DIM > 16u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 4u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 4u], stride);
            o1 = coopMultiplyAdd(p0, v0, o1);
            o1 = coopMultiplyAdd(p1, v1, o1);
        }
        if (HEAD_DIM > 32u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 8u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 8u], stride);
            o2 = coopMultiplyAdd(p0, v0, o2);
            o2 = coopMultiplyAdd(p1, v1, o2);
        }
        if (HEAD_DIM > 48u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 12u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 12u], stride);
            o3 = coopMultiplyAdd(p0, v0, o3);
            o3 = coopMultiplyAdd(p1, v1, o3);
        }
        if (HEAD_DIM > 64u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 16u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 16u], stride);
            o4 = coopMultiplyAdd(p0, v0, o4);
            o4 = coopMultiplyAdd(p1, v1, o4);
        }
        if (HEAD_DIM > 80u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 20u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 20u], stride);
            o5 = coopMultiplyAdd(p0, v0, o5);
            o5 = coopMultiplyAdd(p1, v1, o5);
        }
        if (HEAD_DIM > 96u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 24u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 24u], stride);
            o6 = coopMultiplyAdd(p0, v0, o6);
            o6 = coopMultiplyAdd(p1, v1, o6);
        }
        if (HEAD_DIM > 112u) {
            let v0 = coopLoadT<coop_mat16x16<f16, B>>(&tile[32u * stride + 28u], stride);
            let v1 = coopLoadT<coop_mat16x16<f16, B>>(&tile[48u * stride + 28u], stride);
            o7 = coopMultiplyAdd(p0, v0, o7);
            o7 = coopMultiplyAdd(p1, v1, o7);
        }
    }
    total += subgroupShuffleXor(total, 1u);
#if SINKS
    total += exp(sinks[head] - reference);
#endif
    let y_at = ((row0 + r) * params.n_head + head) * d4 + half * 4u;
    {
        workgroupBarrier();
        coopStoreT(o0, &strip[sg * 144u], 9u);
        if (HEAD_DIM > 16u) { coopStoreT(o1, &strip[sg * 144u + 4u], 9u); }
        workgroupBarrier();
        if (row0 + r <= last_row && half * 16u + 0u < HEAD_DIM) {
            for (var i = 0u; i < 4u; i++) { y[y_at + 0u + i] = strip[s_at + i] / total; }
        }
    }
    if (HEAD_DIM > 32u) {
        workgroupBarrier();
        coopStoreT(o2, &strip[sg * 144u], 9u);
        if (HEAD_DIM > 48u) { coopStoreT(o3, &strip[sg * 144u + 4u], 9u); }
        workgroupBarrier();
        if (row0 + r <= last_row && half * 16u + 32u < HEAD_DIM) {
            for (var i = 0u; i < 4u; i++) { y[y_at + 8u + i] = strip[s_at + i] / total; }
        }
    }
    if (HEAD_DIM > 64u) {
        workgroupBarrier();
        coopStoreT(o4, &strip[sg * 144u], 9u);
        if (HEAD_DIM > 80u) { coopStoreT(o5, &strip[sg * 144u + 4u], 9u); }
        workgroupBarrier();
        if (row0 + r <= last_row && half * 16u + 64u < HEAD_DIM) {
            for (var i = 0u; i < 4u; i++) { y[y_at + 16u + i] = strip[s_at + i] / total; }
        }
    }
    if (HEAD_DIM > 96u) {
        workgroupBarrier();
        coopStoreT(o6, &strip[sg * 144u], 9u);
        if (HEAD_DIM > 112u) { coopStoreT(o7, &strip[sg * 144u + 4u], 9u); }
        workgroupBarrier();
        if (row0 + r <= last_row && half * 16u + 96u < HEAD_DIM) {
            for (var i = 0u; i < 4u; i++) { y[y_at + 24u + i] = strip[s_at + i] / total; }
        }
    }
}
