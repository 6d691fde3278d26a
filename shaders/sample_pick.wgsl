// Chooses one token a row: the largest logit, or a draw after top-k, top-p, min-p and temperature
// (src/sample/mod.rs has the rules). One workgroup a row.
//
// Every mass is a sum of integer weights of 26 bits, kept as two sums of 13-bit limbs, so the result does
// not depend on the order of the additions. Two ways lead to the same token: where a lower bound of the
// logits that can matter is known, the few tokens above it are gathered in workgroup memory and compared
// pairwise; otherwise the cuts are found in the whole row by radix selection, a byte at a time.
#import thread
#import state
#import order
#import wide
#import philox

struct Params {
    rows: u32,
    vocab: u32,
    chunks: u32, // of a row, as in sample_argmax
    chunk: u32,
}

// The bins of a selection are one a thread, so the workgroup size is fixed.
const WG: u32 = 256u;
const CAP: u32 = 1000u; // most tokens of the gathered way; all workgroup memory together stays below 16 KiB
const ALL: u32 = 0xffffffffu;
const ALIVE: u32 = 0x80000000u;
const WEIGHT_MAX: u32 = 0x3ffffffu;

// What a token weighs.
const COUNT: u32 = 0u; // 1
const SHARE: u32 = 1u; // its probability at temperature 1
const DRAW: u32 = 2u;  // its probability at the row's temperature

@group(0) @binding(0) var<storage, read> logits: array<u32>; // f32 bits [rows, vocab]
@group(0) @binding(1) var<storage, read> rows: array<Row>;
@group(0) @binding(2) var<storage, read> sampling: array<SampleParams>;
@group(0) @binding(3) var<storage, read> partial: array<vec2<u32>>; // [rows, chunks]
@group(0) @binding(4) var<storage, read_write> picked: array<u32>;

// The bin in which a selection goes on.
struct Step {
    digit: u32,
    before: vec2<u32>, // mass of the bins before it
    mass: vec2<u32>,   // mass of the bin
}

// Where a selection ended: the word, what was left of the goal, the mass of all tokens with that word.
struct Found {
    word: u32,
    rest: vec2<u32>,
    mass: vec2<u32>,
}

var<workgroup> sums: array<vec2<u32>, WG>;
var<workgroup> bins_low: array<atomic<u32>, WG>;
var<workgroup> bins_high: array<atomic<u32>, WG>;
var<workgroup> step: Step;
var<workgroup> bound: u32;
var<workgroup> good_chunks: atomic<u32>;
var<workgroup> gathered: atomic<u32>;
var<workgroup> list: array<vec2<u32>, CAP>; // (key, id)
var<workgroup> marks: array<u32, CAP>;      // of a good chunk: its first id; of a token: weight, and ALIVE

// The row at work.
var<private> lid: u32;
var<private> base: u32;
var<private> top: vec2<u32>; // (key, id) of the largest logit
var<private> top_value: f32;
var<private> how: SampleParams;
var<private> random: u32;

// The survivors: keys above cut_key, and ids up to cut_id at cut_key. Where only_key is not 0, weights
// of other keys count as 0.
var<private> cut_key: u32;
var<private> cut_id: u32;
var<private> only_key: u32;

// The keys of four tokens; 0 for those not below `end`. One workgroup reads the whole row, so it must ask
// for several values at a time.
fn keys_at(ids: vec4<u32>, end: u32) -> vec4<u32> {
    let at = base + min(ids, vec4<u32>(params.vocab - 1u));
    let bits = vec4<u32>(logits[at.x], logits[at.y], logits[at.z], logits[at.w]);
    return select(vec4<u32>(0u), order_keys(bits), ids < vec4<u32>(end));
}

// The four tokens, WG apart, that begin at an id.
fn four(id: u32) -> vec4<u32> {
    return id + vec4<u32>(0u, WG, 2u * WG, 3u * WG);
}

// The weight of a finite logit at a temperature.
fn weigh(key: u32, temperature: f32) -> u32 {
    let exponent = max((key_value(key) - top_value) / temperature, -100.0);
    return min(u32(exp(exponent) * 67108864.0 + 0.5), WEIGHT_MAX);
}

fn weight(mode: u32, key: u32, id: u32) -> u32 {
    if key < cut_key || (key == cut_key && id > cut_id) || (only_key != 0u && key != only_key) {
        return 0u;
    }
    switch mode {
        case COUNT: { return 1u; }
        case SHARE: { return weigh(key, 1.0); }
        default: { return weigh(key, how.temperature); }
    }
}

