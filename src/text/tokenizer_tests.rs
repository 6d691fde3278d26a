//! Tests of the tokenizer on vocabularies small enough to read.

use super::*;
use crate::error::Error;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

/// Byte-level: all 256 bytes, a few words, three special tokens.
fn byte_level() -> Vocab {
    let mut tokens: Vec<String> = (0..=255).map(|b| byte_char(b).to_string()).collect();
    tokens.extend(strings(&["he", "ll", "hell", "hello", "\u{120}h", "<|im_end|>", "<|x|>", "<u>"]));
    let mut types = vec![1; tokens.len()];
    types[261..].copy_from_slice(&[1, 3, 4]);
    Vocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types: Some(types),
        merges: strings(&["h e", "l l", "he ll", "hell o"]),
        bos: Some(262),
        eos: Some(262),
        add_bos: Some(true),
        ..Vocab::default()
    }
}

/// SentencePiece: unknown, BOS, EOS, 256 bytes, some pieces.
fn sentence_piece() -> Vocab {
    let mut tokens = strings(&["<unk>", "<s>", "</s>"]);
    tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(strings(&["\u{2581}", "a", "b", "ab", "\u{2581}a", "aa"]));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1; 6]);
    let mut scores = vec![0.0; 259];
    scores.extend([-9.0, -9.0, -9.0, -1.0, -2.0, -1.0]);
    Vocab { model: "llama".into(), tokens, token_types: Some(types), scores: Some(scores), ..Vocab::default() }
}

#[test]
fn byte_level_round_trip() {
    let t = Tokenizer::new(byte_level()).unwrap();
    assert_eq!(t.encode("hello", false, false).unwrap(), [259]);
    assert_eq!(t.encode("hello", true, false).unwrap(), [262, 259]);
    for text in ["", "hello hell\u{e9}\n", "\u{1f525} <|im_end|> <|x|><u>", "\0\t  x"] {
        assert_eq!(t.decode(&t.encode(text, false, false).unwrap(), true).unwrap(), text);
        assert_eq!(t.decode(&t.encode(text, false, true).unwrap(), true).unwrap(), text);
    }
}

#[test]
fn special_tokens_only_where_asked() {
    let t = Tokenizer::new(byte_level()).unwrap();
    assert!(!t.encode("<|x|>", false, false).unwrap().contains(&262));
    assert_eq!(t.encode("<|x|>hello", false, true).unwrap(), [262, 259]);
    assert_eq!(t.encode("<u>hello", false, false).unwrap(), [263, 259], "user-defined ones are always found");
    // Its file calls <|im_end|> ordinary text; it ends turns all the same.
    assert!(t.is_control(261) && t.end_of_generation() == [261, 262]);
    assert!(!t.encode("<|im_end|>", false, false).unwrap().contains(&261));
    assert_eq!((t.token_bytes(262, false).unwrap().len(), t.token_bytes(262, true).unwrap()), (0, b"<|x|>".to_vec()));
    assert_eq!((t.find("<u>"), t.token_text(263), t.vocab_size()), (Some(263), Some("<u>"), 264));
    assert!(matches!(t.token_bytes(264, true), Err(Error::InvalidArgument(_))));
}

#[test]
fn sentence_piece_joins_by_score_then_from_the_left() {
    let t = Tokenizer::new(sentence_piece()).unwrap();
    assert_eq!(t.encode("ab", false, false).unwrap(), [259, 262]);
    assert_eq!(t.encode("aab", false, false).unwrap(), [259, 264, 261], "equal scores: the left pair");
    assert_eq!(t.encode("\u{e9}", false, false).unwrap(), [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(t.encode("a", true, false).unwrap(), [1, 263]);
    assert_eq!(t.encode("a</s>a", false, true).unwrap(), [263, 2, 263]);
    assert!(!t.encode("</s>", false, false).unwrap().contains(&2));
    for text in ["", " ", "  ab \u{4f60}\n", "</s>"] {
        assert_eq!(t.decode(&t.encode(text, true, false).unwrap(), false).unwrap(), text);
    }
    assert_eq!(t.token_bytes(263, false).unwrap(), b" a");
    assert_eq!(t.token_bytes(3 + 0xc3, false).unwrap(), [0xc3]);
}

#[test]
fn harmony_shows_its_channels_and_goes_on_after_end() {
    let mut v = byte_level();
    for text in ["<|end|>", "<|return|>", "<|call|>", "<|channel|>"] {
        v.tokens.push(text.into());
        v.token_types.as_mut().unwrap().push(3);
    }
    let t = Tokenizer::new(v).unwrap();
    let id = |s: &str| t.find(s).unwrap();
    assert!(!t.end_of_generation().contains(&id("<|end|>")) && t.end_of_generation().contains(&id("<|return|>")));
    assert_eq!(t.decode(&[id("<|channel|>"), id("<|return|>")], false).unwrap(), "<|channel|>");
}

#[test]
fn broken_vocabularies_are_refused_by_name() {
    let refused = |v: Vocab, wanted: &str| {
        let e = Tokenizer::new(v).unwrap_err().to_string();
        assert!(e.contains(wanted), "{e}, wanted {wanted:?}");
    };
    refused(Vocab { model: "t5".into(), ..byte_level() }, "\"t5\"");
    refused(Vocab { pre: Some("novel".into()), ..byte_level() }, "\"novel\"");
    refused(Vocab { tokens: vec![], ..byte_level() }, "tokens");
    refused(Vocab { merges: strings(&["hello"]), ..byte_level() }, "merges");
    refused(Vocab { merges: vec![], ..byte_level() }, "merges");
    refused(Vocab { token_types: Some(vec![1]), ..byte_level() }, "token_type");
    refused(Vocab { scores: None, ..sentence_piece() }, "scores");
    // An id outside the vocabulary is left out, not followed.
    let t = Tokenizer::new(Vocab { bos: Some(9999), eos: None, ..byte_level() }).unwrap();
    assert_eq!((t.bos(), t.encode("hello", true, false).unwrap()), (None, vec![259]));
    // Without byte tokens what cannot be spelled becomes the unknown token.
    let v = sentence_piece();
    let keep = |i: usize| !(3..259).contains(&i);
    fn only<T: Clone>(list: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
        list.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, x)| x.clone()).collect()
    }
    let small = Vocab {
        tokens: only(&v.tokens, keep),
        scores: v.scores.as_ref().map(|s| only(s, keep)),
        token_types: v.token_types.as_ref().map(|s| only(s, keep)),
        ..v.clone()
    };
    assert_eq!(Tokenizer::new(small).unwrap().encode("\u{e9}", false, false).unwrap(), [3, 0]);
}
