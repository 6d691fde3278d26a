//! The `doppler` program from outside: what its verbs print, and with which code they end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/hearth-5m-Q8_0.gguf");

fn doppler(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_doppler"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends without reading closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// Standard output of a run that succeeds.
#[track_caller]
fn out(args: &[&str], stdin: &str) -> String {
    let o = doppler(args, stdin);
    assert!(o.status.success(), "{args:?}: {}", String::from_utf8_lossy(&o.stderr));
    String::from_utf8(o.stdout).unwrap()
}

/// Exit code and standard error of a run that fails.
fn fails(args: &[&str]) -> (Option<i32>, String) {
    let o = doppler(args, "");
    (o.status.code(), String::from_utf8_lossy(&o.stderr).into_owned())
}

fn json(args: &[&str], stdin: &str) -> serde_json::Value {
    serde_json::from_str(&out(args, stdin)).unwrap()
}

/// A file of this test run.
fn file(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn no_gpu() -> bool {
    std::env::var("DOPPLER_NO_GPU").is_ok_and(|v| v == "1")
}

#[test]
fn verbs_without_a_device() {
    let text = "<|im_start|>hi";
    assert_eq!(json(&["tokenize", MODEL, "--text-file", "-", "--special", "--json"], text)["ids"][0], 1);
    let plain = out(&["tokenize", MODEL, "--text", text], "");
    assert!(plain.split_whitespace().count() > 2 && !plain.starts_with("1 "), "{plain}");

    let info = json(&["info", MODEL, "--json", "--tensors"], "");
    assert_eq!((&info["runs"], &info["model"]["n_layer"]), (&true.into(), &6.into()));
    assert!(info["tensors"].as_array().unwrap().len() > 10 && info["why_not"].is_null());
    assert!(out(&["info", MODEL], "").contains("Q8_0"));

    let messages = file("messages.json", r#"[{"role": "user", "content": "hi"}]"#);
    let opened = out(&["format", MODEL, "--messages", &messages], "");
    assert_eq!(opened, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let closed = out(&["format", MODEL, "--messages", &messages, "--no-generation-prompt"], "");
    assert_eq!(closed, "<|im_start|>user\nhi<|im_end|>\n");
    let template = file("t.jinja", "{{ bos_token }}{{ messages[0].content }}{{ strftime_now('%Y') }}");
    let text = out(&["format", "--template", &template, "--messages", &messages, "--bos", "B", "--now", "0"], "");
    assert_eq!(text, "Bhi1970");
}

#[test]
fn failures_have_codes_and_say_why() {
    let (code, text) = fails(&["info", "no/such.gguf"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no/such.gguf"), "{text}");
    assert_eq!(fails(&["generate", MODEL, "--no-such-flag"]).0, Some(2));
    assert_eq!(fails(&["generate", MODEL, "--greedy", "--temperature", "1"]).0, Some(2));
    let ids = file("bad-ids.json", "[1, -1]");
    assert_eq!(fails(&["generate", MODEL, "--ids", &ids]).0, Some(1));
    let messages = file("m.json", "[]");
    let template = file("raising.jinja", "{{ raise_exception('no messages') }}");
    let (code, text) = fails(&["format", "--template", &template, "--messages", &messages]);
    assert!(code == Some(1) && text.contains("no messages"), "{text}");
}

#[test]
fn nobody_reading_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_doppler"))
        .args(["info", MODEL, "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let o = child.wait_with_output().unwrap();
    assert!(o.status.success() && o.stderr.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
}

#[test]
fn generation_logits_and_perplexity_agree_with_each_other() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let ids = file("prompt.json", r#"{"ids": [1, 1775, 201, 300, 301]}"#);
    let common =
        ["generate", MODEL, "--ids", &ids, "-n", "9", "--greedy", "--ignore-eos", "--json", "--kv", "f32", "--exact"];
    let one = json(&common, "");
    assert_eq!((&one["reason"], &one["prompt_tokens"]), (&"max_tokens".into(), &5.into()));
    assert_eq!(one["ids"].as_array().unwrap().len(), 9);
    assert_eq!(one["counters"]["decode"]["submits"], 8);
    let several = json(&[&common[..], &["--tokens-per-submit", "4"]].concat(), "");
    assert_eq!((&several["ids"], &several["counters"]["decode"]["submits"]), (&one["ids"], &2.into()));

    // The first token is the largest logit of the last position, however the prompt is cut.
    let target: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("logits.safetensors");
    let target = target.to_string_lossy();
    out(&["logits", MODEL, "--ids", &ids, "--out", &target, "--kv", "f32", "--exact", "--chunk", "2"], "");
    let bytes = std::fs::read(&*target).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [5, 2048]);
    let all: Vec<f32> = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let last = &all[4 * 2048..];
    let best = (0..2048).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    assert_eq!(one["ids"][0], best);

    // Perplexity of five tokens, from the same logits.
    let wanted = [1775usize, 201, 300, 301];
    let nats: f64 = wanted
        .iter()
        .zip(all.chunks_exact(2048))
        .map(|(&t, row)| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            sum.ln() - f64::from(row[t])
        })
        .sum();
    let report = json(&["perplexity", MODEL, "--ids", &ids, "--window", "5", "--kv", "f32", "--exact", "--json"], "");
    let mean = report["mean_nats"].as_f64().unwrap();
    assert!((mean - nats / 4.0).abs() < 1e-3, "{mean} {}", nats / 4.0);
}

#[test]
fn choices_and_embeddings_are_printed() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let common = ["choose", MODEL, "-p", "Once upon a", "--option", " time", "-o", " Xylophone in the rain"];
    let report = json(&[&common[..], &["--json", "--rank", "mean"]].concat(), "");
    assert_eq!(report["best"], 0);
    let [first, second] = [0, 1].map(|i| &report["options"][i]);
    let number = |o: &serde_json::Value, key: &str| o[key].as_f64().unwrap();
    assert!(number(first, "mean") > number(second, "mean"));
    let sum: f64 = second["log_probs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).sum();
    assert!((sum - number(second, "log_likelihood")).abs() < 1e-4 && second["tokens"].as_u64().unwrap() > 1);
    let text = out(&common, "");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with('*') && lines[1].contains("Xylophone"), "{text}");
    assert_eq!(doppler(&["choose", MODEL, "-p", "a"], "").status.code(), Some(2), "no option");

    let report =
        json(&["embed", MODEL, "-t", "a mouse", "--lines", "-", "--pooling", "last", "--json"], "a cat\na dog\n");
    let rows = report["embeddings"].as_array().unwrap();
    assert_eq!((rows.len(), &report["pooling"]), (3, &"last".into()));
    for row in rows {
        let squares: f64 = row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap().powi(2)).sum();
        assert!((squares - 1.0).abs() < 1e-5, "{squares}");
    }
    let text = out(&["embed", MODEL, "-t", "a mouse", "--pooling", "none", "--no-normalize"], "");
    let width = report["n_embd"].as_u64().unwrap() as usize;
    assert!(text.lines().count() > 1 && text.lines().all(|l| l.split(' ').count() == width), "{text}");
    assert_eq!(doppler(&["embed", MODEL], "").status.code(), Some(2), "no text");
}

/// Keys and values in 8 bits: about half the bytes of f16, as `info` says and `generate` finds.
#[test]
fn the_cache_is_reported() {
    let per_token = &json(&["info", MODEL, "--json"], "")["model"]["kv_bytes_per_token"];
    let bytes = |kv: &str| per_token[kv].as_u64().unwrap();
    assert!(bytes("f32") == 2 * bytes("f16") && bytes("q8") * 64 == bytes("f16") * 34, "{per_token}");
    if no_gpu() {
        return;
    }
    let report = json(&["generate", MODEL, "-p", "Once", "-n", "4", "--kv", "q8", "--ctx", "100", "--json"], "");
    let kv = &report["kv"];
    assert_eq!((&kv["type"], &kv["blocks"], &kv["used"]), (&"q8".into(), &4.into(), &1.into()), "{kv}");
    assert_eq!(kv["block_bytes"].as_u64().unwrap(), bytes("q8") * kv["block_tokens"].as_u64().unwrap());
    assert_eq!((&kv["groups"][0]["window"], &kv["groups"][0]["layers"]), (&0.into(), &6.into()));
    let o = doppler(&["generate", MODEL, "-p", "Once", "-n", "2", "--kv", "q8", "--verbose"], "");
    let text = String::from_utf8_lossy(&o.stderr);
    for part in ["KV cache (q8)", "6 layers that see all tokens", "guard off", "submit calls by CPU us", "token reads"]
    {
        assert!(text.contains(part), "no {part}: {text}");
    }
}

/// Adapters by file and factor, for every verb that has them.
#[test]
fn adapters_are_given_by_file_and_factor() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let lora = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/lora/hearth");
    let run = |loras: &[String]| {
        let ids = file("lora-ids.json", "[1, 300, 301, 302, 303]");
        let mut args = vec!["perplexity", MODEL, "--ids", &ids, "--window", "5", "--kv", "f32", "--exact", "--json"];
        loras.iter().for_each(|l| args.extend(["--lora", l]));
        json(&args, "")["mean_nats"].as_f64().unwrap()
    };
    let of = |scale: &str| format!("{lora}={scale}");
    let (base, whole) = (run(&[]), run(&[lora.to_string()]));
    assert!((base - whole).abs() > 0.01, "{base} {whole}");
    assert_eq!(run(&[of("0")]), base);
    assert!((run(&[of("0.25"), of("0.75")]) - whole).abs() < 1e-3);
    let said = |args: &[&str]| out(&[&["generate", MODEL, "-p", "Once", "-n", "8", "--greedy"], args].concat(), "");
    assert!(said(&["--lora", lora]) != said(&[]) && said(&["--lora", &of("0")]) == said(&[]));
    let talk = |args: &[&str]| out(&[&["chat", MODEL, "--greedy", "-n", "8"], args].concat(), "Who are you?\n");
    assert_ne!(talk(&["--lora", lora]), talk(&[]));
    let (code, text) = fails(&["generate", MODEL, "-p", "x", "--lora", "no/such=2"]);
    assert!(code == Some(1) && text.contains("no/such") && !text.contains("=2"), "{text}");
}

#[test]
fn chat_answers_each_line() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let text = out(&["chat", MODEL, "--greedy", "-n", "12"], "Who are you?\n/reset\nWho are you?\n/quit\nnever\n");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() >= 2 && lines.len().is_multiple_of(2), "{text}");
    let (first, second) = lines.split_at(lines.len() / 2);
    assert_eq!(first, second, "the same question in a fresh conversation has the same answer");
}

#[test]
fn the_self_check_passes_and_filters() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let report = json(&["test", "correctness", "--quick", "--json", "--width", "256"], "");
    assert_eq!(report["failed"], 0, "{report}");
    let (declared, executed) = (report["variants"]["declared"].as_u64(), report["variants"]["executed"].as_u64());
    assert!(
        executed > Some(0) && executed < declared,
        "the short round reports what it covers and does not fail for it"
    );
    assert!(out(&["test", "correctness", "--filter", "cast"], "").contains("PASS cast"));
    let tensors = out(&["test", "correctness", "--filter", "tensors", "--model", MODEL], "");
    assert!(tensors.contains("PASS tensors"), "{tensors}");
    assert_eq!(fails(&["test", "correctness", "--filter", "nothing-like-that"]).0, Some(2));
}