// The mass of two limb sums.
fn from_limbs(low: u32, high: u32) -> vec2<u32> {
    return wide_add(vec2<u32>(high << 13u, high >> 19u), vec2<u32>(low, 0u));
}

// Inclusive prefix sum over the workgroup; `sums` holds it for every thread afterwards.
fn scan(mine: vec2<u32>) -> vec2<u32> {
    var sum = mine;
    workgroupBarrier();
    sums[lid] = sum;
    workgroupBarrier();
    for (var reach = 1u; reach < WG; reach *= 2u) {
        var other = vec2<u32>(0u);
        if lid >= reach {
            other = sums[lid - reach];
        }
        workgroupBarrier();
        sum = wide_add(sum, other);
        sums[lid] = sum;
        workgroupBarrier();
    }
    return sum;
}

// The mass of the whole row.
fn total(mode: u32) -> vec2<u32> {
    var low = 0u;
    var high = 0u;
    var next = keys_at(four(lid), params.vocab);
    for (var first = lid; first < params.vocab; first += 4u * WG) {
        let keys = next;
        next = keys_at(four(first + 4u * WG), params.vocab);
        for (var i = 0u; i < 4u; i++) {
            let w = weight(mode, keys[i], first + i * WG);
            low += w & 0x1fffu;
            high += w >> 13u;
        }
    }
    scan(from_limbs(low, high));
    return workgroupUniformLoad(&sums[WG - 1u]);
}

// The first word, in order of ids or of falling keys, at which the running mass reaches the goal. The goal
// is at least 1 and at most the total mass.
fn descend(mode: u32, by_id: bool, goal: vec2<u32>) -> Found {
    var found = Found(0u, goal, vec2<u32>(0u));
    for (var level = select(0u, 1u, by_id); level < 4u; level++) {
        let shift = 24u - 8u * level;
        atomicStore(&bins_low[lid], 0u);
        atomicStore(&bins_high[lid], 0u);
        workgroupBarrier();
        var first = lid;
        var end = params.vocab;
        if by_id {
            first += found.word;
            end = min(end, found.word + (256u << shift));
        }
        var next = keys_at(four(first), end);
        for (; first < end; first += 4u * WG) {
            let keys = next;
            next = keys_at(four(first + 4u * WG), end);
            for (var i = 0u; i < 4u; i++) {
                let word = select(~keys[i], first + i * WG, by_id);
                if level > 0u && (word >> (shift + 8u)) != (found.word >> (shift + 8u)) {
                    continue;
                }
                let w = weight(mode, keys[i], first + i * WG);
                if w > 0u {
                    let digit = (word >> shift) & 255u;
                    atomicAdd(&bins_low[digit], w & 0x1fffu);
                    atomicAdd(&bins_high[digit], w >> 13u);
                }
            }
        }
        workgroupBarrier();
        let mass = from_limbs(atomicLoad(&bins_low[lid]), atomicLoad(&bins_high[lid]));
        let after = scan(mass);
        let before = wide_sub(after, mass);
        if wide_less(before, found.rest) && !wide_less(after, found.rest) {
            step = Step(lid, before, mass);
        }
        let bin = workgroupUniformLoad(&step);
        found.word |= bin.digit << shift;
        found.rest = wide_sub(found.rest, bin.before);
        found.mass = bin.mass;
    }
    return found;
}

// Cuts the survivors to the shortest prefix, likely tokens first, with at least the goal's mass.
fn narrow(mode: u32, goal: vec2<u32>) {
    let found = descend(mode, false, goal);
    let key = ~found.word;
    var id = select(ALL, cut_id, key == cut_key);
    let each = select(weigh(key, 1.0), 1u, mode == COUNT);
    let spare = wide_sub(found.mass, found.rest);
    if !wide_less(spare, vec2<u32>(each, 0u)) {
        // Not all tokens of this key are needed: the lowest ids stay.
        only_key = key;
        id = descend(mode, true, found.rest).word;
        only_key = 0u;
    }
    cut_key = key;
    cut_id = id;
}

// The mass that top-p wants of a whole.
fn top_p_goal(whole: vec2<u32>) -> vec2<u32> {
    let goal = wide_share_up(u32(how.top_p * 4294967296.0), whole);
    return select(goal, vec2<u32>(1u, 0u), all(goal == vec2<u32>(0u)));
}

// The key of the largest logit plus an offset that is not positive.
fn key_below(offset: f32) -> u32 {
    return min(order_key(bitcast<u32>(top_value + offset)), top.x);
}

