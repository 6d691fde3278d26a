use super::options::{MAX_LOGIT_BIAS, MAX_VOCAB, SamplingOptions};
use super::params::{FLAG_PENALTIES, SampleParams};
use super::philox::philox4x32;
use super::reference::{WEIGHT_MAX, sample_reference, weight};
use super::{penalties, philox};

const INF: f32 = f32::INFINITY;

/// Options that draw among all tokens at temperature 1.
fn open() -> SamplingOptions {
    SamplingOptions { temperature: 1.0, ..SamplingOptions::greedy() }
}

fn survivors(logits: &[f32], options: &SamplingOptions) -> Vec<u32> {
    sample_reference(logits, &[], 1, options).survivors.iter().map(|s| s.token).collect()
}

#[test]
fn philox_gives_the_published_answers() {
    // The three philox4x32-10 lines of Random123's kat_vectors.
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32(counter, key), expected);
    }
    assert_eq!(philox::draw_word(0, 0), 0x6627_e8d5);
}

#[test]
fn validation_names_the_field() {
    let ok = SamplingOptions::default();
    ok.validate(32_000).unwrap();
    SamplingOptions::greedy().validate(1).unwrap();
    for vocab in [0, MAX_VOCAB + 1] {
        assert!(ok.validate(vocab).unwrap_err().to_string().contains("vocabulary"));
    }
    type Set = fn(&mut SamplingOptions, f32);
    let fields: [(&str, Set, &[f32]); 6] = [
        ("temperature", |o, v| o.temperature = v, &[-0.1, 101.0]),
        ("top_p", |o, v| o.top_p = v, &[-0.1, 1.01]),
        ("min_p", |o, v| o.min_p = v, &[-0.1, 1.01]),
        ("repeat_penalty", |o, v| o.repeat_penalty = v, &[0.0, -1.0, 101.0]),
        ("frequency_penalty", |o, v| o.frequency_penalty = v, &[-101.0, 101.0]),
        ("presence_penalty", |o, v| o.presence_penalty = v, &[-101.0, 101.0]),
    ];
    for (name, set, values) in fields {
        for &value in values.iter().chain(&[f32::NAN, INF, -INF]) {
            let mut options = ok.clone();
            set(&mut options, value);
            let text = options.validate(100).unwrap_err().to_string();
            assert!(text.contains(name), "{name} = {value}: {text}");
        }
    }
}

#[test]
fn validation_of_the_bias() {
    let with = |bias: Vec<(u32, f32)>| SamplingOptions { logit_bias: bias, ..Default::default() }.validate(300);
    with((0..MAX_LOGIT_BIAS as u32).map(|t| (t, -1.0)).collect()).unwrap();
    with(vec![(299, -INF)]).unwrap();
    for bad in [
        (0..=MAX_LOGIT_BIAS as u32).map(|t| (t, 0.0)).collect(),
        vec![(300, 1.0)],
        vec![(1, f32::NAN)],
        vec![(1, INF)],
        vec![(7, 1.0), (8, 1.0), (7, 2.0)],
    ] {
        assert!(with(bad).unwrap_err().to_string().contains("logit_bias"));
    }
}

#[test]
fn params_are_the_options() {
    let options = SamplingOptions {
        temperature: 1e-6,
        seed: 0x1_0000_0002,
        frequency_penalty: 0.5,
        logit_bias: vec![(1, 1.0)],
        ..Default::default()
    };
    let params = SampleParams::from(&options);
    assert_eq!((params.temperature, params.seed_lo, params.seed_hi), (0.0, 2, 1));
    assert_eq!((params.n_bias, params.flags), (1, FLAG_PENALTIES));
    let off = SamplingOptions { penalty_last_n: 0, ..options };
    assert_eq!(SampleParams::from(&off).flags, 0);
}

#[test]
fn penalties_count_each_token_once() {
    let options = SamplingOptions {
        repeat_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        penalty_last_n: 4,
        logit_bias: vec![(0, 3.0), (4, -INF)],
        ..Default::default()
    };
    let mut logits = [1.0, -1.0, 2.0, INF, 9.0, -INF];
    // The first two tokens are outside the window; 1000 is outside the vocabulary.
    penalties::apply(&mut logits, &[2, 2, 0, 0, 1, 3], &options);
    assert_eq!(logits, [2.0 - 1.25, -2.0 - 0.75, 2.0, INF, -INF, -INF]);
    penalties::apply(&mut [0.0], &[1000], &options);
}

#[test]
fn filters_keep_the_right_tokens() {
    let logits = [0.0, 3.0, 1.0, 3.0, 2.0, 1.0, -INF, f32::NAN];
    assert_eq!(survivors(&logits, &open()), [0, 1, 2, 3, 4, 5]);
    let top_k = |k| survivors(&logits, &SamplingOptions { top_k: k, ..open() });
    assert_eq!(top_k(1), [1]);
    assert_eq!(top_k(4), [1, 2, 3, 4]);
    assert_eq!(top_k(100).len(), 6);
    let top_p = |p| survivors(&[0.0f32; 8], &SamplingOptions { top_p: p, ..open() });
    assert_eq!(top_p(0.0), [0]);
    assert_eq!(top_p(0.5), [0, 1, 2, 3]);
    assert_eq!(top_p(0.51), [0, 1, 2, 3, 4]);
    let min_p = |p| survivors(&logits, &SamplingOptions { min_p: p, ..open() });
    assert_eq!(min_p(1.0), [1, 3]);
    assert_eq!(min_p(0.3), [1, 3, 4]);
    // Top-p works on what top-k left: half of two tokens is one.
    let both = SamplingOptions { top_k: 2, top_p: 0.5, ..open() };
    assert_eq!(survivors(&logits, &both), [1]);
}

#[test]
fn odd_logits_never_win_by_accident() {
    for options in [SamplingOptions::greedy(), open(), SamplingOptions::default()] {
        let token = |logits: &[f32]| sample_reference(logits, &[], 3, &options).token;
        assert_eq!(token(&[f32::NAN, -INF, -INF]), 1);
        assert_eq!(token(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(token(&[1.0, INF, f32::NAN, INF]), 1);
        assert_eq!(token(&[f32::NAN, -INF, -f32::MAX]), 2);
    }
    assert_eq!(sample_reference(&[-0.0, 0.0], &[], 0, &SamplingOptions::greedy()).token, 0);
}

#[test]
fn weights_and_distances() {
    assert_eq!(weight(5.0, 5.0, 1e-5), WEIGHT_MAX);
    assert_eq!(weight(-f32::MAX, f32::MAX, 1.0), 0);
    assert_eq!(weight(4.0, 5.0, 0.5), ((-2f64).exp() * 67_108_864.0).round() as u64);
    let sampled = sample_reference(&[0.0, 0.0, 0.0, 0.0], &[], 9, &open());
    assert_eq!(sampled.distance(sampled.token), Some(0.0));
    assert_eq!(sampled.distance(4), None);
    assert!((0..4).filter(|&t| t != sampled.token).all(|t| sampled.distance(t).unwrap() > 0.0));
}
