//! How text is cut into pieces before BPE: the published pattern of each family of models, by the name GGUF files use.
//!
//! The patterns are part of the models (a different one gives different tokens), so they are data and not a matter of
//! taste. Each pattern of a list cuts the pieces that the one before left.
//!
//! The published patterns end in `\s+(?!\S)|\s+`: white space leaves its last character to the word behind it. Looking
//! ahead makes a pattern backtrack, and the engine gives up, without a word, after a million steps. So here they end in
//! `\s+` alone, and `bpe` leaves the character to the word. Invariant: every pattern compiles and none looks around (tested).

use crate::error::{Result, bail};

/// What the `pre` name of a file says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pre {
    /// A pattern that begins with `\d+` finds numbers, which are cut into groups of three digits from the right.
    pub patterns: &'static [&'static str],
    /// A piece that is a token as a whole is taken without trying merges.
    pub ignore_merges: bool,
    /// Whether such files begin a text with BOS when they do not say.
    pub add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
const CJK: &str = "[\u{4e00}-\u{9fa5}\u{0800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
// The letters this family names one by one; it is not a Unicode class.
const DEEPSEEK_LETTERS: &str = "\\s?[\
    A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\
    \u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\
    \u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\
    \u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\
    \u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\
    \u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\
    \u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\
    \u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\
    \u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\
    \u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\
    \u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\
    \u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\
    \u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\
    \u{1e900}-\u{1e943}]+";
const DEEPSEEK_PUNCTUATION: &str = "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##;
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+";

const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+";
// As QWEN2, without the English contractions.
const NO_CONTRACTIONS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
// As GPT4O, with Han apart from other letters.
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const YOUTU_SCRIPTS: &str = "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+|[！…“”‘’—：；，\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+|\
    [\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";

const fn cut(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, ignore_merges: false, add_bos: false }
}

const fn whole_without_bos(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, ignore_merges: true, add_bos: false }
}

const fn whole_first(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, ignore_merges: true, add_bos: true }
}

/// Splits into lines and runs of line ends; for BPE that works on UTF-8 with `▁` for the space.
pub(super) const LINES: Pre = Pre { patterns: &[r"[^\n]+|[\n]+"], ignore_merges: false, add_bos: true };

/// Every name that is known, with what it means.
const NAMES: &[(&[&str], Pre)] = &[
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        whole_first(&[LLAMA3]),
    ),
    (&["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], cut(&[LLAMA3])),
    (
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez", "grok-2"],
        cut(&[QWEN2]),
    ),
    (&["qwen35"], cut(&[QWEN35])),
    (&["tekken"], whole_first(&[TEKKEN])),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], cut(&[GPT4O])),
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "exaone4",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        cut(&[GPT2]),
    ),
    (
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        cut(&[r"\p{N}", GPT2]),
    ),
    (&["default"], cut(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"])),
    (&["falcon"], cut(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"])),
    (&["deepseek-llm"], cut(&[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", CJK, r"\p{N}+"])),
    (&["deepseek-coder"], cut(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"])),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        cut(&[r"\p{N}{1,3}", "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+", DEEPSEEK3]),
    ),
    (&["poro-chat", "bloom", "gpt3-finnish"], cut(&[BLOOM])),
    (&["viking"], cut(&[BLOOM, r"\p{N}"])),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], cut(&[BAILING])),
    (&["seed-coder"], cut(&[SEED_CODER])),
    (&["exaone-moe"], cut(&[EXAONE_MOE])),
    (&["ufakzeka"], cut(&[NO_CONTRACTIONS])),
    (&["laguna"], cut(&[r"[^\n]+|[\n]+", QWEN2])),
    (&["kimi-k2"], cut(&[KIMI])),
    (&["granite-embed-multi-97m"], whole_without_bos(&[GPT4O])),
    (&["youtu"], whole_without_bos(&[YOUTU_SCRIPTS, YOUTU])),
    (&["tiny_aya", "cohere2moe"], cut(&[r"\d+\b", GPT4O])),
    (&["superbpe"], cut(&[r"\p{N}+", r"\d+"])),
];

/// What a file's `pre` name means.
pub(super) fn by_name(name: &str) -> Result<Pre> {
    match NAMES.iter().find(|(names, _)| names.contains(&name)) {
        Some((_, pre)) => Ok(*pre),
        None => bail!(Unsupported, "the pre-tokenizer {name:?} (key tokenizer.ggml.pre)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::utils::SysRegex;

    #[test]
    fn every_pattern_compiles_and_names_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for (names, pre) in NAMES {
            names.iter().for_each(|n| assert!(seen.insert(n), "{n} twice"));
            assert!(pre.patterns.iter().all(|p| !p.contains("(?!") && !p.contains("(?=")), "{names:?}");
            pre.patterns
                .iter()
                .for_each(|p| assert!(SysRegex::new(p).is_ok(), "{names:?}: {:?}", SysRegex::new(p).err()));
        }
        assert!(by_name("no-such").unwrap_err().to_string().contains("no-such"));
    }
}
