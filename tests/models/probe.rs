//! Probes of a real model: they see what is there, change nothing, and find what is not finite.

use std::ops::ControlFlow;
use std::path::PathBuf;

use doppler::Error;
use doppler::format::Gguf;
use doppler::gpu::{Features, Guard, GuardMode, Phase, Place, ReadbackClass};
use doppler::model::KvType;
use doppler::quant::by_ggml_type;
use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, Model, PROBE_POINTS, ProbeOptions, ProbeReading, Session};

use crate::common::*;

const PROMPT: &str = "Once upon a time";

fn generate(session: &mut Session, n: u32) -> doppler::Result<Vec<u32>> {
    let options =
        GenerateOptions { max_tokens: n, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() };
    session.generate(&options, &mut |_| ControlFlow::Continue(())).map(|g| g.tokens)
}

fn prompted(model: &Model) -> Session {
    let mut s = session(model);
    s.append_text(PROMPT, false).unwrap();
    s
}

fn find<'a>(readings: &'a [ProbeReading], point: &str, layer: Option<u32>, position: u32) -> &'a ProbeReading {
    let mut fitting = readings.iter().filter(|r| r.point.name == point && r.layer == layer && r.position == position);
    let found = fitting.next().unwrap_or_else(|| panic!("no reading of {point} {layer:?} at {position}"));
    assert!(fitting.next().is_none(), "{point} {layer:?} at {position} was read twice");
    found
}

#[test]
fn probes_see_every_point_and_change_nothing() {
    for (name, features) in feature_sets() {
        let Some(context) = context(features, Guard::default()) else { return };
        let model = load(&context, &asset(), KvType::F32, 128, 64);
        // Not the first slot's, so that its words are to be found.
        let mut first = prompted(&model);
        let plain = generate(&mut first, 4).unwrap();
        let mut s = prompted(&model);
        let n = s.tokens().len() as u32;
        s.set_probe(Some(ProbeOptions { values: 8, ..Default::default() })).unwrap();
        assert_eq!(generate(&mut s, 4).unwrap(), plain, "{name}");
        let readings = s.take_readings();
        assert!(s.take_readings().is_empty());
        let layers = model.info().n_layer as usize;
        let others = ["moe.", "mix."];
        let dense = PROBE_POINTS.iter().filter(|p| others.iter().all(|o| !p.name.starts_with(o)));
        let per_submit: usize = dense.map(|p| if p.per_layer { layers } else { 1 }).sum();
        assert_eq!(readings.len(), 4 * per_submit, "{name}: the prompt and three decode steps");
        assert!(readings.iter().all(|r| r.stats.is_none_or(|s| s.sound() && s.count == r.rows * r.cols)), "{name}");
        // One debug readback for each submit, counted apart from the tokens.
        let c = s.stats().counters;
        let debug = |p| c.phase(p).readbacks[ReadbackClass::Debug as usize];
        assert_eq!((debug(Phase::Prefill), debug(Phase::Decode)), (1, 3), "{name}");
        assert_eq!(c.phase(Phase::Decode).readbacks[ReadbackClass::Token as usize], 3);
        assert_eq!(c.phase(Phase::Decode).submits, 3, "{name}: probes stand in the same submit");

        // Embedding: the file's own rows.
        let file = Gguf::open(&asset()).unwrap();
        let table = file.tensor("token_embd.weight").unwrap();
        let (format, e) = (by_ggml_type(table.ggml_type).unwrap(), table.dims[0] as usize);
        let row_of = |token: u32| {
            let bytes = format.row_bytes(e);
            let mut row = vec![0.0; e];
            (format.dequantize)(&file.data(table)[token as usize * bytes..][..bytes], &mut row);
            row
        };
        let first = s.tokens()[0];
        assert_eq!(find(&readings, "embed", None, 0).values(), row_of(first)[..8], "{name}");
        assert_eq!(find(&readings, "embed", None, n).values(), row_of(plain[0])[..8], "{name}");
        // Logits of the second token: the same as evaluating does, through another path of batches.
        let mut other = session(&model);
        let ids = s.tokens()[..=n as usize].to_vec();
        let all = logits(&mut other, &ids);
        let last = &all[n as usize * model.info().n_vocab as usize..];
        let seen = find(&readings, "logits", None, n);
        assert!(max_error(&seen.values(), &last[..8]) < 1e-4, "{name}");
        let top = last.iter().copied().fold(f32::MIN, f32::max);
        assert!((seen.stats.unwrap().max - top).abs() < 1e-4, "{name}");
        assert_eq!(find(&readings, "sample.picked", None, n).words[0], plain[1], "{name}");
        // token, position, limit, stop after the step
        assert_eq!(find(&readings, "stop.state", None, n).words[..2], [plain[1], n + 1], "{name}");
        let tables: Vec<_> = (0..layers as u32).map(|l| find(&readings, "kv.table", Some(l), n).words[0]).collect();
        assert!(tables.iter().all(|&t| t == 1), "{name}: the second sequence's pages {tables:?}");
        // A norm with weights near one brings the root mean square near the weights'.
        let (before, after) = (find(&readings, "attn.residual", Some(2), n), find(&readings, "ffn.norm", Some(2), n));
        assert!(before.stats.unwrap().rms() > 0.0 && after.stats.unwrap().rms() > 0.0);

        s.set_probe(None).unwrap();
        let passes = *s.stats().counters.phase(Phase::Decode);
        generate(&mut s, 3).unwrap();
        let later = s.stats().counters.phase(Phase::Decode).since(&passes);
        assert_eq!((later.readbacks[ReadbackClass::Debug as usize], later.bind_groups), (0, 0), "{name}: as before");
    }
}