// The key of the k-th best of the first WG chunks: at least k tokens are as good.
fn kth_chunk_key(row: u32, k: u32) -> u32 {
    let n = min(params.chunks, WG);
    var mine = vec2<u32>(0u);
    if lid < n {
        mine = partial[row * params.chunks + lid];
    }
    workgroupBarrier();
    sums[lid] = mine;
    workgroupBarrier();
    var rank = 0u;
    for (var i = 0u; i < n; i++) {
        rank += select(0u, 1u, better(sums[i], mine));
    }
    if lid < n && rank == k - 1u {
        bound = mine.x;
    }
    return workgroupUniformLoad(&bound);
}

// A key below which no token takes part in any decision but the total of top-p, given that total; 0 where
// none is known.
fn floor_key(row: u32, whole: vec2<u32>) -> u32 {
    let use_k = how.top_k > 0u;
    let use_p = how.top_p < 1.0;
    var key = 0u;
    if use_k && how.top_k <= min(params.chunks, WG) {
        key = kth_chunk_key(row, how.top_k);
    }
    if how.min_p > 0.0 && !(use_k && use_p) {
        key = max(key, key_below(log(how.min_p)));
    }
    if use_p && !use_k {
        // All tokens lighter than an equal part of what top-p leaves out weigh less than that together.
        let mass = f32(whole.y) * 4294967296.0 + f32(whole.x);
        let part = (1.0 - how.top_p) * mass / f32(params.vocab) * 0.99 - 1.0;
        if part > 0.0 {
            key = max(key, key_below(log(part / 67108864.0) - 0.01));
        }
    }
    return key;
}

// One thread's value, for every thread.
fn share_first(value: u32) -> u32 {
    if lid == 0u {
        bound = value;
    }
    return workgroupUniformLoad(&bound);
}

// Collects the tokens with at least this key in `list`, in any order; says how many there are, or more
// than CAP where they do not fit. Only chunks whose best token has such a key are read.
fn gather(row: u32, floor: u32) -> u32 {
    if lid == 0u {
        atomicStore(&gathered, 0u);
        atomicStore(&good_chunks, 0u);
    }
    workgroupBarrier();
    for (var i = lid; i < params.chunks; i += WG) {
        if partial[row * params.chunks + i].x >= floor {
            let at = atomicAdd(&good_chunks, 1u);
            if at < CAP {
                marks[at] = i * params.chunk;
            }
        }
    }
    workgroupBarrier();
    let good = share_first(atomicLoad(&good_chunks));
    if good > CAP {
        return good;
    }
    let width = min(params.chunk, params.vocab);
    let end = good * width;
    for (var first = lid; first < end; first += 4u * WG) {
        let at = four(first);
        let part = min(at / width, vec4<u32>(good - 1u));
        let start = vec4<u32>(marks[part.x], marks[part.y], marks[part.z], marks[part.w]);
        let ids = select(vec4<u32>(ALL), start + at % width, at < vec4<u32>(end));
        let keys = keys_at(ids, params.vocab);
        for (var i = 0u; i < 4u; i++) {
            if keys[i] >= floor {
                let to = atomicAdd(&gathered, 1u);
                if to < CAP {
                    list[to] = vec2<u32>(keys[i], ids[i]);
                }
            }
        }
    }
    workgroupBarrier();
    return share_first(atomicLoad(&gathered));
}

// Whether the n tokens of `list` have the mass that top-p wants of the whole row.
fn enough(n: u32, whole: vec2<u32>) -> bool {
    var mass = vec2<u32>(0u);
    for (var at = lid; at < n; at += WG) {
        mass = wide_add(mass, vec2<u32>(weigh(list[at].x, 1.0), 0u));
    }
    scan(mass);
    return !wide_less(workgroupUniformLoad(&sums[WG - 1u]), top_p_goal(whole));
}

