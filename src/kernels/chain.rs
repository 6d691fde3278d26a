//! Products of a decode step that become one dispatch: a chain (`src/gpu/chain.rs`). Attention's output product, gate and up, down, those of chosen experts
//! too, and the product that reads what they leave; where that makes logits, the choice of the largest as well. Rows as bytes or as numbers, logits of
//! a router, and the residual stream go from one stage to the next by tagged words (`shaders/lib/chain.wgsl`).

use crate::error::Result;
use crate::gpu::{Buffer, Chain, Gpu, Held, Kernel, Recorder, Stage, linear_grid};
use crate::kernels::chain_best::Best;
use crate::kernels::constants::{CHAIN_BEST_WORDS, CHAIN_BESTS, CHAIN_BYTE_WORDS, CHAIN_NUMBER_WORDS};
use crate::kernels::matmul::MATMUL_VEC;
use crate::kernels::matmul_fused::{MATMUL_GLU, MATMUL_NEXT};
use crate::kernels::moe::MOE_ROUTE;
use crate::kernels::moe_few::{MOE_DOWN, MOE_GLU};
use crate::kernels::sample::{SAMPLE_ARGMAX, SAMPLE_GREEDY};
use crate::quant::{GPU_BLOCK, by_name};

/// Where the first word stands: after the one by which waits are given up.
const FIRST_WORD: u64 = 64;
/// Bytes of workgroup memory for a word of four; for a block's scale and squares; for what stages find experts by; and for what they have beside.
const FOUR_BYTES: u32 = 16;
const BLOCK_BYTES: u32 = 12;
const ROUTE_BYTES: u32 = 13 << 10;
const OTHER_BYTES: u32 = 12 << 10;

/// Workgroups that keep a large device busy for a while.
const TILES_FROM: u32 = 480;

/// How a block of 32 numbers goes from stage to stage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bytes,
    Numbers,
}

impl Form {
    /// Words of a block with what goes with it.
    fn words(self) -> u64 {
        match self {
            Self::Bytes => CHAIN_BYTE_WORDS.into(),
            Self::Numbers => CHAIN_NUMBER_WORDS.into(),
        }
    }

    /// Words of four that a block takes up in a workgroup's memory.
    const fn fours(self) -> u32 {
        match self {
            Self::Bytes => 2,
            Self::Numbers => 8,
        }
    }

    /// What the shader calls the first of the words that a stage sends.
    const fn place(self) -> &'static str {
        match self {
            Self::Bytes => "CHAIN_OUT_AT",
            Self::Numbers => "NUMBERS_OUT_AT",
        }
    }

    /// What a product takes that may be a stage: numbers go to single elements only.
    fn taken(held: &Held) -> Option<Self> {
        let elements = held.variant.fragment("weight").and_then(by_name).is_some_and(|f| !f.has_bytes());
        match held.variant.has("BYTES") || is(held, &MOE_GLU) || is(held, &MOE_DOWN) {
            true => Some(Self::Bytes),
            false => elements.then_some(Self::Numbers),
        }
    }
}

/// The rows that a product makes for others, and their buffers: those of gate and up are as wide as whole blocks.
fn made(held: &Held) -> Vec<(Form, u64)> {
    let [wg, team] = ["WG", "TEAM"].map(|n| held.variant.constant(n).unwrap_or(1));
    let blocks = |n: u32| n.is_multiple_of(GPU_BLOCK as u32) && (wg / team).is_multiple_of(GPU_BLOCK as u32);
    let bytes = held.buffer("byte_quants");
    let y = is(held, &MATMUL_GLU) && bytes.is_none() && held.param("n").is_some_and(blocks);
    let numbers = held.buffer(if y { "y" } else { "number_rows" });
    [(Form::Bytes, bytes), (Form::Numbers, numbers)].into_iter().filter_map(|(f, b)| Some((f, b?))).collect()
}