/// Fails when a variant that a kernel declares was never executed against its reference.
#[test]
fn every_declared_variant_is_executed_against_its_reference() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let o = doppler(&["test", "correctness", "--json", "--width", "256"], "");
    let report: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    let missing = report["variants"]["missing"].as_array().unwrap();
    assert!(missing.is_empty(), "never executed against their references: {missing:#?}");
    let failed: Vec<_> = report["checks"].as_array().unwrap().iter().filter(|c| c["pass"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(o.status.code(), Some(0));
    let v = &report["variants"];
    assert_eq!((&v["complete"], &v["executed"]), (&true.into(), &v["declared"]));
    // Each check says on which kind of device it ran.
    let devices: std::collections::BTreeSet<_> =
        report["checks"].as_array().unwrap().iter().map(|c| c["device"].as_str().unwrap().to_string()).collect();
    assert!(devices.contains("everything on"), "{devices:?}");
}

/// Chains against the same operations one after another, where a device starts workgroups in order: llvmpipe does with one thread.
#[test]
fn the_self_check_of_chains_passes() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let run = Command::new(env!("CARGO_BIN_EXE_doppler"))
        .args(["test", "correctness", "--filter", "chain", "--json", "--width", "256"])
        .envs([("DOPPLER_CHAINS", "1"), ("LP_NUM_THREADS", "1")])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let check = &report["checks"][0];
    assert_eq!((&check["name"], &check["pass"]), (&"chain".into(), &true.into()), "{report}");
    assert!(check["cases"].as_array().unwrap().len() > 100, "{report}");
}

