//! Tokenizers and chat templates against the vectors in ../shared (which are not copied into the repository).

use doppler::format::Gguf;
use doppler::text::{ChatTemplate, Tokenizer, Utf8Stream, Vocab};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if !dir.is_dir() {
        println!("skipped: ../shared is absent");
        return None;
    }
    Some(dir)
}

fn vocab(path: &Path) -> Vocab {
    let g = Gguf::open(path).unwrap();
    let id = |name: &str| g.get_u32(&format!("tokenizer.ggml.{name}_token_id")).unwrap();
    let flag = |name: &str| g.get_bool(&format!("tokenizer.ggml.{name}")).unwrap();
    let strings = |name: &str| g.get_str_array(name).unwrap().unwrap_or_default().to_vec();
    Vocab {
        model: g.require_str("tokenizer.ggml.model").unwrap().to_owned(),
        pre: g.get_str("tokenizer.ggml.pre").unwrap().map(str::to_owned),
        name: g.get_str("general.name").unwrap().map(str::to_owned),
        tokens: strings("tokenizer.ggml.tokens"),
        scores: g.get_f32_array("tokenizer.ggml.scores").unwrap(),
        token_types: g.get_i32_array("tokenizer.ggml.token_type").unwrap(),
        merges: strings("tokenizer.ggml.merges"),
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        eom: id("eom"),
        unk: id("unknown"),
        pad: id("padding"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
    }
}

/// Checks one text; what went wrong, if anything.
fn check(t: &Tokenizer, text: &str, wanted: &[u32]) -> Option<String> {
    let ids = t.encode(text, false, false).unwrap();
    if ids != wanted {
        return Some(format!("{text:?}\n  got    {ids:?}\n  wanted {wanted:?}"));
    }
    let back = t.decode(&ids, true).unwrap();
    if back != text {
        return Some(format!("{text:?} came back as {back:?}"));
    }
    let mut stream = Utf8Stream::new();
    let mut pieces: String = ids.iter().map(|&id| stream.push(&t.token_bytes(id, true).unwrap())).collect();
    pieces.push_str(&stream.flush());
    if pieces != text && pieces.strip_prefix(' ') != Some(text) {
        return Some(format!("{text:?} streamed as {pieces:?}"));
    }
    None
}

fn report(what: &str, count: usize, failures: &[String]) {
    println!("{what}: {} of {count} exact", count - failures.len());
    failures.iter().for_each(|f| println!("{what}: {f}"));
}

#[test]
fn real_vocabularies() {
    let Some(dir) = shared() else { return };
    let mut bad = 0;
    for entry in std::fs::read_dir(dir.join("tokenizers")).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let with = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display())).unwrap();
        let started = std::time::Instant::now();
        let t = Tokenizer::new(vocab(&path)).unwrap();
        let built = started.elapsed();
        let (inp, out) = (with(".inp"), with(".out"));
        // Every text is followed by the separator, the last one too.
        let texts = inp.strip_suffix("\n__ggml_vocab_test__\n").unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let wanted: Vec<Vec<u32>> =
            out.lines().map(|l| l.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
        assert!(texts.len() == wanted.len(), "{}: {} texts, {} lines", path.display(), texts.len(), wanted.len());
        let failures: Vec<String> = texts.iter().zip(&wanted).filter_map(|(x, w)| check(&t, x, w)).collect();
        report(&format!("{} (built in {built:?})", path.file_stem().unwrap().display()), texts.len(), &failures);
        bad += failures.len();
    }
    assert_eq!(bad, 0);
}

#[test]
fn golden_vocabularies() {
    let Some(dir) = shared() else { return };
    let mut bad = 0;
    for entry in std::fs::read_dir(dir.join("golden")).unwrap().flatten() {
        let Ok(tests) = std::fs::read_to_string(entry.path().join("tokenizer_tests.json")) else { continue };
        let t = Tokenizer::new(vocab(&entry.path().join("model-f16.gguf"))).unwrap();
        let tests: Vec<Value> = serde_json::from_str(&tests).unwrap();
        let failures: Vec<String> = tests
            .iter()
            .filter_map(|case| {
                let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
                check(&t, case["text"].as_str().unwrap(), &ids)
            })
            .collect();
        report(&entry.file_name().display().to_string(), tests.len(), &failures);
        bad += failures.len();
    }
    assert_eq!(bad, 0);
}