// The rest of the way with the n tokens of `list`; the total of top-p is `whole` without top-k.
fn pick_gathered(row: u32, n: u32, whole: vec2<u32>) {
    for (var at = lid; at < n; at += WG) {
        let mine = list[at];
        var rank = 0u;
        if how.top_k > 0u {
            for (var i = 0u; i < n; i++) {
                rank += select(0u, 1u, better(list[i], mine));
            }
        }
        let alive = how.top_k == 0u || rank < how.top_k;
        marks[at] = select(0u, ALIVE | weigh(mine.x, 1.0), alive);
    }
    workgroupBarrier();

    var floor = 0u;
    if how.min_p > 0.0 {
        floor = key_below(log(how.min_p));
    }
    var alive = vec4<bool>();
    for (var at = lid; at < n; at += WG) {
        let mine = list[at];
        var stays = marks[at] >= ALIVE && mine.x >= floor;
        if stays && how.top_p < 1.0 {
            var before = vec2<u32>(0u); // limbs of the mass of better tokens
            var every = vec2<u32>(0u);
            for (var i = 0u; i < n; i++) {
                let w = marks[i] & WEIGHT_MAX;
                let limbs = vec2<u32>(w & 0x1fffu, w >> 13u);
                every += limbs;
                before += select(vec2<u32>(0u), limbs, better(list[i], mine));
            }
            let mass = select(whole, from_limbs(every.x, every.y), how.top_k > 0u);
            stays = wide_less(from_limbs(before.x, before.y), top_p_goal(mass));
        }
        alive[at / WG] = stays;
    }
    workgroupBarrier();
    for (var at = lid; at < n; at += WG) {
        marks[at] = select(0u, weigh(list[at].x, how.temperature), alive[at / WG]);
    }
    workgroupBarrier();

    for (var at = lid; at < n; at += WG) {
        let mine = marks[at];
        if mine == 0u {
            continue;
        }
        let id = list[at].y;
        var before = vec2<u32>(0u);
        var every = vec2<u32>(0u);
        for (var i = 0u; i < n; i++) {
            let limbs = vec2<u32>(marks[i] & 0x1fffu, marks[i] >> 13u);
            every += limbs;
            before += select(vec2<u32>(0u), limbs, list[i].y < id);
        }
        let aim = wide_share(random, from_limbs(every.x, every.y));
        let start = from_limbs(before.x, before.y);
        if !wide_less(aim, start) && wide_less(aim, wide_add(start, vec2<u32>(mine, 0u))) {
            picked[row] = id;
        }
    }
}

// The rest of the way over the whole row.
fn pick_whole(row: u32) {
    cut_key = KEY_NEG_INF + 1u;
    cut_id = ALL;
    if how.top_k > 0u && total(COUNT).x > how.top_k {
        narrow(COUNT, vec2<u32>(how.top_k, 0u));
    }
    if how.top_p < 1.0 {
        narrow(SHARE, top_p_goal(total(SHARE)));
    }
    if how.min_p > 0.0 {
        let floor = key_below(log(how.min_p));
        if floor > cut_key {
            cut_key = floor;
            cut_id = ALL;
        }
    }
    let aim = wide_share(random, total(DRAW));
    let found = descend(DRAW, true, wide_add(aim, vec2<u32>(1u, 0u)));
    if lid == 0u {
        picked[row] = found.word;
    }
}

// The best (key, id) of the row's chunks.
fn best_chunk(row: u32) -> vec2<u32> {
    var best = vec2<u32>(0u, ALL);
    for (var i = lid; i < params.chunks; i += WG) {
        let entry = partial[row * params.chunks + i];
        if better(entry, best) {
            best = entry;
        }
    }
    sums[lid] = best;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lid < half && better(sums[lid + half], sums[lid]) {
            sums[lid] = sums[lid + half];
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&sums[0]);
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if row >= params.rows {
        return;
    }
    lid = t.lid;
    base = row * params.vocab;
    how = sampling[rows[row].slot];
    top = best_chunk(row);
    if how.temperature == 0.0 || how.top_k == 1u || top.x <= KEY_NEG_INF || top.x >= KEY_POS_INF {
        if lid == 0u {
            picked[row] = top.y;
        }
        return;
    }
    top_value = key_value(top.x);
    random = philox4x32(vec4<u32>(rows[row].pos + 1u, 0u, 0u, 0u), vec2<u32>(how.seed_lo, how.seed_hi)).x;

    cut_key = KEY_NEG_INF + 1u;
    cut_id = ALL;
    let only_p = how.top_k == 0u && how.top_p < 1.0;
    var whole = vec2<u32>(0u);
    if only_p {
        whole = total(SHARE);
    }
    let floor = floor_key(row, whole);
    if only_p && params.vocab > CAP {
        // A guess that leaves a few hundred tokens: right where those have the mass wanted.
        let guess = kth_chunk_key(row, max(min(params.chunks, WG) * 3u / 4u, 1u));
        if guess > max(floor, KEY_NEG_INF) {
            let n = gather(row, guess);
            if n <= CAP && enough(n, whole) {
                pick_gathered(row, n, whole);
                return;
            }
        }
    }
    if floor > KEY_NEG_INF || params.vocab <= CAP {
        let n = gather(row, max(floor, KEY_NEG_INF + 1u));
        if n <= CAP {
            pick_gathered(row, n, whole);
            return;
        }
    }
    pick_whole(row);
}