/// A place for a file of this test run.
fn place(name: &str) -> String {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).to_string_lossy().into_owned()
}

/// Drafts are in the figures and not in the text.
#[test]
fn drafts_change_nothing_but_the_figures() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let plain = ["generate", MODEL, "-p", "The cat sat on the mat. The cat", "-n", "13", "--ignore-eos", "--json"];
    let without = json(&plain, "");
    assert_eq!(without["speculation"]["verifications"], 0);
    for drafts in [["--lookup", "3"], ["--draft-model", MODEL]] {
        let with = json(&[&plain[..], &drafts, &["--draft", "3", "--fixed-draft"]].concat(), "");
        assert_eq!(with["ids"], without["ids"], "{drafts:?}");
        let s = &with["speculation"];
        assert!(s["verifications"].as_u64().unwrap() > 0 && s["drafted"].as_u64() >= s["accepted"].as_u64(), "{s}");
    }
    let bench = ["bench", "inference", MODEL, "--runs", "1", "--prompt-tokens", "7", "--gen", "9", "--json", "-"];
    let drafts = ["--draft-model", MODEL, "--draft", "3", "--fixed-draft"];
    let report = json(&[&bench[..], &drafts].concat(), "");
    let model = &report["models"][0];
    assert_eq!((&model["speculation"]["drafter"], &model["speculation"]["max_draft"]), (&"model".into(), &3.into()));
    let run = &model["workloads"][0]["runs"][0];
    assert_eq!((&run["speculation"]["drafted"], &run["speculation"]["accepted"]), (&6.into(), &6.into()));
    assert_eq!(run["speculation"]["mean_accepted"], 3.0);
    assert_eq!(fails(&[&plain[..], &["--lookup", "3", "--draft-model", MODEL]].concat()).0, Some(2));
    let (code, text) = fails(&[&plain[..], &["--lookup", "3", "--draft", "16"]].concat());
    assert!(code == Some(1) && text.contains("max_draft 16"), "{text}");
}

