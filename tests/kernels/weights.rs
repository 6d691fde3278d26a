//! Reading weights: lookup, decoding of whole weights, uploading.

use doppler::gpu::Gpu;
use doppler::kernels::{
    MatmulPath, Matrix, RowSource, Weight, WeightUploader, dequant, gather, gather_positions, matmul_with,
};
use doppler::quant::{FORMATS, Format, by_name};

use crate::common::*;

/// Widths that a format can have. Of formats with blocks: one, an odd number, many.
pub(crate) fn widths(format: &Format) -> Vec<usize> {
    match format.block_len {
        1 => vec![4, 36, 64, 260, 1000, 32, 96, 1024],
        32 => vec![64, 32, 96, 1024],
        block => vec![block, 3 * block, 1024],
    }
}

/// One width where formats can be compared.
pub(crate) fn common_width(format: &Format) -> usize {
    64usize.next_multiple_of(format.block_len)
}

/// A weight on the device beside what it means.
pub(crate) struct TestWeight {
    pub(crate) weight: Weight,
    pub(crate) values: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Stacks random sources of these formats and row counts.
pub(crate) fn weight(gpu: &Gpu, rng: &mut Rng, k: usize, sources: &[(&'static Format, u32)], bias: bool) -> TestWeight {
    let scope = gpu.scope(doppler::gpu::Phase::Load);
    let data: Vec<Vec<u8>> = sources.iter().map(|&(f, rows)| rng.rows(f, rows as usize, k)).collect();
    let biases: Vec<Vec<f32>> = sources.iter().map(|&(_, rows)| rng.floats(rows as usize)).collect();
    let list: Vec<RowSource<'_>> = sources
        .iter()
        .zip(data.iter().zip(&biases))
        .map(|(&(format, rows), (data, b))| RowSource { format, rows, data, bias: bias.then_some(b.as_slice()) })
        .collect();
    let mut seen = 0;
    let mut progress = |n| {
        seen += n;
        Ok(())
    };
    let mut uploader = WeightUploader::new(gpu, &scope, &mut progress);
    let weight = uploader.upload("test", k as u32, &list).unwrap();
    uploader.finish().unwrap();
    assert_eq!(seen, data.iter().map(|d| d.len() as u64).sum::<u64>(), "progress counts every byte");
    let values = sources.iter().zip(&data).flat_map(|(&(f, _), d)| decode(f, d)).collect();
    TestWeight { weight, values, bias: bias.then(|| biases.concat()) }
}

#[test]
fn dequant_of_every_format_is_exact() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for format in FORMATS {
            for k in widths(format) {
                let mut rng = Rng(k as u64);
                let rows = 7;
                let w = weight(gpu, &mut rng, k, &[(format, rows)], false);
                let y = untouched(gpu, rows as usize * k + 1);
                run(gpu, dequant(&w.weight, (&y).into()).unwrap());
                let mut want = w.values;
                want.push(UNTOUCHED);
                same_bits(&format!("dequant {} {k} ({})", format.name, v.name), &download(gpu, &y, want.len()), &want);
            }
        }
    }
}

/// Blocks decoded by GGML's own code (`src/quant/tests.rs` says how they were made), with scales at the ends of their range.
#[test]
fn dequant_agrees_with_ggml() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        for format in FORMATS.iter().filter(|f| f.block_len > 1) {
            let path = format!("{}/tests/data/quants/{}.bin", env!("CARGO_MANIFEST_DIR"), format.name);
            let mut data = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let rows = data.len() / (format.block_bytes + format.block_len * 4);
            let values = data.split_off(rows * format.block_bytes);
            let mut want: Vec<f32> = values.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
            let scope = gpu.scope(doppler::gpu::Phase::Load);
            let mut progress = |_| Ok(());
            let mut uploader = WeightUploader::new(gpu, &scope, &mut progress);
            let source = RowSource { format, rows: rows as u32, data: &data, bias: None };
            let w = uploader.upload("vectors", format.block_len as u32, &[source]).unwrap();
            uploader.finish().unwrap();
            let y = untouched(gpu, want.len());
            run(gpu, dequant(&w, (&y).into()).unwrap());
            let got = download(gpu, &y, want.len());
            // Scales of MXFP4 go down to 2^-128; a device may take what is below the smallest normal number for zero.
            let least = 12.0 * f32::MIN_POSITIVE;
            for (w, g) in want.iter_mut().zip(&got).filter(|(w, g)| w.abs() < least && **g == 0.0) {
                *w = *g;
            }
            same_bits(&format!("vectors of {} ({})", format.name, v.name), &got, &want);
        }
    }
}