#[test]
fn selections_and_mistakes() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &asset(), KvType::F16, 128, 64);
    let mut s = prompted(&model);
    let some =
        ProbeOptions { points: vec!["ffn.inner".into(), "logits".into()], layers: Some((1, 2)), ..Default::default() };
    s.set_probe(Some(some.clone())).unwrap();
    generate(&mut s, 1).unwrap();
    let seen: Vec<_> = s.take_readings().iter().map(|r| (r.point.name, r.layer)).collect();
    assert_eq!(seen, [("ffn.inner", Some(1)), ("ffn.inner", Some(2)), ("logits", None)]);
    for (bad, part) in [
        (ProbeOptions { points: vec!["attention".into()], ..some.clone() }, "attn.heads"),
        (ProbeOptions { layers: Some((2, 1)), ..some.clone() }, "layers 2 to 1"),
        (ProbeOptions { layers: Some((0, 6)), ..some.clone() }, "model of 6"),
        (ProbeOptions { limit: f32::NAN, ..some.clone() }, "limit"),
        (ProbeOptions { values: 5000, ..some }, "5000"),
    ] {
        let e = s.set_probe(Some(bad)).unwrap_err();
        assert!(matches!(&e, Error::InvalidArgument(m) if m.contains(part)), "{e}");
    }
}

#[test]
fn a_strict_guard_refuses_each_place_before_any_work() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &asset(), KvType::F16, 128, 64);
    let want = generate(&mut prompted(&model), 3).unwrap();
    for place in [Place::Pipeline, Place::Layer, Place::Logits, Place::KvCache, Place::Sample, Place::CheckStop] {
        let point = PROBE_POINTS.iter().find(|p| p.place == place).unwrap();
        let mut s = prompted(&model);
        s.set_guard(Some(Guard { mode: GuardMode::Strict, ..Guard::BENCHMARK }));
        s.set_probe(Some(ProbeOptions { points: vec![point.name.into()], ..Default::default() })).unwrap();
        let e = generate(&mut s, 3).unwrap_err();
        let reason = format!("{}.{}", place.name(), point.name);
        assert!(matches!(&e, Error::Guard(m) if m.contains(&reason)), "{e}");
        let c = s.stats().counters;
        assert_eq!((c.total().submits, c.places[place as usize].refused), (0, 1), "{reason}");
        s.set_probe(None).unwrap();
        assert_eq!(generate(&mut s, 3).unwrap(), want, "{reason}: the session goes on");
    }
}

#[test]
fn what_is_not_finite_is_found_with_layer_and_position() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &asset(), KvType::F16, 128, 64);
    // Values beyond a limit: found in decoding too, and the session is as it was.
    let want = generate(&mut prompted(&model), 6).unwrap();
    let mut s = prompted(&model);
    assert_eq!(generate(&mut s, 2).unwrap(), want[..2]);
    let before = s.tokens().to_vec();
    let check = ProbeOptions { require_finite: true, ..Default::default() };
    s.set_probe(Some(ProbeOptions { limit: 1e-6, ..check.clone() })).unwrap();
    let e = generate(&mut s, 2).unwrap_err();
    assert!(matches!(&e, Error::NotFinite(m) if m.contains("embed") && m.contains("beyond")), "{e}");
    assert_eq!(s.tokens(), before);
    s.set_probe(Some(check.clone())).unwrap();
    assert_eq!(generate(&mut s, 4).unwrap(), want[2..], "sound tensors pass");

    // A weight that is NaN, in the fourth layer.
    let mut bytes = std::fs::read(asset()).unwrap();
    let file = Gguf::open(&asset()).unwrap();
    let norm = file.data(file.tensor("blk.3.ffn_norm.weight").unwrap());
    let at = bytes.windows(norm.len()).position(|w| *w == *norm).unwrap();
    bytes[at + 40..at + 44].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("nan.gguf");
    std::fs::write(&path, bytes).unwrap();
    let model = load(&context, &path, KvType::F16, 128, 64);
    let mut s = prompted(&model);
    s.set_probe(Some(check)).unwrap();
    let e = generate(&mut s, 2).unwrap_err();
    let n = s.tokens().len();
    let wanted = format!("ffn.norm of layer 3 at position 0: {n} NaN");
    assert!(matches!(&e, Error::NotFinite(m) if m.contains(&wanted) && m.contains("column 10 of position 0")), "{e}");
    assert!(s.take_readings().iter().any(|r| r.layer == Some(2) && r.stats.is_some_and(|s| s.sound())));
}
