//! Products of a decode step that become one dispatch: a chain (`src/gpu/chain.rs`). Attention's output product, gate and up, down, or of chosen experts
//! gate and up, and down, and the product that reads what they leave: rows as bytes or as numbers, and the residual stream, go from one stage to the next by tagged words
//! (`shaders/lib/chain.wgsl`).

use crate::error::Result;
use crate::gpu::{Buffer, Chain, Gpu, Held, Recorder, Stage};
use crate::kernels::attention_decode::{ATTENTION_COMBINE, ATTENTION_DECODE, joined_vectors};
use crate::kernels::matmul::MATMUL_VEC;
use crate::kernels::matmul_fused::{MATMUL_GLU, MATMUL_NEXT};
use crate::kernels::moe_few::{MOE_DOWN, MOE_GLU};
use crate::quant::{GPU_BLOCK, by_name};

/// Where the first word stands: after the one by which waits are given up.
const FIRST_WORD: u64 = 64;
/// Bytes of workgroup memory for a word of four; for a block's scale and squares; and for what the stages have beside.
const FOUR_BYTES: u32 = 16;
const BLOCK_BYTES: u32 = 12;
const OTHER_BYTES: u32 = 12 << 10;

/// How a block of 32 numbers goes from stage to stage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bytes,
    Numbers,
}

impl Form {
    /// Words of a block with what goes with it. As the shader has it.
    const fn words(self) -> u64 {
        match self {
            Self::Bytes => 13,
            Self::Numbers => 49,
        }
    }

