//! Products of a decode step that become one dispatch: a chain (`src/gpu/chain.rs`). Attention's output product, gate and up, down, and the product that
//! reads what they leave: bytes, and the residual stream, go from one stage to the next by tagged words (`shaders/lib/chain.wgsl`).

use crate::error::Result;
use crate::gpu::{Buffer, Chain, Gpu, Held, Recorder, Stage};
use crate::kernels::attention_decode::{ATTENTION_COMBINE, ATTENTION_DECODE, joined_vectors};
use crate::kernels::matmul::MATMUL_VEC;
use crate::kernels::matmul_fused::{MATMUL_GLU, MATMUL_NEXT};
use crate::quant::GPU_BLOCK;

/// Words of a block of 32 bytes with their scale and squares, and where the first stands: after the word by which waits are given up. As the shader has it.
const BLOCK_WORDS: u64 = 13;
const FIRST_WORD: u64 = 64;
/// Bytes of workgroup memory for a block of a row; and for what the stages have beside.
const BLOCK_BYTES: u32 = 44;
const OTHER_BYTES: u32 = 12 << 10;

/// Chains between two clearings of their words: tags are bytes, and 0 is none.
pub const MAX_CHAINS: u32 = 255;

/// Words that the chains of a model need for `rows` rows whose residual stream is `n_embd` wide, and the widest input of a block's second product `inner`.
pub fn chain_words(rows: u32, n_embd: u32, inner: u32) -> u64 {
    let blocks = |cols: u32| u64::from(cols).div_ceil(GPU_BLOCK as u64) * BLOCK_WORDS;
    FIRST_WORD + u64::from(rows) * (2 * blocks(n_embd) + blocks(inner) + 2 * u64::from(n_embd))
}

/// What stages send, while they are put together.
#[derive(Default)]
struct Sent {
    /// By the buffer that would have the bytes: which stage makes them, and where their words stand, if someone reads them.
    bytes: Vec<(u64, usize, Option<u64>)>,
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
    let mut most = 0;
    for (i, h) in held.iter().enumerate() {
        let (next, glu) = (is(h, &MATMUL_NEXT), is(h, &MATMUL_GLU));
        if !(next || glu || is(h, &MATMUL_VEC)) || !h.variant.has("BYTES") || h.variant.has("ACCUMULATE") {
            return None;
        }
        let (rows, blocks) = (u64::from(h.param("t_rows")?), h.variant.constant("K_BLOCKS")?);
        most = most.max(blocks * h.variant.constant("NT")?);
        let mut stage = Stage { held: h.clone(), flags: Vec::new(), constants: Vec::new() };
        if i > 0 {
            let from = h.buffer("x")?;
            let (_, by, at) = sent.bytes.iter_mut().rev().find(|e| e.0 == from)?;
            if at.is_none() {
                *at = Some(sent.next);
                sent.next += rows * u64::from(blocks) * BLOCK_WORDS;
                stages[*by].flags.push("CHAIN_OUT");
                stages[*by].constants.push(("CHAIN_OUT_AT", (*at)? as u32));
            }
            stage.flags.push("CHAIN_IN");
            stage.constants.push(("CHAIN_IN_AT", (*at)? as u32));
        }
        if let Some(bytes) = h.buffer("byte_quants") {
            // Parts of one product: who reads them would wait for the last one only.
            if sent.bytes.iter().any(|e| e.0 == bytes && e.2.is_none()) {
                return None;
            }
            sent.bytes.push((bytes, i, None));
        }
        if next {
            let y = h.buffer("y")?;
            match sent.stream.replace((y, i)) {
                None => {}
                // Once: a stage has one place for it.
                Some((before, by)) if before == y && stages[by].flags.iter().all(|f| *f != "CHAIN_Y") => {
                    let (stride, at) = (u64::from(h.param("y_stride")?), sent.next);
                    sent.next += 2 * rows * stride;
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
    if held.len() < 2 || meet(&chain.stages) || most * BLOCK_BYTES + OTHER_BYTES > gpu.workgroup_bytes() {
        return None;
    }
    let stages = chain.stages.into_iter().map(|s| bind(s, words, most)).collect::<Option<Vec<_>>>()?;
    let chain = Chain { stages, ..chain };
    fits(gpu, &chain, words, sent.next).then_some(chain)
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
        let mut names = if by_words { vec![] } else { vec!["byte_quants", "byte_scales", "block_sums"] };
        if !(by_words && glu || s.flags.contains(&"CHAIN_Y_OUT")) {
            names.push("y");
        }
        of(s, &names)
    };
    let read = |s: &Stage| {
        let by_words = s.flags.contains(&"CHAIN_IN");
        of(s, if by_words { &["next_w", "bias"] } else { &["x", "x_scales", "row_sums", "next_w", "bias"] })
    };
    let pairs = stages.iter().enumerate().flat_map(|(i, a)| stages.iter().skip(i + 1).map(move |b| (a, b)));
    let clash = |a: &[u64], b: &[u64]| a.iter().any(|x| b.contains(x));
    pairs.into_iter().any(|(a, b)| {
        let parts = is(&a.held, &MATMUL_VEC) && is(&b.held, &MATMUL_VEC);
        clash(&written(a), &read(b)) || clash(&read(a), &written(b)) || (!parts && clash(&written(a), &written(b)))
    })
}

/// Binds the words in the place of what goes by them.
fn bind(mut stage: Stage, words: &Buffer, most: u32) -> Option<Stage> {
    let (takes, sends) = (stage.flags.contains(&"CHAIN_IN"), stage.flags.contains(&"CHAIN_OUT"));
    let glu = is(&stage.held, &MATMUL_GLU);
    let bindings = &mut stage.held.bindings;
    if takes {
        let x = bindings.iter().position(|b| b.0 == "x")?;
        bindings[x] = whole(words);
        bindings.retain(|b| !["x_scales", "row_sums"].contains(&b.0));
        stage.constants.push(("CHAIN_BLOCKS", most));
    }
    if sends {
        let by_words = |name| ["byte_quants", "byte_scales", "block_sums"].contains(&name) || (glu && name == "y");
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
