//! What holds for every format: sizes, decoding against vectors of an independent implementation, repacking.

use super::*;

/// A vector file of `tests/data/quants`: blocks of the format, then the weights they stand for. Random bits in every field and scales
/// of both signs, decoded by `gguf.quants` of the Python package gguf 0.19.0, which is GGML's own.
fn vectors(name: &str, block_bytes: usize, block_len: usize) -> (Vec<u8>, Vec<u32>) {
    let path = format!("{}/tests/data/quants/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let n = bytes.len() / (block_bytes + 4 * block_len);
    assert!(n > 0 && bytes.len() == n * (block_bytes + 4 * block_len), "{path}");
    let values = bytes.split_off(n * block_bytes);
    (bytes, values.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn bits_of(format: &Format, blocks: &[u8]) -> Vec<u32> {
    let mut out = vec![0.0; blocks.len() / format.block_bytes * format.block_len];
    (format.dequantize)(blocks, &mut out);
    out.into_iter().map(|x| x.to_bits()).collect()
}

#[test]
fn decoding_is_that_of_ggml_bit_for_bit() {
    for f in FORMATS.iter().filter(|f| f.block_len > 1) {
        let (blocks, want) = vectors(f.name, f.block_bytes, f.block_len);
        let got = bits_of(f, &blocks);
        let wrong = got.iter().zip(&want).position(|(g, w)| g != w);
        assert_eq!(wrong, None, "{}: weight and its wanted bits", f.name);
        assert_eq!(got.len(), want.len());
    }
}

/// Every bit of a block means something: no field is read from the wrong place twice.
#[test]
fn every_bit_of_a_block_is_read() {
    for f in FORMATS.iter().filter(|f| f.block_len > 1) {
        let (blocks, _) = vectors(f.name, f.block_bytes, f.block_len);
        let one = &blocks[..f.block_bytes];
        let before = bits_of(f, one);
        for bit in 0..f.block_bytes * 8 {
            let mut changed = one.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(bits_of(f, &changed) != before, "{}: bit {} of byte {}", f.name, bit % 8, bit / 8);
        }
    }
}

#[test]
fn planes_hold_a_row_and_are_word_aligned() {
    for f in FORMATS {
        let on_device: usize = f.planes.iter().map(|p| p.row_bytes(SUPER_BLOCK)).sum();
        let in_file = f.row_bytes(SUPER_BLOCK);
        assert!(on_device >= in_file && on_device * 100 <= in_file * 103, "{}: {on_device} of {in_file}", f.name);
        let defines = |name: &str| f.fragment.contains(&format!("fn {name}(b: u32)"));
        let bytes = f.fragment.contains("fn weight_bytes_of(r: WeightRaw, b: u32)");
        assert!(defines("weight_block") && bytes == f.has_bytes(), "{}", f.name);
        assert_eq!(f.fragment.contains("fn weight_eight(i: u32)"), !f.has_bytes(), "{}", f.name);
        assert_eq!(f.planes[0].bytes % 8, 0, "{}: quants are read as vec2<u32> or vec4<u32>", f.name);
        for p in f.planes {
            assert!(f.fragment.contains(&format!(" {}:", p.name)), "{}: plane {}", f.name, p.name);
            // Four rows are a whole number of words, which uploading in chunks relies on.
            assert_eq!(p.row_bytes(f.block_len) * 4 % 4, 0);
            assert!(f.block_len.is_multiple_of(p.weights) || p.weights == GPU_BLOCK, "{}: {p:?}", f.name);
        }
        assert_eq!(by_ggml_type(f.ggml_type), Some(*f));
        assert_eq!(by_name(f.name), Some(*f));
    }
}

/// Two blocks repacked together are each of them repacked alone, and planes are filled to their ends.
#[test]
fn repacking_keeps_blocks_apart_and_fills_planes() {
    for f in FORMATS.iter().filter(|f| f.block_len > 1) {
        let (blocks, _) = vectors(f.name, f.block_bytes, f.block_len);
        let (a, mut b) = (blocks[..f.block_bytes].to_vec(), blocks[..f.block_bytes].to_vec());
        b.reverse();
        let repack = |row: &[u8], fill: u8| {
            let k = row.len() / f.block_bytes * f.block_len;
            let mut planes: Vec<Vec<u8>> = f.planes.iter().map(|p| vec![fill; p.row_bytes(k)]).collect();
            let mut targets: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
            (f.repack)(row, &mut targets);
            planes
        };
        let (of_a, of_b) = (repack(&a, 0), repack(&b, 0));
        let both = repack(&[a, b].concat(), 0xa5);
        for (i, plane) in both.iter().enumerate() {
            assert_eq!(plane, &[of_a[i].as_slice(), &of_b[i]].concat(), "{}: plane {i}", f.name);
        }
    }
}

#[test]
fn element_formats_pad_with_zeros() {
    let mut plane = vec![0; 16];
    (f32::F32.repack)(&[1, 2, 3, 4], &mut [&mut plane]);
    assert_eq!(&plane[..6], &[1, 2, 3, 4, 0, 0]);
}

/// What no file of a model should have is known by name and does not run.
#[test]
fn other_types_do_not_run() {
    for id in [9, 15, 16, 17, 18, 19, 21, 22, 29, 34, 35, 40] {
        assert_eq!(by_ggml_type(id), None);
    }
}