    /// Words of four that a block takes up in a workgroup's memory.
    const fn fours(self) -> u32 {
        match self {
            Self::Bytes => 2,
            Self::Numbers => 8,
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

/// Rows of `x` that a product takes, and how many of them a workgroup takes.
fn rows_of(held: &Held) -> Option<[u32; 2]> {
    if !is(held, &MOE_DOWN) {
        return Some([held.param("t_rows")?, held.variant.constant("NT")?]);
    }
    let used = held.variant.constant("N_USED")?;
    Some([held.param("groups")? / held.param("row_groups")? * used, used])
}

/// Whether a row of `k` numbers has room beside what else a workgroup of a stage keeps.
pub(super) fn number_rows_fit(gpu: &Gpu, k: u32) -> bool {
    let blocks = k.div_ceil(GPU_BLOCK as u32);
    memory(blocks * Form::Numbers.fours(), blocks) <= gpu.workgroup_bytes()
}

fn memory(fours: u32, blocks: u32) -> u32 {
    fours * FOUR_BYTES + blocks * BLOCK_BYTES + OTHER_BYTES
}

/// Chains between two clearings of their words: tags are bytes, and 0 is none.
pub const MAX_CHAINS: u32 = 255;

/// Words that the chains of a model need for `rows` rows whose residual stream is `n_embd` wide, and the widest input of a block's second product `inner`;
/// of weights with quants alone, or of others too.
pub fn chain_words(rows: u32, n_embd: u32, inner: u32, quants: bool) -> u64 {
    let form = if quants { Form::Bytes } else { Form::Numbers };
    let blocks = |cols: u32| u64::from(cols).div_ceil(GPU_BLOCK as u64) * form.words();
    FIRST_WORD + u64::from(rows) * (2 * blocks(n_embd) + blocks(inner) + 2 * u64::from(n_embd))
}

/// What stages send, while they are put together.
#[derive(Default)]
struct Sent {
    /// By the buffer that would have the rows: which stage makes them, their form, and where their words stand, if someone reads them.
    rows: Vec<(u64, usize, Form, Option<u64>)>,
    /// The residual stream's buffer, and the stage that wrote it last.
    stream: Option<(u64, usize)>,
    /// The first word that is free.
    next: u64,
}

fn is(held: &Held, kernel: &crate::gpu::Kernel) -> bool {
    std::ptr::eq(held.kernel, kernel)
}

/// The dispatches as stages of a chain, or `None` if they are not such that each reads what one before it leaves.
fn join(gpu: &Gpu, held: &[Held], words: &Buffer) -> Option<Chain> {
    let mut stages: Vec<Stage> = Vec::new();
    let mut sent = Sent { next: FIRST_WORD, ..Sent::default() };
    let mut most = [0; 2];
    for (i, h) in held.iter().enumerate() {
        let stages_of = [&MATMUL_NEXT, &MATMUL_GLU, &MATMUL_VEC, &MOE_GLU, &MOE_DOWN];
        let known = stages_of.iter().any(|k| is(h, k)) && (i == 0 || !is(h, &MOE_GLU));
        if !known || h.variant.has("ACCUMULATE") || h.variant.has("TAIL") {
            return None;
        }
        let (taken, blocks) = (Form::taken(h)?, h.variant.constant("K_BLOCKS")?);
        let mut stage = Stage { held: h.clone(), flags: Vec::new(), constants: Vec::new() };
        if i > 0 {
            let from = h.buffer("x")?;
            let (_, by, _, at) = sent.rows.iter_mut().rev().find(|e| e.0 == from && e.2 == taken)?;
            let [rows, at_once] = rows_of(h)?;
            let at_once = blocks * at_once;
            most = [most[0].max(at_once * taken.fours()), most[1].max(at_once)];
            if at.is_none() {
                *at = Some(sent.next);
                sent.next += u64::from(rows) * u64::from(blocks) * taken.words();
                stages[*by].flags.push("CHAIN_OUT");
                stages[*by].constants.push(("CHAIN_OUT_AT", (*at)? as u32));
            }
            stage.flags.push("CHAIN_IN");
            stage.constants.push(("CHAIN_IN_AT", (*at)? as u32));
        }
        if let Some((form, buffer)) = made(h) {
            // Parts of one product: who reads them would wait for the last one only.
            if sent.rows.iter().any(|e| e.0 == buffer && e.3.is_none()) {
                return None;
            }
            sent.rows.push((buffer, i, form, None));
        }
        if is(h, &MATMUL_NEXT) || is(h, &MOE_DOWN) {
            let y = h.buffer("y")?;
            match sent.stream.replace((y, i)) {
                None => {}
                Some((before, by)) if before == y && passes_y(&stages[by]) && is(h, &MATMUL_NEXT) => {
                    let (stride, at) = (u64::from(h.param("y_stride")?), sent.next);
                    sent.next += 2 * u64::from(rows_of(h)?[0]) * stride;
                    stages[by].flags.extend(["CHAIN_Y", "CHAIN_Y_OUT"]);
                    stages[by].constants.push(("CHAIN_Y_AT", at as u32));
                    stage.flags.extend(["CHAIN_Y", "CHAIN_Y_IN"]);
                    stage.constants.push(("CHAIN_Y_AT", at as u32));
                }
                Some(_) => return None,
            }
        }
        stages.push(stage);
    }
    let chain =
        Chain { stages, shared: &["chain_x", "chain_scales", "chain_squares"], ahead: |name| name.starts_with("w_") };
    if held.len() < 2 || meet(&chain.stages) || memory(most[0], most[1]) > gpu.workgroup_bytes() {
        return None;
    }
    let stages = chain.stages.into_iter().map(|s| bind(s, words, most)).collect::<Option<Vec<_>>>()?;
    let chain = Chain { stages, ..chain };
    fits(gpu, &chain, words, sent.next).then_some(chain)
}

/// Whether a stage can leave the residual stream to a later one. Once: it has one place for it.
fn passes_y(stage: &Stage) -> bool {
    is(&stage.held, &MATMUL_NEXT) && !stage.flags.contains(&"CHAIN_Y")
}

/// The rows that a product makes for another one, and their buffer: those of gate and up are as wide as whole blocks.
fn made(held: &Held) -> Option<(Form, u64)> {
    if let Some(bytes) = held.buffer("byte_quants") {
        return Some((Form::Bytes, bytes));
    }
    let [wg, team] = ["WG", "TEAM"].map(|n| held.variant.constant(n).unwrap_or(1));
    let blocks = |n: u32| n.is_multiple_of(GPU_BLOCK as u32) && (wg / team).is_multiple_of(GPU_BLOCK as u32);
    let whole = is(held, &MATMUL_GLU) && held.param("n").is_some_and(blocks);
    let numbers = held.buffer(if whole { "y" } else { "number_rows" })?;
    Some((Form::Numbers, numbers))
}

/// Whether a device can run it as one dispatch, and what it passes on ends in `words` before word `end`.
fn fits(gpu: &Gpu, chain: &Chain, words: &Buffer, end: u64) -> bool {
    let bindings = chain.stages.iter().map(|s| s.held.bindings.len()).sum::<usize>();
    let bound = bindings <= gpu.max_storage_bindings() as usize;
    bound && end * 4 <= words.size() && chain.groups().is_some() && chain.threads().is_some()
}

/// All of the words, as shaders bind them.
fn whole(words: &Buffer) -> (&'static str, Buffer, u64, u64) {
    ("chain_words", words.clone(), 0, words.size())
}

/// Whether stages meet in a buffer other than by words: no one of them waits for that. Parts of one product write different columns.
fn meet(stages: &[Stage]) -> bool {
    let of = |s: &Stage, names: &[&str]| names.iter().filter_map(|n| s.held.buffer(n)).collect::<Vec<_>>();
    let sends = |s: &Stage| s.flags.contains(&"CHAIN_OUT");
    let written = |s: &Stage| {
        let (glu, by_words) = (is(&s.held, &MATMUL_GLU), sends(s));
        let mut names = if by_words { vec![] } else { vec!["byte_quants", "byte_scales", "number_rows", "block_sums"] };
        if !(by_words && glu || s.flags.contains(&"CHAIN_Y_OUT")) {
            names.push("y");
        }
        of(s, &names)
    };
    let read = |s: &Stage| {
        let rows: &[&str] = match s.flags.contains(&"CHAIN_IN") {
            true => &[],
            false => &["x", "x_scales", "row_sums", "norm_w"],
        };
        of(s, &[rows, &["next_w", "bias", "ids", "weights", "gate", "shared_y"]].concat())
    };
    let pairs = stages.iter().enumerate().flat_map(|(i, a)| stages.iter().skip(i + 1).map(move |b| (a, b)));
    let clash = |a: &[u64], b: &[u64]| a.iter().any(|x| b.contains(x));
    pairs.into_iter().any(|(a, b)| {
        let parts = is(&a.held, &MATMUL_VEC) && is(&b.held, &MATMUL_VEC);
        clash(&written(a), &read(b)) || clash(&read(a), &written(b)) || (!parts && clash(&written(a), &written(b)))
    })
}

/// Binds the words in the place of what goes by them.
fn bind(mut stage: Stage, words: &Buffer, [fours, blocks]: [u32; 2]) -> Option<Stage> {
    let (takes, sends) = (stage.flags.contains(&"CHAIN_IN"), stage.flags.contains(&"CHAIN_OUT"));
    let glu = is(&stage.held, &MATMUL_GLU);
    let bindings = &mut stage.held.bindings;
    if takes {
        let x = bindings.iter().position(|b| b.0 == "x")?;
        bindings[x] = whole(words);
        bindings.retain(|b| !["x_scales", "row_sums"].contains(&b.0));
        stage.constants.extend([("CHAIN_FOURS", fours), ("CHAIN_BLOCKS", blocks)]);
    }
    if sends {
        let rows = ["byte_quants", "byte_scales", "number_rows", "block_sums"];
        let by_words = |name| rows.contains(&name) || (glu && name == "y");
        bindings.retain(|b| !by_words(b.0));
        if !takes {
            bindings.push(whole(words));
        }
    }
    Some(stage)
}

/// Words for the parts of split attention that becomes a chain, where a buffer for its sums has `sums_bytes`.
pub fn attention_chain_words(sums_bytes: u64) -> u64 {
    // A sum of four numbers, its top and its weights.
    6 * (sums_bytes / 16)
}

/// Split attention and its combination as a chain, `None` if what is held is something else; the parts stand in `words` from word `at` on.
fn join_attention(gpu: &Gpu, held: &[Held], words: &Buffer, at: u64) -> Option<Chain> {
    let [rows, combine] = held else { return None };
    let split = is(rows, &ATTENTION_DECODE) && rows.variant.has("SPLIT") && is(combine, &ATTENTION_COMBINE);
    if !split || rows.buffer("y") != combine.buffer("sums") {
        return None;
    }
    let room = attention_chain_words(rows.bindings.iter().find(|b| b.0 == "y")?.3);
    let stage = |held: &Held, flag, old: &str| {
        let mut held = held.clone();
        let place = held.bindings.iter().position(|b| b.0 == old)?;
        held.bindings[place] = whole(words);
        held.bindings.retain(|b| b.0 != "tops");
        Some(Stage { held, flags: vec![flag], constants: vec![("PARTS_AT", at as u32), ("PARTS", (room / 6) as u32)] })
    };
    let stages = vec![stage(rows, "CHAIN_OUT", "y")?, stage(combine, "CHAIN_IN", "sums")?];
    // The combination takes what attention lays out.
    let [wg, head, g] = ["WG", "HEAD_DIM", "G"].map(|n| rows.variant.constant(n).unwrap_or(0));
    let vectors = match (rows.variant.has("SHUFFLE") && gpu.features().subgroups).then_some(rows) {
        Some(r) => {
            let [lanes, at_once, least] =
                ["LANES", "AT_ONCE", "LEAST_SUBGROUP"].map(|n| r.variant.constant(n).unwrap_or(1));
            at_once * joined_vectors(wg, head, lanes, least)
        }
        None => wg,
    };
    if vectors < wg || (rows.variant.has("FRESH") && (g + 2) * head < 2 * wg) {
        return None;
    }
    let chain = Chain { stages, shared: &["scratch", "fresh"], ahead: |_| false };
    fits(gpu, &chain, words, at + room).then_some(chain)
}

/// Records what `r` holds back, [`crate::kernels::attention_split`]: as one dispatch if it can be. `words` have [`attention_chain_words`] from word
/// `at` on, all 0, and they are 0 again afterwards.
///
/// # Errors
/// As [`Recorder::record`].
pub fn record_attention_chain(r: &mut Recorder<'_>, label: &'static str, words: &Buffer, at: u64) -> Result<()> {
    let held = r.take_held();
    match join_attention(r.gpu(), &held, words, at) {
        // These words have no tag.
        Some(chain) => r.record_chain(label, chain, 1),
        None => r.record_held(&held),
    }
}

/// Records what `r` holds back: as one dispatch if it can be, else as it was. `words` have room ([`chain_words`]) and are cleared before tags are used
/// again; `tag` is 1 to [`MAX_CHAINS`].
///
/// # Errors
/// As [`Recorder::record`].
pub fn record_chain(r: &mut Recorder<'_>, words: &Buffer, tag: u32) -> Result<()> {
    let held = r.take_held();
    let tag = u8::try_from(tag).ok().filter(|t| *t > 0);
    let chain = tag.and_then(|t| Some((join(r.gpu(), &held, words)?, t)));
    match chain {
        Some((chain, tag)) => r.record_chain("layer.products", chain, tag),
        None => r.record_held(&held),
    }
}
