//! A layer of a decode step in one dispatch.

use doppler::Result;
use doppler::gpu::{Buffer, Variant};
use doppler::kernels::{
    self, Activation, AngleTable, AttentionShape, KvType, LayerOperands, LayerStep, Matrix, RopePairs, RopeShape,
    RowSource, SYNC_BYTES, Weight, WeightUploader,
};
use doppler::quant::{Format, by_name};

use super::attention::{Layout, attend, pack, storage_error, unpack};
use super::elementwise::{gelu_of, silu_of};
use super::fresh::prepared;
use super::weights::random_rows;
use super::{Lab, Measured, Rng, Want, compare};

const EPS: f32 = 1e-3;
const N_EMBD: usize = 256;
const N_FF: usize = 512;
const HEAD_DIM: u32 = 64;
const N_HEAD: u32 = 4;
/// Positions in the cache, that of the step included.
const POSITIONS: u32 = 332;

/// What the `i`-th case has beside its variant's formats.
#[derive(Debug, Clone, Copy)]
struct Choices {
    pos: u32,
    gelu: bool,
    halves: bool,
    head_norms: bool,
    sinks: bool,
    bias: bool,
    window: u32,
    softcap: f32,
    kv: KvType,
}

impl Choices {
    fn of(v: &Variant, i: usize) -> Self {
        let kv = KvType::ALL.into_iter().find(|kv| v.fragment("kv") == Some(&format!("kv/{}", kv.name())));
        Self {
            pos: [POSITIONS - 1, 77, 0, POSITIONS - 1, 40][i % 5],
            gelu: i % 2 == 1,
            halves: i / 2 % 2 == 1,
            head_norms: i / 3 % 2 == 1,
            sinks: i / 4 % 2 == 1,
            bias: i / 5 % 2 == 1,
            window: if i % 4 == 2 { 50 } else { 0 },
            softcap: if i % 5 == 3 { 3.0 } else { 0.0 },
            kv: kv.unwrap_or_default(),
        }
    }
}

