//! The model files in ../shared are read completely and their shapes add up.

use doppler::format::Gguf;
use std::path::{Path, PathBuf};

fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if !dir.is_dir() {
        println!("skipped: ../shared is absent");
        return None;
    }
    Some(dir)
}

fn gguf_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            gguf_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "gguf") {
            found.push(path);
        }
    }
}

#[test]
fn every_shared_file_opens() {
    let Some(dir) = shared() else { return };
    let mut files = Vec::new();
    for part in ["golden", "tokenizers", "models"] {
        gguf_files(&dir.join(part), &mut files);
    }
    assert!(!files.is_empty());
    for path in files {
        let g = Gguf::open(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(g.require_str("general.architecture").is_ok());
        for t in g.tensors() {
            assert_eq!(g.data(t).len() as u64, t.bytes, "{} {}", g.name(), t.name);
        }
        // Tensors stand one after the other: the last one ends where the file does, but for padding.
        if let Some(end) = g.tensors().iter().map(|t| t.offset + t.bytes).max() {
            let len = std::fs::metadata(&path).unwrap().len();
            assert!(len >= end && len - end < g.alignment(), "{}: {end} of {len}", g.name());
        }
    }
}

#[test]
fn what_is_not_a_model_is_refused_with_its_name() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let e = Gguf::open(&manifest).unwrap_err();
    assert!(matches!(e, doppler::error::Error::BadFile(_)), "{e}");
    assert!(e.to_string().contains("Cargo.toml") && e.to_string().contains("not a GGUF file"), "{e}");
    let e = Gguf::open(Path::new("/nonexistent/model.gguf")).unwrap_err();
    assert!(matches!(e, doppler::error::Error::Io(_)), "{e}");
}