#[test]
fn bench_reports_what_it_measured() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let flags = ["--runs", "1", "--prompt-tokens", "7", "--gen", "5", "--sequences", "1,3", "--json", "-"];
    let report = json(&[&["bench", "inference", MODEL][..], &flags].concat(), "");
    assert_eq!((&report["schema_version"], &report["kind"]), (&2.into(), &"inference".into()));
    let model = &report["models"][0];
    let workload = &model["workloads"][0];
    assert_eq!(workload["tokens_agree"], true);
    let run = &workload["runs"][0];
    assert_eq!(run["batch_ms_per_token"].as_array().unwrap().len(), 4);
    let decode = &run["counters"]["decode"];
    assert_eq!((&decode["submits"], &decode["buffers"], &decode["pipelines"]), (&4.into(), &0.into(), &0.into()));

    // The share of the copy speed is what the figures beside it say.
    let number = |v: &serde_json::Value| v.as_f64().unwrap();
    let (s, copy) = (&workload["summary"], number(&report["copy"]["bytes_per_s"]));
    let bytes = number(&s["weight_bytes_per_token"]) + number(&s["kv_bytes_per_token"]);
    let bandwidth = bytes * number(&s["decode_tokens_per_s"]);
    assert!(copy > 0.0 && (number(&s["decode_bytes_per_s"]) / bandwidth - 1.0).abs() < 1e-9, "{s}");
    assert!((number(&s["share_of_copy_speed"]) / (bandwidth / copy) - 1.0).abs() < 1e-9, "{s}");
    // 6 layers of 2 heads of 64 dimensions, keys and values in f16, 7 + 5/2 positions.
    let info = json(&["info", MODEL, "--json"], "");
    let kv = |key: &str| number(&info["model"][key]);
    assert_eq!(number(&s["kv_bytes_per_token"]), kv("n_layer") * kv("n_kv_head") * kv("head_dim") * 4.0 * 9.5);
    assert_eq!(s["weight_bytes_per_token"], model["token_bytes"]);
    assert!(number(&model["token_bytes"]) <= number(&model["weight_bytes"]) && number(&model["token_bytes"]) > 4e6);

    // Three sequences together: as many submits as one, the weights read once a step. The first has the prompt of the single one.
    let batch = &model["workloads"][1];
    assert_eq!((&batch["sequences"], &batch["tokens_agree"]), (&3.into(), &true.into()));
    let decode = &batch["runs"][0]["counters"]["decode"];
    assert_eq!((&decode["submits"], &decode["buffers"], &decode["pipelines"]), (&4.into(), &0.into(), &0.into()));
    assert_eq!(batch["generated_ids"].as_array().unwrap().len(), 15);
    assert_eq!(batch["prompt_ids"][0], workload["prompt_ids"]);
    let s = &batch["summary"];
    let bytes = number(&s["weight_bytes_per_step"]) / 3.0 + number(&s["kv_bytes_per_token"]);
    let bandwidth = bytes * number(&s["decode_tokens_per_s"]);
    assert!((number(&s["decode_bytes_per_s"]) / bandwidth - 1.0).abs() < 1e-9, "{s}");
}