#[test]
fn dequant_of_stacked_sources() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        let (q8, f16, q4) = (by_name("Q8_0").unwrap(), by_name("F16").unwrap(), by_name("Q4_0").unwrap());
        let mut rng = Rng(17);
        let w = weight(gpu, &mut rng, 96, &[(q8, 3), (q8, 5), (f16, 1), (q4, 70)], false);
        assert_eq!(w.weight.parts().len(), 3, "neighbours of one format share a part");
        assert_eq!(w.weight.rows(), 79);
        let y = untouched(gpu, w.values.len() + 1);
        run(gpu, dequant(&w.weight, y.slice(0, w.values.len() as u64 * 4)).unwrap());
        let mut want = w.values;
        want.push(UNTOUCHED);
        same_bits(&format!("stacked dequant ({})", v.name), &download(gpu, &y, want.len()), &want);
    }
}

#[test]
fn gather_of_every_format() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for format in FORMATS {
            for k in widths(format) {
                let mut rng = Rng(k as u64 + 1);
                // Two parts, of which the second begins in the middle of the table.
                let f32_ = by_name("F32").unwrap();
                let other = if format.name == "F32" { by_name("F16").unwrap() } else { f32_ };
                let w = weight(gpu, &mut rng, k, &[(format, 9), (other, 4)], false);
                // Repeated, first, last, and one past the end, whose row stays.
                let tokens = [12u32, 0, 8, 9, 0, 13, u32::MAX, 5];
                let tb = upload_words(gpu, &tokens);
                let stride = k + 3;
                for scale in [1.0f32, 0.5] {
                    let y = untouched(gpu, tokens.len() * stride);
                    let m = Matrix { stride: stride as u32, ..Matrix::new(&y, tokens.len() as u32, k as u32) };
                    run(gpu, gather(&w.weight, (&tb).into(), m, scale).unwrap());
                    let want: Vec<f32> = tokens
                        .iter()
                        .flat_map(|&t| {
                            let mut row = match t {
                                0..13 => w.values[t as usize * k..][..k].iter().map(|x| x * scale).collect(),
                                _ => vec![UNTOUCHED; k],
                            };
                            row.resize(stride, UNTOUCHED);
                            row
                        })
                        .collect();
                    let got = download(gpu, &y, want.len());
                    same_bits(&format!("gather {} {k} ({})", format.name, v.name), &got, &want);
                }
            }
        }
    }
}

/// Rows of a table are added by the positions of a batch's rows; a position past the end adds nothing.
#[test]
fn positions_are_added() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for format in FORMATS {
            let k = common_width(format);
            let mut rng = Rng(k as u64 + 2);
            let other = by_name(if format.name == "F32" { "F16" } else { "F32" }).unwrap();
            let w = weight(gpu, &mut rng, k, &[(format, 9), (other, 4)], false);
            let positions = [12u32, 0, 8, 9, 0, 13, u32::MAX, 5];
            let rows: Vec<u32> = positions.iter().flat_map(|&p| [3, p]).collect();
            let stride = k + 3;
            let old = rng.floats(positions.len() * stride);
            let (rb, y) = (upload_words(gpu, &rows), upload(gpu, &old));
            let m = Matrix { stride: stride as u32, ..Matrix::new(&y, positions.len() as u32, k as u32) };
            run(gpu, gather_positions(&w.weight, (&rb).into(), m).unwrap());
            let mut want = old.clone();
            for (row, &p) in want.chunks_mut(stride).zip(&positions).filter(|(_, p)| **p < 13) {
                row.iter_mut().zip(&w.values[p as usize * k..][..k]).for_each(|(x, w)| *x += w);
            }
            same_bits(&format!("positions {} ({})", format.name, v.name), &download(gpu, &y, want.len()), &want);
            assert!(gather_positions(&w.weight, rb.slice(0, rb.size() / 2), m).is_err(), "too few rows");
        }
    }
}

/// More threads than one grid dimension can start.
#[test]
fn gather_of_more_rows_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(2);
    let w = weight(gpu, &mut rng, 4, &[(by_name("F16").unwrap(), 100)], false);
    let tokens: Vec<u32> = (0..65_535 * 64 + 999).map(|_| rng.below(100)).collect();
    let (tb, y) = (upload_words(gpu, &tokens), untouched(gpu, tokens.len() * 4 + 1));
    run(gpu, gather(&w.weight, (&tb).into(), Matrix::new(&y, tokens.len() as u32, 4), 1.0).unwrap());
    let mut want: Vec<f32> = tokens.iter().flat_map(|&t| w.values[t as usize * 4..][..4].to_vec()).collect();
    want.push(UNTOUCHED);
    same_bits("large gather", &download(gpu, &y, want.len()), &want);
}

