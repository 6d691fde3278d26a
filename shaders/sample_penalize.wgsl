// Logit bias, then penalties (src/sample/penalties.rs). One workgroup a row; each distinct token of the
// window is changed once, by one thread, so the result does not depend on the order of the threads.
#import thread
#import state

struct Params {
    rows: u32,
    vocab: u32,
    history_cap: u32,
}

struct Bias {
    token: u32,
    value: f32,
}

override WG: u32 = 256u;

// Windows up to SHORT compare their tokens pairwise, longer ones count them, COUNTERS ids at a time.
const SHORT: u32 = 512u;
const COUNTERS: u32 = 3072u;
const NEG_INF_BITS: u32 = 0xff800000u;

@group(0) @binding(0) var<storage, read_write> logits: array<u32>; // f32 bits [rows, vocab]
@group(0) @binding(1) var<storage, read> rows: array<Row>;
@group(0) @binding(2) var<storage, read> sampling: array<SampleParams>;
@group(0) @binding(3) var<storage, read> history: array<u32>; // [slots, history_cap]
@group(0) @binding(4) var<storage, read> bias: array<Bias>; // [slots, BIAS_ENTRIES]

var<workgroup> near: array<vec4<u32>, SHORT / 4u>;
var<workgroup> counts: array<atomic<u32>, COUNTERS>;

fn is_finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// Punishes the token at an index of the logits for `count` occurrences.
fn punish(at: u32, count: u32, how: SampleParams) {
    let bits = logits[at];
    if !is_finite(bits) {
        return;
    }
    let logit = bitcast<f32>(bits);
    let scaled = select(logit * how.repeat_penalty, logit / how.repeat_penalty, logit > 0.0);
    let less = how.frequency_penalty * f32(count) + how.presence_penalty;
    logits[at] = bitcast<u32>(scaled - less);
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let index = group_index(t);
    if index >= params.rows {
        return;
    }
    let row = rows[index];
    let how = sampling[row.slot];
    let base = index * params.vocab;

    for (var i = t.lid; i < min(how.n_bias, BIAS_ENTRIES); i += WG) {
        let entry = bias[row.slot * BIAS_ENTRIES + i];
        if entry.token < params.vocab {
            let bits = logits[base + entry.token];
            if bitcast<u32>(entry.value) == NEG_INF_BITS {
                logits[base + entry.token] = NEG_INF_BITS;
            } else if is_finite(bits) {
                logits[base + entry.token] = bitcast<u32>(bitcast<f32>(bits) + entry.value);
            }
        }
    }
    if (how.flags & FLAG_PENALTIES) == 0u {
        return;
    }
    storageBarrier();

    let known = min(row.pos + 1u, params.history_cap);
    let length = min(how.penalty_last_n, known);
    let first = row.slot * params.history_cap + known - length;
    if length <= SHORT {
        let quads = (length + 3u) / 4u;
        for (var i = t.lid; i < quads; i += WG) {
            var four = vec4<u32>(NO_TOKEN);
            for (var j = 0u; j < min(4u, length - 4u * i); j++) {
                four[j] = history[first + 4u * i + j];
            }
            near[i] = four;
        }
        workgroupBarrier();
        for (var i = t.lid; i < length; i += WG) {
            let token = near[i / 4u][i % 4u];
            var earlier = 0u;
            var count = 0u;
            for (var j = 0u; j < quads; j++) {
                let same = near[j] == vec4<u32>(token);
                let before = 4u * j + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(i);
                count += dot(vec4<u32>(same), vec4<u32>(1u));
                earlier += dot(vec4<u32>(same & before), vec4<u32>(1u));
            }
            let leader = earlier == 0u && token < params.vocab;
            if leader {
                punish(base + token, count, how);
            }
        }
        return;
    }
    for (var low = 0u; low < params.vocab; low += COUNTERS) {
        for (var i = t.lid; i < COUNTERS; i += WG) {
            atomicStore(&counts[i], 0u);
        }
        workgroupBarrier();
        for (var i = t.lid; i < length; i += WG) {
            let token = history[first + i];
            if token >= low && token - low < COUNTERS {
                atomicAdd(&counts[token - low], 1u);
            }
        }
        workgroupBarrier();
        for (var i = t.lid; i < min(COUNTERS, params.vocab - low); i += WG) {
            let count = atomicLoad(&counts[i]);
            if count > 0u {
                punish(base + low + i, count, how);
            }
        }
    }
}