#[test]
fn hearth_agrees_with_its_reference_tokenizer() {
    let Some(dir) = shared() else { return };
    let hearth = dir.join("models/hearth");
    let reference = tokenizers::Tokenizer::from_file(hearth.join("hearth-5m-hf/tokenizer.json")).unwrap();
    let t = Tokenizer::new(vocab(&hearth.join("hearth-5m-f16.gguf"))).unwrap();
    let mut texts: Vec<String> = [
        "",
        " leading",
        "trailing ",
        "\ttabs\t\n\n  indented\r\nI'm I'LL",
        "12345 3.14",
        "\u{4f60}\u{597d} e\u{301} \u{1f409}",
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        "a<|endoftext|>b",
        "<|im_start",
        "{\"item\": \"rope\", \"price\": 4}",
    ]
    .map(str::to_owned)
    .to_vec();
    let corpus = std::fs::read_to_string(hearth.join("val.txt")).unwrap();
    texts.extend(corpus.lines().step_by(20).map(str::to_owned));
    // Pseudo-random mixtures of awkward pieces.
    let parts = [
        "'s",
        " ",
        "\n",
        "\r\n",
        "\u{e9}",
        "\u{a0}",
        "9",
        "x",
        "<|im_end|>",
        "\u{200b}",
        "\u{3000}",
        "!?",
        "\u{1f525}",
    ];
    let mut seed = 1u64;
    for _ in 0..500 {
        let mut text = String::new();
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(parts[(seed >> 33) as usize % parts.len()]);
        }
        texts.push(text);
    }
    for text in &texts {
        let wanted = reference.encode_fast(text.as_str(), false).unwrap();
        let ids = t.encode(text, false, true).unwrap();
        assert_eq!(ids, wanted.get_ids(), "{text:?}");
        assert_eq!(&t.decode(&ids, true).unwrap(), text);
    }
    println!("hearth: {} texts agree", texts.len());
    assert_eq!(t.end_of_generation(), [0, 2]);
}

#[test]
fn a_megabyte_takes_little_time() {
    let Some(dir) = shared() else { return };
    let corpus = std::fs::read_to_string(dir.join("models/hearth/val.txt")).unwrap();
    let mega = |s: &str| s.repeat((1 << 20) / s.len() + 1);
    let texts = [
        ("prose", mega(&corpus)),
        ("spaces", mega(" ")),
        ("spaces, then a letter", mega(" ") + "x"),
        ("one letter", mega("a")),
        ("line ends", mega("\n")),
        ("digits", mega("7")),
        ("punctuation", mega("<")),
        ("han", mega("\u{4f60}\u{597d}")),
        ("marks", mega("\u{301}")),
        ("mixed case", mega("aB")),
    ];
    for name in ["llama-bpe", "gpt-2", "llama-spm", "qwen35", "deepseek-llm"] {
        let t = Tokenizer::new(vocab(&dir.join(format!("tokenizers/ggml-vocab-{name}.gguf")))).unwrap();
        for (what, text) in &texts {
            let started = std::time::Instant::now();
            let ids = t.encode(text, false, false).unwrap();
            let took = started.elapsed();
            println!("{name}, {what}: {} tokens in {took:?}", ids.len());
            assert!(took.as_secs() < 20, "{name}, {what}: {took:?}");
            assert!(t.decode(&ids, true).unwrap() == *text, "{name}, {what}");
        }
    }
}

/// Seconds since 1970 of `YYYY-MM-DDTHH:MM:SS`.
fn unix(text: &str) -> i64 {
    let n: Vec<i64> = text.split(['-', 'T', ':']).map(|p| p.parse().unwrap()).collect();
    let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    let months = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut days: i64 = (1970..n[0]).map(|y| 365 + i64::from(leap(y))).sum();
    days += (1..n[1]).map(|m| months[m as usize - 1] + i64::from(m == 2 && leap(n[0]))).sum::<i64>();
    (days + n[2] - 1) * 86_400 + n[3] * 3600 + n[4] * 60 + n[5]
}

#[test]
fn chat_templates() {
    let Some(dir) = shared() else { return };
    let dir = dir.join("chat");
    let (mut count, mut failures) = (0, Vec::new());
    for entry in std::fs::read_dir(&dir).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let source = std::fs::read_to_string(dir.join(file["template"].as_str().unwrap())).unwrap();
        let now = unix(file["now"].as_str().unwrap());
        let template = ChatTemplate::new(&source, file["bos_token"].as_str(), file["eos_token"].as_str());
        for case in file["cases"].as_array().unwrap() {
            count += 1;
            let name = format!("{} {}", path.file_stem().unwrap().display(), case["case"]);
            let tools = (!case["tools"].is_null()).then_some(&case["tools"]);
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let got = template
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|t| t.render_at(&case["messages"], tools, prompt, &serde_json::Map::new(), Some(now)));
            let wanted = case["expected"].as_str().map(str::to_owned);
            let refused = case["error"].as_str().map(|m| doppler::error::Error::Template(m.to_owned()));
            if got.clone().ok() != wanted || (refused.is_some() && got.clone().err() != refused) {
                failures.push(format!("{name}\n  got    {got:?}\n  wanted {wanted:?} {refused:?}"));
            }
        }
    }
    report("chat templates", count, &failures);
    assert!(failures.is_empty());
}