#[test]
fn bench_load_reports_every_phase() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let report = json(&["bench", "load", MODEL, "--runs", "2", "--prompt-tokens", "5", "--json", "-"], "");
    assert_eq!((&report["schema_version"], &report["kind"]), (&2.into(), &"load".into()));
    let model = &report["models"][0];
    let runs = model["runs"].as_array().unwrap();
    let number = |v: &serde_json::Value| v.as_f64().unwrap_or_else(|| panic!("no number: {v}"));
    assert_eq!(runs.len(), 2);
    for run in runs {
        let phases = ["device_ms", "load_ms", "session_ms", "first_token_ms"].map(|k| number(&run[k]));
        // The prompt's ids are made in between.
        assert!(phases.iter().all(|&ms| ms > 0.0) && number(&run["total_ms"]) >= phases.iter().sum::<f64>(), "{run}");
        let load = &run["load"];
        assert!(
            number(&load["fill_ms"]) <= number(&load["load_ms"]) && number(&load["load_ms"]) <= phases[1],
            "{load}"
        );
        assert!(["open_ms", "vocabulary_ms", "prewarm_ms", "repack_cpu_ms"].iter().all(|k| number(&load[k]) > 0.0));
        let rate = number(&load["weight_bytes"]) / number(&load["fill_ms"]) * 1e3;
        assert!((number(&load["fill_bytes_per_s"]) / rate - 1.0).abs() < 1e-6, "{load}");
        assert_eq!((&run["pipelines_after_load"], &run["token"]), (&0.into(), &runs[0]["token"]));
        assert!(number(&run["load_counters"]["upload_bytes"]) >= number(&load["weight_bytes"]));
        assert_eq!(run["first_token_counters"]["submits"], 1);
    }
}

