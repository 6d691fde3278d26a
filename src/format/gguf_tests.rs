//! Tests of the container reader: what it reads, what it refuses, and that no bytes make it panic.

use super::*;
use crate::format::{Array, GgufWriter};

fn small() -> GgufWriter {
    GgufWriter::new()
        .key("general.architecture", "toy")
        .key("general.alignment", 64u32)
        .key("toy.block_count", 2u64)
        .key("toy.eps", 1e-5f64)
        .key("toy.neg", -1i8)
        .key("toy.flag", true)
        .key("toy.ff", vec![3i32, 4])
        .key("toy.tokens", vec!["a".to_owned(), "b\u{e9}".to_owned()])
        .key("toy.nested", Array::Array(vec![Array::U8(vec![1, 2]), Array::F64(vec![0.5])]))
        .tensor("a.weight", &[4, 2], 0, (0..32).collect())
        .tensor("b.weight", &[32, 1], 8, vec![7; 34])
}

fn read(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::from_bytes("toy.gguf", bytes)
}

fn refused(bytes: Vec<u8>, wanted: &str) {
    match read(bytes) {
        Ok(_) => panic!("read a file that should be refused with {wanted:?}"),
        Err(e) => {
            assert!(e.to_string().contains("toy.gguf"), "{e}");
            assert!(e.to_string().contains(wanted), "{e}, wanted {wanted:?}");
        }
    }
}

#[test]
fn reads_what_was_written() {
    let g = read(small().to_bytes()).unwrap();
    assert_eq!((g.version(), g.alignment(), g.metadata().len()), (3, 64, 9));
    assert_eq!(g.require_str("general.architecture").unwrap(), "toy");
    assert_eq!(g.require_u32("toy.block_count").unwrap(), 2);
    assert_eq!(g.get_u32_per_layer("toy.block_count", 3).unwrap(), Some(vec![2, 2, 2]));
    assert_eq!(g.get_u32_per_layer("toy.ff", 2).unwrap(), Some(vec![3, 4]));
    assert!(g.get_u32_per_layer("toy.ff", 3).is_err());
    assert_eq!(g.get_f32("toy.eps").unwrap(), Some(1e-5));
    assert_eq!(g.get_bool("toy.flag").unwrap(), Some(true));
    assert_eq!(g.get_str_array("toy.tokens").unwrap().unwrap()[1], "b\u{e9}");
    assert_eq!(g.get_u32("toy.absent").unwrap(), None);
    let t = g.tensor("a.weight").unwrap();
    assert_eq!((t.dims.as_slice(), t.bytes, t.offset % 64, t.elements()), ([4u64, 2].as_slice(), 32, 0, 8));
    assert_eq!(g.data(t), (0..32).collect::<Vec<u8>>());
    assert_eq!(g.data(g.tensor("b.weight").unwrap()), vec![7; 34]);
}

#[test]
fn wrong_types_name_key_and_types() {
    let g = read(small().to_bytes()).unwrap();
    let e = g.get_u32("general.architecture").unwrap_err().to_string();
    assert!(e.contains("general.architecture") && e.contains("u32") && e.contains("string"), "{e}");
    assert!(g.get_u32("toy.neg").unwrap_err().to_string().contains("-1"));
    assert!(g.require_str("toy.absent").unwrap_err().to_string().contains("missing key \"toy.absent\""));
}

#[test]
fn refuses_bad_files() {
    refused(vec![], "empty");
    refused(b"GGML".to_vec(), "not a GGUF file");
    refused([b"GGUF".as_slice(), &3u32.to_be_bytes()].concat(), "big-endian");
    refused([b"GGUF".as_slice(), &9u32.to_le_bytes()].concat(), "version 9");
    refused([b"GGUF".as_slice(), &3u32.to_le_bytes(), &[0xff; 16]].concat(), "tensor count");
    refused(small().key("toy.flag", 1u8).to_bytes(), "twice");
    refused(small().tensor("a.weight", &[1], 0, vec![0; 4]).to_bytes(), "twice");
    refused(small().tensor("c", &[32], 99, vec![0; 4]).to_bytes(), "unknown tensor type 99");
    refused(small().tensor("c", &[31], 8, vec![0; 34]).to_bytes(), "multiple of 32");
    refused(small().tensor("c", &[0], 0, vec![]).to_bytes(), "zero");
    refused(small().tensor("c", &[1 << 40, 1 << 40], 0, vec![]).to_bytes(), "too large");
    refused(small().tensor("c", &[1 << 40], 0, vec![]).to_bytes(), "not in the file");
    refused(GgufWriter::new().key("general.alignment", 48u32).to_bytes(), "general.alignment");
    refused(GgufWriter::new().key("split.count", 3u16).to_bytes(), "split.count");
    let deep = (0..40).fold(Array::U8(vec![]), |a, _| Array::Array(vec![a]));
    refused(GgufWriter::new().key("deep", deep).to_bytes(), "deeper");
}

#[test]
fn no_truncation_panics() {
    let whole = small().to_bytes();
    for n in 0..whole.len() {
        assert!(read(whole[..n].to_vec()).is_err(), "accepted {n} of {} bytes", whole.len());
    }
}

#[test]
fn no_flipped_bits_panic() {
    let whole = small().to_bytes();
    // Every single bit, then many random handfuls of them (xorshift; the seed is fixed).
    let try_one = |bytes: Vec<u8>| {
        if let Ok(g) = read(bytes) {
            g.tensors().iter().for_each(|t| assert_eq!(g.data(t).len() as u64, t.bytes));
        }
    };
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        try_one(bytes);
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..5000 {
        let mut bytes = whole.clone();
        for _ in 0..8 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = (seed >> 16) as usize % bytes.len();
            bytes[at] = seed as u8;
        }
        try_one(bytes);
    }
}