/// Rows that a product makes, those of gate and up of experts one for each use of one; and blocks of a row.
fn shape_made(held: &Held) -> Option<[u32; 2]> {
    let rows = match is(held, &MOE_GLU) || is(held, &MOE_DOWN) {
        true => held.param("groups")? / held.param("row_groups")?,
        false => held.param("t_rows")?,
    };
    Some([rows, held.param("n")? / GPU_BLOCK as u32])
}

/// Rows of `x` that a product takes, and how many of them a workgroup takes.
fn rows_taken(held: &Held) -> Option<[u32; 2]> {
    let [made, _] = shape_made(held)?;
    if is(held, &MOE_DOWN) {
        let used = held.variant.constant("N_USED")?;
        return Some([made * used, used]);
    }
    if is(held, &MOE_GLU) { Some([made / held.param("share")?, 1]) } else { Some([made, held.variant.constant("NT")?]) }
}

/// Tiles of rows that a workgroup makes of a product that waits for one group of rows of `x`: some, where there are many more than run at the same time,
/// since each workgroup waits for itself.
fn tiles(held: &Held) -> Option<u32> {
    let groups = held.param("groups")?;
    let one = held.param("t_rows")? <= held.variant.constant("NT")?;
    Some(if one { (groups / TILES_FROM).clamp(1, 4) } else { 1 })
}

/// Whether a row of `k` numbers has room beside what else a workgroup of a stage keeps.
pub(super) fn number_rows_fit(gpu: &Gpu, k: u32) -> bool {
    let blocks = k.div_ceil(GPU_BLOCK as u32);
    rows_bytes(blocks * Form::Numbers.fours(), blocks) + OTHER_BYTES <= gpu.workgroup_bytes()
}

fn rows_bytes(fours: u32, blocks: u32) -> u32 {
    fours * FOUR_BYTES + blocks * BLOCK_BYTES
}

/// Parts of results that a workgroup of a stage keeps, as `lib/team.wgsl` has it, and numbers for the rows that it makes.
fn beside(gpu: &Gpu, held: &Held) -> [u32; 2] {
    let [wg, team, reduce, nt] = ["WG", "TEAM", "REDUCE", "NT"].map(|n| held.variant.constant(n).unwrap_or(1));
    let joined = if gpu.features().subgroups { reduce } else { 1 };
    let pair = is(held, &MATMUL_GLU) || is(held, &MOE_GLU);
    let quad = held.variant.has("QUAD");
    let values = if quad { 4 } else { 1 + u32::from(pair) } + u32::from(held.variant.has("NORM"));
    let teams = wg / team;
    // The best of each subgroup.
    if is(held, &SAMPLE_GREEDY) {
        return [0, wg / 2];
    }
    // Collected results, largest numbers and bytes.
    let made =
        if is(held, &MATMUL_VEC) { 0 } else { 192 * (teams * if quad { 4 } else { 1 } / GPU_BLOCK as u32).max(1) };
    [teams * ((team / joined) | 1) * nt * values, made]
}

/// Chains between two clearings of their words: tags are bytes, and 0 is none.
pub const MAX_CHAINS: u32 = 255;

/// What the words depend on that a model's chains of products need.
#[derive(Debug, Clone, Copy)]
pub struct ChainWidths {
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Widest input of a block's second product, of all experts that a row uses.
    pub inner: u32,
    /// Experts of a layer, at most; 0 without.
    pub experts: u32,
    /// Logits of a row.
    pub vocab: u32,
    /// Whether all weights but routers have quants.
    pub quants: bool,
}

impl ChainWidths {
    /// Words for `rows` rows.
    pub fn words(&self, rows: u32) -> u64 {
        let blocks = |cols: u32| u64::from(cols).div_ceil(GPU_BLOCK as u64);
        let form = if self.quants { Form::Bytes } else { Form::Numbers };
        let (embd, inner) = (blocks(self.n_embd), blocks(self.inner));
        // A router takes numbers where its experts take bytes.
        let routed = match self.experts {
            0 => 0,
            n => embd * (Form::Bytes.words() + Form::Numbers.words()) + 2 * u64::from(n),
        };
        // Of four logits and more an entry each, as many as subgroups have threads, and of the last workgroup's rows.
        let bests = u64::from(CHAIN_BEST_WORDS * ((self.vocab + 1024) / 4).min(CHAIN_BESTS));
        FIRST_WORD + u64::from(rows) * ((2 * embd + inner) * form.words() + 2 * u64::from(self.n_embd) + routed) + bests
    }
}