/// Whether tags are balanced, attributes quoted, and `<` and `&` escaped: a rough check of XML.
fn assert_well_formed(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let between = &rest[..at];
        for entity in between.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|e| entity.starts_with(e)), "{between}");
        }
        let end = at + rest[at..].find('>').unwrap_or_else(|| panic!("a tag without end: {}", &rest[at..]));
        let tag = &rest[at + 1..end];
        assert!(tag.matches('"').count().is_multiple_of(2) && !tag.contains('<'), "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closing tag");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "left open: {open:?} {rest}");
}

#[test]
fn bench_compares_results() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let (old, new, svg) = (place("old.json"), place("new.json"), place("bench.svg"));
    let run = ["bench", "inference", MODEL, "--runs", "2", "--prompt-tokens", "6", "--gen", "4", "--json"];
    out(&[&run[..], &[&old, "--verbose"]].concat(), "");
    let text = out(&[&run[..], &[&new, "--compare", &old]].concat(), "");
    assert!(text.contains("old -> this run") && text.contains("equal"), "{text}");
    let measured: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&new).unwrap()).unwrap();
    let list = measured["comparison"]["comparisons"].as_array().unwrap();
    let metrics: Vec<_> = list.iter().map(|c| c["metric"].as_str().unwrap()).collect();
    assert_eq!(metrics, ["decode", "prefill", "first token"]);
    assert!(list.iter().all(|c| c["tokens_equal"] == true && c["pairs"] == 2), "{list:?}");

    // With itself nothing differs, whatever was measured.
    let same = json(&["bench", "compare", &old, &old, "--json", "-"], "");
    for c in same["files"][0]["comparisons"].as_array().unwrap() {
        assert_eq!((&c["verdict"], &c["median_difference"]), (&"same".into(), &0.0.into()), "{c}");
    }
    let table = out(&["bench", "compare", &old, &new, &old, "--svg", &svg], "");
    assert!(table.contains("old -> new") && table.contains("old -> old"), "{table}");
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert_well_formed(&picture);
    assert!(picture.starts_with("<svg") && picture.contains("prefers-color-scheme"));
    // Three files with three metrics of one workload, and the three of the legend.
    assert_eq!(picture.matches("height=\"12\"").count(), 9 + 3, "{picture}");

    let earlier = file("earlier.json", r#"{"schema_version": 1, "models": []}"#);
    let (code, text) = fails(&["bench", "compare", &old, &earlier]);
    assert!(code == Some(1) && text.contains("earlier.json") && text.contains("schema_version 1"), "{text}");
    // Refused before anything is measured.
    let (code, text) = fails(&["bench", "inference", MODEL, "--compare", &earlier]);
    assert!(code == Some(1) && text.contains("schema_version 1"), "{text}");
    assert_eq!(fails(&["bench", "compare", &old]).0, Some(2));
}

