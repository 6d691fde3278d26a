//! Tests of `tokenizer.json` files small enough to read.

use super::super::tokenizer::Tokenizer;
use super::*;
use serde_json::json;

/// As SentencePiece models are written: `▁` for the space, bytes for the rest, BOS by the file's template, tokens with rules of their own.
fn sentence_piece() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in
        ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain((0..=255).map(|b| format!("<0x{b:02X}>")))
    {
        vocab.insert(token, json!(vocab.len()));
    }
    for token in ["\u{2581}", "a", "b", "ab", "\u{2581}ab"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    let added = |id: u32, content: &str, special: bool, lstrip: bool, rstrip: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": rstrip, "normalized": false, "special": special});
    json!({
        "version": "1.0",
        "added_tokens": [
            added(0, "<unk>", true, false, false), added(1, "<s>", true, false, false), added(2, "</s>", true, false, false),
            added(264, "<|end|>", true, false, true), added(265, "<mine>", false, true, false)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["a", "b"], ["\u{2581}", "ab"]]}
    })
}

fn build(json: &Value, files: &HfFiles) -> Result<Tokenizer> {
    Tokenizer::from_json("tokenizer.json", json.to_string().as_bytes(), files)
}

#[test]
fn texts_there_and_back() {
    let files = HfFiles {
        tokenizer_config: Some(json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}})),
        generation_config: Some(json!({"eos_token_id": [2, 264]})),
        config: None,
    };
    let t = build(&sentence_piece(), &files).unwrap();
    assert_eq!((t.bos(), t.eos(), t.adds_bos(), t.end_of_generation()), (Some(1), Some(2), true, &[2, 264][..]));
    assert_eq!(t.encode("ab ab", true, false).unwrap(), [1, 263, 263]);
    assert_eq!(t.encode("\u{e9}", false, false).unwrap(), [259, 3 + 0xc3, 3 + 0xa9]);
    for text in ["ab ab", " two  spaces\n", "\u{1f409} h\u{e9}", "</s>", "<|end|> x"] {
        let ids = t.encode(text, true, false).unwrap();
        assert!(!ids.contains(&2) && !ids.contains(&264), "{text:?}: special tokens were not asked for");
        assert_eq!(t.decode(&ids, false).unwrap(), text);
    }
    assert!(t.is_control(264) && t.token_bytes(264, false).unwrap().is_empty());
    assert_eq!(t.token_bytes(263, false).unwrap(), b" ab");
}

#[test]
fn added_tokens_keep_their_rules() {
    let t = build(&sentence_piece(), &HfFiles::default()).unwrap();
    // White space behind <|end|> and before <mine> goes with them; <mine> is no special token and always found.
    assert_eq!(t.encode("ab<|end|>  ab", false, true).unwrap(), [263, 264, 263]);
    assert_eq!(t.encode("ab  <mine>ab", false, false).unwrap(), [263, 265, 263]);
    assert_eq!((t.bos(), t.adds_bos()), (None, false), "nothing says which token begins a text");
}

#[test]
fn end_tokens_are_special_whatever_the_file_says() {
    let mut json = sentence_piece();
    json["added_tokens"][3]["special"] = json!(false);
    let t = build(&json, &HfFiles::default()).unwrap();
    assert!(!t.encode("<|end|>", false, false).unwrap().contains(&264));
    assert_eq!(t.encode("<|end|>", false, true).unwrap(), [264]);
    assert!(t.is_control(264) && t.end_of_generation().contains(&264));
}

#[test]
fn broken_files_are_refused_by_name() {
    let refused = |json: &Value, wanted: &str| {
        let e = build(json, &HfFiles::default()).unwrap_err().to_string();
        assert!(e.contains("tokenizer.json") && e.contains(wanted), "{e}");
    };
    refused(&json!({}), "model.type");
    refused(&json!({"model": {"type": "WordLevel"}}), "WordLevel");
    let mut odd = sentence_piece();
    odd["pre_tokenizer"] = json!({"type": "Novel"});
    refused(&odd, "");
    assert!(Tokenizer::from_json("tokenizer.json", b"{", &HfFiles::default()).is_err());
}