/// A table larger than the 128 MiB that small adapters can bind: split there into several parts, one part elsewhere, and the same
/// results from lookup and product.
#[test]
fn a_table_beyond_128_mib() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let (k, rows) = (1024usize, 75_000usize);
    let format = by_name("F16").unwrap();
    let mut rng = Rng(42);
    // Halves in ±[0.5, 1), by bits: decoding 75 million of them one by one would take longer than the test.
    let data: Vec<u8> = (0..rows * k / 4)
        .flat_map(|_| ((rng.word() & 0x83ff_83ff_83ff_83ff) | 0x3800_3800_3800_3800).to_le_bytes())
        .collect();
    let scope = v.scope();
    let mut progress = |_| Ok(());
    let mut uploader = WeightUploader::new(gpu, &scope, &mut progress);
    let source = RowSource { format, rows: rows as u32, data: &data, bias: None };
    let w = uploader.upload("large", k as u32, &[source]).unwrap();
    uploader.finish().unwrap();
    let split = data.len() as u64 > gpu.max_binding_bytes();
    assert_eq!(w.parts().len() > 1, split, "split where the adapter binds {}", gpu.max_binding_bytes());
    let row = |r: usize| decode(format, &data[r * k * 2..(r + 1) * k * 2]);
    // Rows around every edge between parts.
    let mut tokens: Vec<u32> = vec![0, rows as u32 - 1, 33_333];
    tokens.extend(w.parts().iter().skip(1).flat_map(|p| [p.row_start - 1, p.row_start]));
    let (tb, y) = (upload_words(gpu, &tokens), untouched(gpu, tokens.len() * k));
    run(gpu, gather(&w, (&tb).into(), Matrix::new(&y, tokens.len() as u32, k as u32), 1.0).unwrap());
    let want: Vec<f32> = tokens.iter().flat_map(|&t| row(t as usize)).collect();
    same_bits("lookup in a large table", &download(gpu, &y, want.len()), &want);
    let x = rng.floats(2 * k);
    let xb = upload(gpu, &x);
    let mx = Matrix::new(&xb, 2, k as u32);
    for path in [MatmulPath::Vec, MatmulPath::Tile] {
        let y = untouched(gpu, 2 * rows);
        let my = Matrix::new(&y, 2, rows as u32);
        run(gpu, matmul_with(gpu, path, mx, &w, my, false).unwrap());
        let got = download(gpu, &y, 2 * rows);
        assert!(!got.contains(&UNTOUCHED), "{path:?}: every element is written");
        // The reference of every 97th row, and of the edges.
        let picked: Vec<usize> = (0..rows).step_by(97).chain(tokens.iter().map(|&t| t as usize)).collect();
        let mut want = Vec::new();
        let mut have = Vec::new();
        for &r in &picked {
            let wr = row(r);
            for t in 0..2 {
                let (mut value, mut magnitude) = (0.0, 0.0);
                for (a, b) in wr.iter().zip(&x[t * k..]) {
                    let p = f64::from(*a) * f64::from(*b);
                    value += p;
                    magnitude += p.abs();
                }
                want.push(Want { value, magnitude });
                have.push(got[t * rows + r]);
            }
        }
        close(&format!("product with a large table, {path:?}"), &have, &want, 1e-6, 1e-5);
    }
}

#[test]
fn broken_sources_are_refused() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let scope = v.scope();
    let mut progress = |_| Ok(());
    let mut uploader = WeightUploader::new(gpu, &scope, &mut progress);
    let q8 = by_name("Q8_0").unwrap();
    let bytes = vec![0u8; 34 * 4];
    let source = |rows, data| RowSource { format: q8, rows, data, bias: None };
    for (k, s) in [
        (32, source(5, bytes.as_slice())),
        (36, source(4, bytes.as_slice())),
        (32, source(0, &[])),
        (32, RowSource { bias: Some(&[1.0]), ..source(4, bytes.as_slice()) }),
    ] {
        assert!(uploader.upload("bad", k, &[s]).is_err(), "{k} {s:?}");
    }
    assert!(uploader.upload("good", 32, &[source(4, bytes.as_slice())]).is_ok());
    // Rows of formats with super-blocks are whole super-blocks.
    let (q4_k, data) = (by_name("Q4_K").unwrap(), [0u8; 144 * 3]);
    let e = uploader.upload("odd", 96, &[RowSource { format: q4_k, rows: 8, data: &data, bias: None }]).unwrap_err();
    assert!(["odd", "Q4_K", "256", "96"].iter().all(|part| e.to_string().contains(part)), "{e}");
    // A caller that cancels from the progress function ends the upload with its error.
    let mut cancel = |_| Err(doppler::Error::Cancelled("by the test".into()));
    let mut uploader = WeightUploader::new(gpu, &scope, &mut cancel);
    let e = uploader.upload("cancelled", 32, &[source(4, bytes.as_slice())]).unwrap_err();
    assert!(matches!(e, doppler::Error::Cancelled(_)), "{e}");
}