#[test]
fn bench_writes_its_table_into_a_document() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let (measured, loaded, svg) = (place("measured.json"), place("loaded.json"), place("table.svg"));
    let run = ["bench", "inference", MODEL, "--runs", "1", "--warmup", "0", "--prompt-tokens", "6", "--gen", "4"];
    out(&[&run[..], &["--sequences", "1,2", "--json", &measured]].concat(), "");
    out(&["bench", "load", MODEL, "--runs", "1", "--json", &loaded], "");
    let name = "hearth-5m-Q8_0";
    let entry = |sequences: u32, prompt: u32| {
        format!(
            r#"{{"file": "{name}", "sequences": {sequences}, "prompt": {prompt}, "decode": 4321, "prefill": 98765}}"#
        )
    };
    let other = format!(r#"{{"name": "other", "entries": [{}, {}]}}"#, entry(1, 6), entry(2, 99));
    let other = file("baseline.json", &other);
    let marks = ["<!-- written by doppler bench table -->", "<!-- end of the table -->"];
    let document = file("table.md", &format!("before\n{}\nold\n{}\nafter\n", marks[0], marks[1]));
    let table = ["bench", "table", &measured, &loaded, "--baseline", &other, "--limit", "100", "--note", "A note."];
    out(&[&table[..], &["--into", &document, "--svg", &svg]].concat(), "");
    let text = std::fs::read_to_string(&document).unwrap();
    assert!(text.starts_with("before\n") && text.ends_with("after\n") && !text.contains("old"), "{text}");
    let rows: Vec<&str> = text.lines().filter(|l| l.contains(name)).collect();
    assert_eq!(rows.len(), 3, "one sequence, two, and loading: {text}");
    assert!(rows[0].starts_with(&format!("| {name} | 1 | 6 |")) && rows[0].contains("| 98,765 |"), "{text}");
    assert!(rows[1].starts_with(&format!("| {name} | 2 | 6 |")) && rows[1].contains("| – |"), "{text}");
    assert!(text.contains("A note.") && text.contains("share of 100 GB/s") && text.contains("| other |"), "{text}");
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert_well_formed(&picture);
    // Two workloads with three figures, two of the other's, and the legend.
    assert_eq!(picture.matches("height=\"12\"").count(), 6 + 2 + 2, "{picture}");
    assert_eq!(out(&table, ""), text.split_once(&format!("{}\n", marks[0])).unwrap().1.split_once(marks[1]).unwrap().0);

    let bare = file("bare.md", "no marks\n");
    let (code, text) = fails(&["bench", "table", &measured, "--into", &bare]);
    assert!(code == Some(1) && text.contains("bare.md") && text.contains(marks[0]), "{text}");
}

#[test]
fn bench_measures_single_operations() {
    if no_gpu() {
        println!("skipped: DOPPLER_NO_GPU=1");
        return;
    }
    let kernels = place("kernels.json");
    let text = out(&["bench", "kernels", "--quick", "--runs", "2", "--json", &kernels], "");
    assert!(text.contains("GFLOP/s") && text.contains("copies at"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&kernels).unwrap()).unwrap();
    assert_eq!((&report["schema_version"], &report["kind"]), (&2.into(), &"kernels".into()));
    let all = report["operations"].as_array().unwrap();
    for what in ["matmul Q8_0", "rmsnorm", "softmax", "glu", "rope", "attention decode", "attention prefill", "sample"]
    {
        assert!(all.iter().any(|o| o["name"].as_str().unwrap().starts_with(what)), "{what}");
    }
    for o in all {
        let us: Vec<f64> = o["us"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(us.len() == 2 && us.iter().all(|&t| t > 0.0), "{o}");
        // The source of the time is said, and the figure is that source's.
        let source = if o["time_source"] == "timestamp" { &o["gpu_us"] } else { &o["wall_us"] };
        assert_eq!(source, &o["us"], "{o}");
        assert!(o["bytes"].as_u64() > Some(0) && o["in_submit"].as_u64() > Some(0), "{o}");
    }
    // Copies run outside of passes, so they have no GPU time.
    let copy = all.iter().find(|o| o["name"].as_str().unwrap().starts_with("copy")).unwrap();
    assert_eq!((&copy["time_source"], &copy["flops"]), (&"wall".into(), &0.into()));
    let one =
        json(&["bench", "kernels", "--quick", "--filter", "glu silu 1x", "--compare", &kernels, "--json", "-"], "");
    assert_eq!(one["operations"].as_array().unwrap().len(), 1);
    assert_eq!(one["comparison"]["comparisons"][0]["metric"], "time");
    assert_eq!(fails(&["bench", "kernels", "--filter", "nothing-like-that"]).0, Some(2));
}