/// A weight of stacked sources, each of so many rows, and its values.
fn stacked(
    lab: &Lab,
    rng: &mut Rng,
    k: usize,
    sources: &[(&'static Format, usize)],
    bias: Option<&[f32]>,
) -> Result<(Weight, Vec<f32>)> {
    let rows: Vec<_> = sources.iter().map(|&(f, n)| random_rows(f, rng, n, k)).collect();
    let mut progress = |_| Ok(());
    let mut uploader = WeightUploader::new(&lab.gpu, &lab.scope, &mut progress);
    let mut first = 0;
    let list: Vec<_> = sources
        .iter()
        .zip(&rows)
        .map(|(&(format, n), (data, _))| {
            let bias = bias.map(|b| &b[first..first + n]);
            first += n;
            RowSource { format, rows: n as u32, data, bias }
        })
        .collect();
    let w = uploader.upload("layer", k as u32, &list)?;
    uploader.finish()?;
    Ok((w, rows.into_iter().flat_map(|(_, values)| values).collect()))
}

/// `x` as a product takes it: 32 neighbours rounded to bytes with a scale, or as it is.
fn staged(x: &[f64], bytes: bool) -> Vec<f64> {
    let round = |block: &[f64]| {
        let scale = block.iter().fold(0.0f64, |m, v| m.max(v.abs())) / 127.0;
        let one = |v: &f64| if scale > 0.0 { (v / scale).round_ties_even() * scale } else { 0.0 };
        block.iter().map(one).collect::<Vec<_>>()
    };
    if bytes { x.chunks(32).flat_map(round).collect() } else { x.to_vec() }
}

fn normed(x: &[f64], w: &[f32]) -> Vec<f64> {
    let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter().zip(w).map(|(v, &w)| v * scale * f64::from(w)).collect()
}

fn times(x: &[f64], w: &[f32], add: Option<&[f32]>) -> Vec<Want> {
    let one = |row: &[f32]| {
        let terms = x.iter().zip(row).map(|(a, &b)| a * f64::from(b));
        terms.fold(Want(0.0, 0.0), |Want(v, size), t| Want(v + t, size + t.abs()))
    };
    let mut y: Vec<Want> = w.chunks_exact(x.len()).map(one).collect();
    add.into_iter().flatten().zip(&mut y).for_each(|(&b, y)| *y = Want(y.0 + f64::from(b), y.1 + f64::from(b).abs()));
    y
}

fn values(of: &[Want]) -> Vec<f64> {
    of.iter().map(|w| w.0).collect()
}

fn floats(of: &[f64]) -> Vec<f32> {
    of.iter().map(|&v| v as f32).collect()
}

/// Norm weights that keep what follows near 1.
fn weights_near(rng: &mut Rng, n: usize, size: f32) -> Vec<f32> {
    rng.units(n).iter().map(|w| size * (1.0 + 0.5 * w)).collect()
}

fn case(lab: &Lab, v: &Variant, i: usize) -> Result<Vec<Measured>> {
    let c = Choices::of(v, i);
    let format =
        |slot: &str| by_name(v.fragment(slot).unwrap_or_default()).ok_or(doppler::Error::Internal(slot.into()));
    let n_kv = [4, 2, 1][i % 3];
    let (hd, q_width, kv_width) = (HEAD_DIM as usize, (N_HEAD * HEAD_DIM) as usize, (n_kv * HEAD_DIM) as usize);
    let scale = if c.head_norms { 0.02 } else { 0.3 };
    let shape =
        AttentionShape { n_head: N_HEAD, n_kv, head_dim: HEAD_DIM, window: c.window, scale, softcap: c.softcap };
    let mut rng = Rng::new(i as u64 + 77);
    let bias = c.bias.then(|| rng.units(q_width + 2 * kv_width));
    let rows_qkv = [(format("first")?, q_width + kv_width), (format("second")?, kv_width)];
    let (qkv, qkv_values) = stacked(lab, &mut rng, N_EMBD, &rows_qkv, bias.as_deref())?;
    let (out, out_values) = stacked(lab, &mut rng, q_width, &[(format("out")?, N_EMBD)], None)?;
    let (up, up_values) = stacked(lab, &mut rng, N_EMBD, &[(format("up")?, 2 * N_FF)], None)?;
    let (down, down_values) = stacked(lab, &mut rng, N_FF, &[(format("down")?, N_EMBD)], None)?;
    let activation = if c.gelu { Activation::GeluTanh } else { Activation::Silu };
    let layer = LayerOperands {
        n_embd: N_EMBD as u32,
        shape,
        kv_type: c.kv,
        qkv: &qkv,
        out: &out,
        up: &up,
        down: &down,
        activation,
    };
    let x = rng.units(N_EMBD);
    let norms = [weights_near(&mut rng, N_EMBD, 0.05), weights_near(&mut rng, N_EMBD, 0.05)];
    let head_norms = [weights_near(&mut rng, hd, 1.0), weights_near(&mut rng, hd, 1.0)];
    let sinks: Vec<f32> = (0..N_HEAD).map(|h| [-90.0, 0.5, 4.0][h as usize % 3]).collect();
    let pages = Layout::new(&mut rng, POSITIONS, n_kv, HEAD_DIM);
    let [mut k, mut vs] = [rng.units(pages.elements()), rng.units(pages.elements())];
    // What must not be read before it is written.
    for head in 0..n_kv {
        let at = pages.at(c.pos, head);
        k[at..at + hd].fill(77.0);
        vs[at..at + hd].fill(77.0);
    }
    let (kw, vw) = (pack(c.kv, HEAD_DIM, &k), pack(c.kv, HEAD_DIM, &vs));
    let (kb, vb) = (lab.words(&kw)?, lab.words(&vw)?);
    let (rb, table) = (lab.words(&super::row_words(&[c.pos]))?, lab.words(pages.table())?);
    let n_rot = if i.is_multiple_of(2) { HEAD_DIM } else { HEAD_DIM / 2 };
    let pairs = if c.halves { RopePairs::Halves } else { RopePairs::Adjacent };
    let turn = RopeShape { n_head: N_HEAD, n_kv, head_dim: HEAD_DIM, n_rot, pairs };
    let steps: Vec<f64> = (0..n_rot / 2).map(|i| 10_000f64.powf(-2.0 * f64::from(i) / f64::from(n_rot))).collect();
    let angles = lab.words(bytemuck::cast_slice(&AngleTable::new(&steps, 1.0, 512).values))?;
    let buffers: Vec<Buffer> = [&norms[0], &norms[1], &head_norms[0], &head_norms[1], &sinks]
        .into_iter()
        .map(|w| lab.floats(w))
        .collect::<Result<_>>()?;
    let (xb, sync) = (lab.floats(&x)?, lab.words(&[0; SYNC_BYTES as usize / 4])?);
    let step = |groups, mail| LayerStep {
        index: i as u32,
        x: Matrix::new(&xb, 1, N_EMBD as u32),
        norms: [buffers[0].whole(), buffers[1].whole()],
        eps: EPS,
        head_norms: c.head_norms.then(|| [buffers[2].whole(), buffers[3].whole()]),
        rotation: Some((pairs, n_rot, angles.whole())),
        sinks: c.sinks.then(|| buffers[4].whole()),
        pages: pages.bind(c.kv, [&rb, &table, &kb, &vb]),
        mail,
        sync: sync.whole(),
        groups,
    };
    // Words with another tag, which must not be taken.
    let room = |groups| lab.words(&vec![0x4700_0000; layer.mail_bytes(&lab.gpu, groups) as usize / 4]);
    let small = room(1)?;
    lab.run([kernels::decode_capacity(kernels::decode_layer(&lab.gpu, layer, step(1, small.whole()))?)])?;
    let words = lab.read_words(&sync, SYNC_BYTES as usize / 4)?;
    lab.gpu.upload(sync.whole(), &[0; SYNC_BYTES as usize], &lab.scope)?;
    // Threads of a software device that is busy come late: one workgroup waits for no other.
    let groups = if lab.gpu.adapter().is_software() { 1 } else { words[3].clamp(1, 16) };
    let mail = room(groups)?;
    lab.run([kernels::decode_layer(&lab.gpu, layer, step(groups, mail.whole()))?])?;

    let what = |what: &str| format!("{what}, {groups} groups, {c:?}, {v}");
    let failed = lab.read_words(&sync, 1)?[0] as usize;
    let mut all = vec![Measured::exact(what("waits given up"), failed + usize::from(words[3] == 0))];
    let bytes = !v.has("FLOATS");
    let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    // The scale of a norm comes after the product, which changes the rounding to bytes by nothing but the scale.
    let made = times(&staged(&normed(&x, &norms[0]), bytes), &qkv_values, bias.as_deref());
    let row = floats(&values(&made));
    let [mut want_k, mut want_v] =
        [&kw, &vw].map(|w| unpack(c.kv, HEAD_DIM, w).into_iter().map(|v| Want::from(f64::from(v))).collect::<Vec<_>>());
    let weights = |j: usize| c.head_norms.then(|| head_norms[j].as_slice());
    for head in 0..n_kv {
        let at = pages.at(c.pos, head);
        let of = |first: u32| ((first + head) * HEAD_DIM) as usize;
        let key = prepared(&row[of(N_HEAD)..][..hd], weights(1), &turn, &steps, c.pos);
        want_k[at..at + hd].copy_from_slice(&key);
        want_v[at..at + hd].iter_mut().zip(&made[of(N_HEAD + n_kv)..]).for_each(|(w, m)| *w = *m);
    }
    let rel = storage_error(c.kv, &mut want_k).max(storage_error(c.kv, &mut want_v)) + 1e-3;
    let got_k = unpack(c.kv, HEAD_DIM, &lab.read_words(&kb, kw.len())?);
    let got_v = unpack(c.kv, HEAD_DIM, &lab.read_words(&vb, vw.len())?);
    all.push(compare(what("k"), &got_k, &want_k, 5e-3, rel));
    all.push(compare(what("v"), &got_v, &want_v, 5e-3, rel));

    // Attention over what the cache holds now: so the rounding of what was stored does not count.
    let q: Vec<f32> = row[..q_width]
        .chunks_exact(hd)
        .flat_map(|head| prepared(head, weights(0), &turn, &steps, c.pos))
        .map(|w| w.0 as f32)
        .collect();
    let heads = attend(&shape, &pages, [&got_k, &got_v], &q, 0, c.pos, c.sinks.then_some(sinks.as_slice()));
    let attended = times(&staged(&values(&heads), bytes), &out_values, None);
    let middle: Vec<f64> = x.iter().zip(&attended).map(|(x, a)| x + a.0).collect();
    let first = times(&staged(&normed(&middle, &norms[1]), bytes), &up_values, None);
    let (gates, ups) = first.split_at(N_FF);
    let act = if c.gelu { gelu_of } else { silu_of };
    let inner: Vec<f64> = gates.iter().zip(ups).map(|(g, u)| act(g.0) * u.0).collect();
    let last = times(&staged(&inner, bytes), &down_values, None);
    // A number that falls near the middle between two bytes may be rounded to either: a step of 127 of one term of a gate among hundreds.
    let steps: Vec<f64> = gates.iter().zip(ups).map(|(g, u)| 1.13 * g.1 * u.0.abs() + act(g.0).abs() * u.1).collect();
    let unsure = times(&steps, &down_values, None);
    let size = |i: usize| middle[i].abs() + attended[i].1 + last[i].1 + if bytes { 0.5 * unsure[i].1 } else { 0.0 };
    let want: Vec<Want> = (0..N_EMBD).map(|i| Want(middle[i] + last[i].0, size(i))).collect();
    all.push(compare(what("x"), &lab.read(&xb, N_EMBD)?, &want, 1e-6, if bytes { 2e-3 } else { 1e-4 }));
    Ok(all)
}

pub(super) fn layer(lab: &Lab) -> Result<Vec<Measured>> {
    let variants = lab.variants("decode_layer").into_iter().enumerate();
    Ok(variants.map(|(i, v)| case(lab, &v, i)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}