pub(super) fn is(held: &Held, kernel: &Kernel) -> bool {
    std::ptr::eq(held.kernel, kernel)
}

/// Rows that stages send.
struct Rows {
    /// The buffer that would have them.
    buffer: u64,
    by: usize,
    form: Form,
    /// Where their words stand, if someone reads them.
    at: Option<u64>,
}

/// The choice of experts, which every stage makes by itself that needs it.
struct Route {
    ids: u64,
    flags: Vec<&'static str>,
    constants: [(&'static str, u32); 4],
}

/// Stages while they are put together.
pub(super) struct Joining {
    pub(super) stages: Vec<Stage>,
    rows: Vec<Rows>,
    /// The residual stream's buffer, and the stage that wrote it last.
    stream: Option<(u64, usize)>,
    route: Option<Route>,
    pub(super) best: Option<Best>,
    /// The first word that is free.
    next: u64,
    /// Words of four, and blocks, that a workgroup of any stage takes at a time.
    most: [u32; 2],
}

impl Joining {
    pub(super) fn take_words(&mut self, n: u64) -> u64 {
        self.next += n;
        self.next - n
    }

    /// Number `i` of the dispatches, if it reads nothing of those before it but what they can send.
    fn add(&mut self, i: usize, h: &Held) -> Option<()> {
        if is(h, &MOE_ROUTE) {
            self.route = Some(self.routed(h)?);
            return Some(());
        }
        if is(h, &SAMPLE_ARGMAX) {
            self.best = Some(self.best_of(h)?);
            return Some(());
        }
        if is(h, &SAMPLE_GREEDY) {
            return self.choose(h);
        }
        let known = [&MATMUL_NEXT, &MATMUL_GLU, &MATMUL_VEC, &MOE_GLU, &MOE_DOWN].iter().any(|k| is(h, k));
        // Where rows are staged, workgroups have sizes of their own.
        if !known || ["ACCUMULATE", "TAIL", "STAGED"].iter().any(|f| h.variant.has(f)) {
            return None;
        }
        let mut stage = Stage { held: h.clone(), flags: Vec::new(), constants: Vec::new() };
        if i > 0 {
            self.receive(&mut stage)?;
        }
        if let Some(route) = self.route.as_ref().filter(|r| h.buffer("ids") == Some(r.ids)) {
            stage.flags.extend(&route.flags);
            stage.constants.extend(route.constants);
        }
        let by = self.stages.len();
        for (form, buffer) in made(h) {
            // Parts of one product: who reads them would wait for the last one only.
            if self.rows.iter().any(|e| e.buffer == buffer && e.at.is_none()) {
                return None;
            }
            self.rows.push(Rows { buffer, by, form, at: None });
        }
        if is(h, &MATMUL_NEXT) || is(h, &MOE_DOWN) {
            let y = h.buffer("y")?;
            match self.stream.replace((y, by)) {
                None => {}
                Some((before, by)) if before == y => {
                    let words = 2 * u64::from(shape_made(h)?[0]) * u64::from(h.param("y_stride")?);
                    let at = self.take_words(words) as u32;
                    self.send_y(by, at)?;
                    stage.flags.push("CHAIN_Y_IN");
                    stage.constants.push(("CHAIN_Y_IN_AT", at));
                }
                Some(_) => return None,
            }
        }
        self.stages.push(stage);
        Some(())
    }

    /// Has stage `by` leave its `y` in words from `at` on. Once: it has one place for it.
    fn send_y(&mut self, by: usize, at: u32) -> Option<()> {
        let stage = self.stages.get_mut(by).filter(|s| !s.flags.contains(&"CHAIN_Y_OUT"))?;
        if !is(&stage.held, &MATMUL_NEXT) && !is(&stage.held, &MATMUL_VEC) {
            return None;
        }
        stage.flags.push("CHAIN_Y_OUT");
        stage.constants.push(("CHAIN_Y_OUT_AT", at));
        Some(())
    }

    /// Has a stage take its `x` from the one that makes it.
    fn receive(&mut self, stage: &mut Stage) -> Option<()> {
        let h = &stage.held;
        let (form, blocks, from) = (Form::taken(h)?, h.variant.constant("K_BLOCKS")?, h.buffer("x")?);
        let [rows, at_once] = rows_taken(h)?;
        self.most[0] = self.most[0].max(blocks * at_once * form.fours());
        self.most[1] = self.most[1].max(blocks * at_once);
        let sent = self.rows.iter().rposition(|e| e.buffer == from && e.form == form)?;
        // Whole rows, one after another, and not those of one part of a weight.
        let dense = form == Form::Bytes || (h.param("x_offset4") == Some(0) && h.param("x_stride4") == h.param("k4"));
        let by = &self.stages[self.rows[sent].by].held;
        if !dense || shape_made(by) != Some([rows, blocks]) {
            return None;
        }
        let at = match self.rows[sent].at {
            Some(at) => at,
            None => {
                let at = self.take_words(u64::from(rows) * u64::from(blocks) * form.words());
                let by = &mut self.stages[self.rows[sent].by];
                if !by.flags.contains(&"CHAIN_OUT") {
                    by.flags.push("CHAIN_OUT");
                }
                by.constants.push((form.place(), at as u32));
                self.rows[sent].at = Some(at);
                at
            }
        };
        stage.flags.push("CHAIN_IN");
        stage.constants.push(("CHAIN_IN_AT", at as u32));
        if is(&stage.held, &MATMUL_VEC) {
            let tiles = tiles(&stage.held)?;
            let groups = stage.held.param("groups")?.div_ceil(tiles);
            stage.held.grid = linear_grid(groups.into());
            stage.constants.push(("CHAIN_TILES", tiles));
        }
        Some(())
    }

    /// The choice of experts by logits that a stage makes.
    fn routed(&mut self, h: &Held) -> Option<Route> {
        let logits = h.buffer("logits")?;
        let by = self.stages.iter().position(|s| is(&s.held, &MATMUL_VEC) && s.held.buffer("y") == Some(logits))?;
        let [n, used, stride, offset] = ["n_expert", "n_used", "stride", "offset"].map(|name| h.param(name));
        let router = &self.stages[by].held;
        let dense = stride == n && offset == Some(0) && router.param("y_stride") == n;
        if !dense || router.param("n") != n || router.param("y_offset") != Some(0) || self.route.is_some() {
            return None;
        }
        let at = self.take_words(2 * u64::from(n?) * u64::from(h.param("rows")?)) as u32;
        self.send_y(by, at)?;
        let mut flags = vec!["ROUTE_IN"];
        flags.extend(h.variant.flags.iter().filter(|f| **f == "RENORMALIZE"));
        let scale = h.param("scale")?;
        let constants = [("ROUTE_AT", at), ("ROUTE_EXPERTS", n?), ("ROUTE_USED", used?), ("ROUTE_SCALE", scale)];
        Some(Route { ids: h.buffer("ids")?, flags, constants })
    }

    /// Whether all that stages send is read: a stage that sends rows sends all of them, and buffers have none.
    fn all_read(&self) -> bool {
        let sends = |by: usize| self.stages[by].flags.contains(&"CHAIN_OUT");
        self.rows.iter().all(|r| r.at.is_some() || !sends(r.by)) && self.best.as_ref().is_none_or(|b| b.read)
    }

    /// Whether something after the stages reads what they send by words alone: rows, or the choice of experts.
    fn missed(&self, later: &[Held]) -> bool {
        let mut sent: Vec<u64> = self.rows.iter().filter(|r| r.at.is_some()).map(|r| r.buffer).collect();
        for h in later {
            if h.buffer("x").is_some_and(|x| sent.contains(&x)) {
                return true;
            }
            sent.retain(|b| made(h).iter().all(|m| m.1 != *b));
        }
        let summed = |s: &Stage| is(&s.held, &MOE_DOWN) && s.flags.contains(&"ROUTE_IN");
        self.route.is_some() && !self.stages.iter().any(summed)
    }
}

/// The first of the dispatches, as many as there are before `later`, as stages of a chain, with words from number `at` on, before `end`, and the next
/// free one; or `None` if they are not such that each reads what one before it leaves.
fn join(gpu: &Gpu, held: &[Held], later: &[Held], words: &Buffer, [at, end]: [u64; 2]) -> Option<(Chain, u64)> {
    let (stages, rows) = (Vec::new(), Vec::new());
    let mut all = Joining { stages, rows, stream: None, route: None, best: None, next: at, most: [0; 2] };
    for (i, h) in held.iter().enumerate() {
        all.add(i, h)?;
    }
    let route = if all.route.is_some() { ROUTE_BYTES } else { 0 };
    let [fours, blocks] = all.most;
    // Stages share the memory for parts, and have their own for the rest.
    let [parts, made] =
        all.stages.iter().map(|s| beside(gpu, &s.held)).fold([0; 2], |a, b| [a[0].max(b[0]), a[1] + b[1]]);
    let memory = rows_bytes(fours, blocks) + route + 4 * (parts + made);
    for s in &mut all.stages {
        s.flags.push("CHAINED");
        s.constants.push(("CHAIN_PARTS", parts));
    }
    let whole = all.stages.len() > 1 && all.all_read() && !all.missed(later) && !meet(&all.stages);
    if !whole || memory > gpu.workgroup_bytes() {
        return None;
    }
    let stages = all.stages.into_iter().map(|s| bind(s, words, all.most)).collect::<Option<Vec<_>>>()?;
    let shared = &[
        "chain_x",
        "chain_scales",
        "chain_squares",
        "team_parts",
        "route_keys",
        "route_places",
        "route_ids",
        "route_weights",
        "reduce_scratch",
    ];
    let chain = Chain { stages, shared, ahead: |name| name.starts_with("w_") };
    (all.next <= end && fits(gpu, &chain, words, all.next)).then_some((chain, all.next))
}

/// Whether a device can run it as one dispatch, and what it passes on ends in `words` before word `end`.
pub(super) fn fits(gpu: &Gpu, chain: &Chain, words: &Buffer, end: u64) -> bool {
    let bindings = chain.stages.iter().map(|s| s.held.bindings.len()).sum::<usize>();
    let bound = bindings <= gpu.max_storage_bindings() as usize;
    bound && end * 4 <= words.size() && chain.groups().is_some() && chain.threads().is_some()
}

/// All of the words, as shaders bind them.
pub(super) fn whole(words: &Buffer) -> (&'static str, Buffer, u64, u64) {
    ("chain_words", words.clone(), 0, words.size())
}

/// What a stage sends by words instead of writing it, and what it takes by them instead of reading it.
const SENT: [&str; 4] = ["byte_quants", "byte_scales", "number_rows", "block_sums"];
const TAKEN: [&str; 3] = ["x", "x_scales", "row_sums"];
const ROUTED: [&str; 2] = ["ids", "weights"];

/// Whether a stage writes its `y` by words alone, and has no variable for it.
fn y_by_words(s: &Stage) -> bool {
    let [rows, y] = ["CHAIN_OUT", "CHAIN_Y_OUT"].map(|f| s.flags.contains(&f));
    (rows && is(&s.held, &MATMUL_GLU)) || (y && is(&s.held, &MATMUL_VEC))
}

/// Whether stages meet in a buffer other than by words: no one of them waits for that. Parts of one product write different columns.
fn meet(stages: &[Stage]) -> bool {
    let of = |s: &Stage, names: &[&str]| names.iter().filter_map(|n| s.held.buffer(n)).collect::<Vec<_>>();
    let has = |s: &Stage, flag: &str| s.flags.contains(&flag);
    let written = |s: &Stage| {
        let rows: &[&str] = if has(s, "CHAIN_OUT") { &[] } else { &SENT };
        let y: &[&str] = if y_by_words(s) || has(s, "CHAIN_Y_OUT") { &[] } else { &["y"] };
        of(s, &[rows, y].concat())
    };
    let read = |s: &Stage| {
        let rows: &[&str] = if has(s, "CHAIN_IN") { &[] } else { &TAKEN };
        let routed: &[&str] = if has(s, "ROUTE_IN") { &[] } else { &ROUTED };
        of(s, &[rows, routed, &["norm_w", "next_w", "bias", "gate", "shared_y"]].concat())
    };
    let pairs = stages.iter().enumerate().flat_map(|(i, a)| stages.iter().skip(i + 1).map(move |b| (a, b)));
    let clash = |a: &[u64], b: &[u64]| a.iter().any(|x| b.contains(x));
    pairs.into_iter().any(|(a, b)| {
        let parts = is(&a.held, &MATMUL_VEC) && is(&b.held, &MATMUL_VEC);
        clash(&written(a), &read(b)) || clash(&read(a), &written(b)) || (!parts && clash(&written(a), &written(b)))
    })
}

/// Binds the words in the place of what goes by them: where the shader's text first speaks of them.
fn bind(mut stage: Stage, words: &Buffer, [fours, blocks]: [u32; 2]) -> Option<Stage> {
    let has = |flag: &str| stage.flags.contains(&flag);
    if has("CHAIN_BEST_IN") {
        stage.held.bindings.iter_mut().filter(|b| b.0 == "partial").for_each(|b| *b = whole(words));
        return Some(stage);
    }
    let (takes, routed) = (has("CHAIN_IN"), has("ROUTE_IN"));
    let sends = has("CHAIN_OUT") || has("CHAIN_Y_OUT") || has("CHAIN_Y_IN");
    let (rows, y) = (has("CHAIN_OUT"), y_by_words(&stage));
    let bindings = &mut stage.held.bindings;
    let x = bindings.iter().position(|b| b.0 == "x")?;
    match (routed, takes, sends) {
        (true, ..) => bindings.insert(0, whole(words)),
        (_, true, _) => bindings.insert(x, whole(words)),
        (.., true) => bindings.push(whole(words)),
        _ => {}
    }
    let by_words = |name: &str| {
        (takes && TAKEN.contains(&name))
            || (routed && ROUTED.contains(&name))
            || (rows && SENT.contains(&name))
            || (y && name == "y")
    };
    bindings.retain(|b| !by_words(b.0));
    if takes {
        stage.constants.extend([("CHAIN_FOURS", fours), ("CHAIN_BLOCKS", blocks)]);
    }
    Some(stage)
}

/// Records what `r` holds back: as one dispatch if it can be, else as few as that. Of `words` those before `end` ([`ChainWidths::words`]) are cleared
/// before tags are used again; `tag` is 1 to [`MAX_CHAINS`].
///
/// # Errors
/// As [`Recorder::record`].
pub fn record_chain(r: &mut Recorder<'_>, words: &Buffer, end: u64, tag: u32) -> Result<()> {
    let held = r.take_held();
    let tag = u8::try_from(tag).ok().filter(|t| *t > 0);
    // Chains of one tag have words of their own.
    let (mut first, mut at) = (0, FIRST_WORD);
    while first < held.len() {
        let chain = |upto: usize| Some((upto, join(r.gpu(), &held[first..upto], &held[upto..], words, [at, end])?));
        let longest = tag.and_then(|tag| Some((tag, (first + 2..=held.len()).rev().find_map(chain)?)));
        match longest {
            Some((tag, (upto, (chain, next)))) => {
                r.record_chain("layer.products", chain, tag)?;
                (first, at) = (upto, next);
            }
            None => {
                r.record_held(&held[first..=first])?;
                first += 1;
            }
        }
    }
    Ok(())
}
