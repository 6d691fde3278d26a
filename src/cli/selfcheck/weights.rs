//! Everything that reads weights, in every format.

use doppler::Result;
use doppler::gpu::Variant;
use doppler::kernels::{
    self, CoopTile, FewSplits, HalfRoom, HalfRows, Ids, MatmulPath, Matrix, Parts, RowSource, Weight, WeightUploader,
};
use doppler::quant::{Format, GPU_BLOCK, by_name};

use super::fused::{Left, left_for_next};
use super::input::InputRows;
use super::sampling::Begun;
use super::{BLANK, Lab, Measured, Rng, Want, compare};

/// Rows of a format with ordinary values, and what they decode to. Blocks of random bits are drawn until one is ordinary,
/// so a new format needs nothing here.
pub(in crate::cli) fn random_rows(format: &Format, rng: &mut Rng, rows: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let blocks = rows * k / format.block_len;
    let mut bytes = Vec::with_capacity(blocks * format.block_bytes);
    let mut values = Vec::with_capacity(rows * k);
    let mut decoded = vec![0.0; format.block_len];
    while values.len() < rows * k {
        let block: Vec<u8> = (0..format.block_bytes).map(|_| (rng.word() >> 32) as u8).collect();
        (format.dequantize)(&block, &mut decoded);
        let top = decoded.iter().fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY });
        if (1e-3..8.0).contains(&top) {
            bytes.extend_from_slice(&block);
            values.extend_from_slice(&decoded);
        }
    }
    (bytes, values)
}

/// A weight on the device and its values.
pub(super) fn weight(
    lab: &Lab,
    format: &'static Format,
    rows: usize,
    k: usize,
    bias: Option<&[f32]>,
) -> Result<(Weight, Vec<f32>)> {
    let (bytes, values) = random_rows(format, &mut Rng::new((rows * k) as u64), rows, k);
    let mut progress = |_| Ok(());
    let mut uploader = WeightUploader::new(&lab.gpu, &lab.scope, &mut progress);
    let source = RowSource { format, rows: rows as u32, data: &bytes, bias };
    let w = uploader.upload(format.name, k as u32, &[source])?;
    uploader.finish()?;
    Ok((w, values))
}

/// The weight format that a variant reads.
pub(super) fn format_of(v: &Variant) -> Result<&'static Format> {
    let name = v.fragment("weight").unwrap_or_default();
    by_name(name).ok_or_else(|| doppler::Error::Internal(format!("no weight format {name}")))
}

/// Two widths: a few blocks, an odd number of them.
pub(super) fn widths(format: &Format) -> [usize; 2] {
    match format.block_len {
        1 => [36, 420],
        GPU_BLOCK => [GPU_BLOCK * 3, GPU_BLOCK * 13],
        block => [block, block * 3],
    }
}

pub(super) fn gather(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("gather") {
        let format = format_of(&v)?;
        let outs = ["OUT_BYTES", "OUT_NUMBERS"].map(|f| v.has(f));
        let next = outs.contains(&true);
        for k in widths(format) {
            // What is left for a product is whole blocks.
            let (rows, k) = (37, if next { k.next_multiple_of(GPU_BLOCK) } else { k });
            let (w, values) = weight(lab, format, rows, k, None)?;
            // An id beyond the table leaves its row as it was.
            let tokens = [36u32, 0, 7, 7, if next { 12 } else { 99 }];
            let added = v.has("POSITIONS");
            let scale = if added { 1.0 } else { 1.5 };
            let ids = lab.words(&if added { super::row_words(&tokens) } else { tokens.to_vec() })?;
            let begun = v.has("BEGINS").then(|| Begun::new(lab, &tokens, v.has("CHAINS"))).transpose()?;
            let ids = match &begun {
                Some(begun) => Ids::Begin(begun.operand()),
                None if added => Ids::Positions((&ids).into()),
                None => Ids::Tokens((&ids).into()),
            };
            let next_w = Rng::new(k as u64).units(k);
            let (yb, wb) = (lab.blank(tokens.len() * k)?, lab.floats(&next_w)?);
            let y = Matrix::new(&yb, tokens.len() as u32, k as u32);
            let left = next.then(|| Left::new(lab, outs, tokens.len(), k)).transpose()?;
            lab.run(kernels::lookup(&w, ids, y, scale, left.as_ref().map(|l| l.operand(&wb)))?)?;
            let mut want = Vec::new();
            for &t in &tokens {
                let old = Want::from(f64::from(BLANK));
                match values.chunks_exact(k).nth(t as usize) {
                    Some(row) if added => want.extend(row.iter().map(|&v| Want(old.0 + f64::from(v), old.1))),
                    Some(row) => want.extend(row.iter().map(|&v| Want::from(1.5 * f64::from(v)))),
                    None => want.extend(vec![old; k]),
                }
            }
            let case = format!("{rows} x {k}, {v}");
            let got = lab.read(&yb, want.len())?;
            all.push(compare(case.clone(), &got, &want, 1e-9, 3e-7));
            if let Some(left) = &left {
                all.extend(left_for_next(lab, &case, &got, &next_w, left)?);
            }
            if let Some(begun) = begun {
                all.push(begun.compare(lab, format!("{case}, the step"))?);
            }
        }
    }
    Ok(all)
}

pub(super) fn dequant(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("dequant") {
        let format = format_of(&v)?;
        for k in widths(format) {
            let rows = 13;
            let (w, values) = weight(lab, format, rows, k, None)?;
            let yb = lab.blank(rows * k)?;
            lab.run(kernels::dequant(&w, (&yb).into())?)?;
            let want: Vec<Want> = values.iter().map(|&v| f64::from(v).into()).collect();
            all.push(compare(format!("{} {rows} x {k}", format.name), &lab.read(&yb, rows * k)?, &want, 1e-9, 3e-7));
        }
    }
    Ok(all)
}

/// How a check makes a product, and the error allowed to it, by the sum of the terms' magnitudes.
#[derive(Clone, Copy)]
enum Product {
    By(MatmulPath, f64),
    /// `x` can be held in f16 and loses nothing; weights lose up to half a unit of 11 bits.
    Coop(f64),
    /// The same, by the product for few rows; k is split unless something is added to.
    Few(f64),
}

/// Rows of `x` by which an operation asks for a variant of the matrix-vector product.
pub(super) fn vec_rows(v: &Variant) -> Option<usize> {
    let nt = v.constant("NT")? as usize;
    Some(match nt {
        8 => 7,
        _ if v.has("STAGED") => nt,
        _ => nt.min(3),
    })
}

/// A width for the `i`-th variant: without TAIL whole blocks on the device, one, an odd number, or rows longer than one round of a team. Rows are
/// staged for teams of 16 threads at least, with a block for each. Teams that make four rows of single elements have eight for each thread, of which stages
/// of chains have many.
pub(super) fn width(lab: &Lab, v: &Variant, i: usize) -> Result<usize> {
    let format = format_of(v)?;
    Ok(match v.has("TAIL") {
        true => [36, 420][i % 2],
        false => {
            let by_teams_of_elements = format.block_len == 1 && v.constant("NT").is_some();
            let blocks = match (v.has("QUAD") || v.has("STAGED"), v.has("BYTES") && v.constant("NT") == Some(4)) {
                (true, _) if by_teams_of_elements && lab.gpu.features().chains => [32, 33],
                (true, _) if by_teams_of_elements => [8, 9],
                _ if by_teams_of_elements => [1, 3],
                (true, _) => [17, 24],
                // Of super-blocks two would be 16 blocks.
                (_, true) if format.block_len > GPU_BLOCK => [1, 8],
                _ => [1, 13],
            };
            (blocks[i % 2] * GPU_BLOCK).next_multiple_of(format.block_len)
        }
    })
}

/// One product in each variant: flags, format and rows of `x` are chosen so that the operation asks for it.
fn matmul(lab: &Lab, kernel: &str, product: Product, t_rows: [usize; 3]) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (i, v) in lab.variants(kernel).into_iter().enumerate() {
        let format = format_of(&v)?;
        let k = match product {
            // Less than a round of the subgroups, or several in each part of k.
            Product::Few(_) => ([3, 37][i % 2] * GPU_BLOCK).next_multiple_of(format.block_len),
            _ => width(lab, &v, i)?,
        };
        let t_rows = match vec_rows(&v) {
            Some(rows) => rows,
            None if v.has("ROWS_16") => [16, 5, 11][i % 3],
            None => t_rows[i % 3],
        };
        // So few that stages of chains share them, or more.
        let n = if v.has("QUAD") || v.has("STAGED") { 1027 } else { 67 };
        let mut rng = Rng::new((k * t_rows) as u64);
        let (bias, mut x) = (rng.units(n), rng.units(t_rows * k));
        if let Product::Coop(_) | Product::Few(_) = product {
            // Rows of very different size, beyond the range of f16; powers of two, so that f16 holds each number.
            let size = |i: usize| [1.0, 1_048_576.0, 1.0 / 8_388_608.0][i / k % 3] / 256.0;
            x.iter_mut().enumerate().for_each(|(i, v)| *v = (*v * 256.0).round() * size(i));
        }
        let bias = v.has("BIAS").then_some(bias.as_slice());
        let old = if v.has("ACCUMULATE") { rng.units(t_rows * n) } else { vec![BLANK; t_rows * n] };
        let (w, values) = weight(lab, format, n, k, bias)?;
        let (xb, yb) = (lab.floats(&x)?, lab.floats(&old)?);
        let (mx, my) = (Matrix::new(&xb, t_rows as u32, k as u32), Matrix::new(&yb, t_rows as u32, n as u32));
        let accumulate = v.has("ACCUMULATE");
        let x = match product {
            Product::By(path, _) => {
                let x = InputRows::of(lab, &v, &x, k)?;
                lab.run(kernels::matmul_with(&lab.gpu, path, x.operand(), &w, my, accumulate)?)?;
                x.values
            }
            Product::Coop(_) | Product::Few(_) => {
                let bytes = HalfRows::data_bytes(t_rows as u64, k as u32);
                let (hb, sb) = (lab.blank(bytes as usize / 4)?, lab.blank(t_rows)?);
                let room = HalfRoom { data: (&hb).into(), scales: (&sb).into(), weights: None, parts: None };
                let half = HalfRows { tiled: matches!(product, Product::Few(_)), ..room.rows(t_rows as u32, k as u32) };
                let tile = if v.has("ROWS_64") { CoopTile::Half } else { CoopTile::Whole };
                lab.run([kernels::half_rows(&lab.gpu, mx, half)?])?;
                let parts = lab.blank(t_rows * n * 2)?;
                lab.run(match product {
                    Product::Few(_) => {
                        // Sums of parts are added to y by another kernel.
                        let most = FewSplits::Most(if accumulate { 1 } else { 1 + i as u32 / 2 % 2 });
                        kernels::matmul_few(&lab.gpu, most, half, &w, my, accumulate, (&parts).into())?
                    }
                    _ => kernels::matmul_coop(&lab.gpu, tile, half, &w, my, accumulate)?,
                })?;
                x.into_iter().map(f64::from).collect::<Vec<_>>()
            }
        };
        let rel = match product {
            Product::By(_, rel) | Product::Coop(rel) | Product::Few(rel) => rel,
        };
        let mut want = Vec::new();
        for (x, old) in x.chunks_exact(k).zip(old.chunks_exact(n)) {
            for (r, (w, &o)) in values.chunks_exact(k).zip(old).enumerate() {
                let products = x.iter().zip(w).map(|(&a, &b)| a * f64::from(b));
                let added = [bias.map_or(0.0, |b| b[r]), if v.has("ACCUMULATE") { o } else { 0.0 }];
                let terms = products.chain(added.map(f64::from));
                want.push(terms.fold(Want(0.0, 0.0), |Want(v, size), t| Want(v + t, size + t.abs())));
            }
        }
        let case = format!("{t_rows} x {k} by {n}, {v}");
        // With bytes, offsets and quants cancel in part: the terms are larger than the products.
        let abs = if v.has("BYTES") { 1e-4 } else { 1e-6 };
        all.push(compare(case, &lab.read(&yb, want.len())?, &want, abs, rel));
    }
    Ok(all)
}

pub(super) fn matmul_vec(lab: &Lab) -> Result<Vec<Measured>> {
    matmul(lab, "matmul_vec", Product::By(MatmulPath::Vec, 5e-6), [1, 2, 3])
}

pub(super) fn matmul_tile(lab: &Lab) -> Result<Vec<Measured>> {
    matmul(lab, "matmul_tile", Product::By(MatmulPath::Tile, 5e-6), [5, 35, 32])
}

/// Weights in f16, and products by way of them where the device has matrices: in pieces of one tile.
fn decoded(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("half_weights") {
        let format = format_of(&v)?;
        let (n, t_rows) = (300, 20);
        // A part of a block, where the format has none.
        let k = widths(format)[0];
        let mut rng = Rng::new(k as u64);
        let bias = rng.units(n);
        let x: Vec<f32> = rng.units(t_rows * k).iter().map(|v| (v * 256.0).round() / 256.0).collect();
        let (w, values) = weight(lab, format, n, k, Some(&bias))?;
        let (xb, yb) = (lab.floats(&x)?, lab.blank(t_rows * n)?);
        let (mx, my) = (Matrix::new(&xb, t_rows as u32, k as u32), Matrix::new(&yb, t_rows as u32, n as u32));
        let words = |bytes: u64| lab.blank(bytes as usize / 4);
        let (hb, sb) = (words(HalfRows::data_bytes(t_rows as u64, k as u32))?, lab.blank(t_rows)?);
        let db = words(kernels::decoded_bytes(n as u32, k as u32, 0))?;
        let part = &w.parts()[0];
        lab.run([kernels::half_weights(part, 5, 100, k as u32, (&db).into())?])?;
        let padded = k.next_multiple_of(GPU_BLOCK);
        let halves = lab.read_words(&db, 100 * padded / 2)?;
        let got: Vec<f32> = halves
            .iter()
            .flat_map(|&w| [w as u16, (w >> 16) as u16])
            .map(|h| half::f16::from_bits(h).to_f32())
            .collect();
        let want: Vec<Want> = values[5 * k..105 * k]
            .chunks_exact(k)
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, padded - k)))
            .map(|v| f64::from(v).into())
            .collect();
        // A unit of 11 bits, since rounding either way is allowed to the device, or the smallest step.
        all.push(compare(format!("100 rows of {k} to f16, {v}"), &got, &want, 6e-8, 1.001 / 1024.0));
        if !lab.gpu.features().cooperative_matrix {
            continue;
        }
        let half = HalfRoom { data: (&hb).into(), scales: (&sb).into(), weights: None, parts: None }
            .rows(t_rows as u32, k as u32);
        lab.run([kernels::half_rows(&lab.gpu, mx, half)?])?;
        lab.run(kernels::matmul_decoded(&lab.gpu, half, &w, my, false, (&db).into())?)?;
        let mut want = Vec::new();
        for x in x.chunks_exact(k) {
            for (w, &b) in values.chunks_exact(k).zip(&bias) {
                let products = x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).chain([f64::from(b)]);
                want.push(products.fold(Want(0.0, 0.0), |Want(v, size), t| Want(v + t, size + t.abs())));
            }
        }
        let case = format!("{t_rows} x {k} by {n} decoded before, {v}");
        all.push(compare(case, &lab.read(&yb, want.len())?, &want, 1e-6, 3e-4));
    }
    Ok(all)
}

/// Products by cooperative matrices, where the device has them, and what makes their rows and weights.
pub(super) fn matmul_coop(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = decoded(lab)?;
    if lab.gpu.features().cooperative_matrix {
        all.extend(matmul(lab, "matmul_coop", Product::Coop(3e-4), [5, 35, 300])?);
    }
    Ok(all)
}

/// Products of few rows by cooperative matrices, where the device has them, and the sums of their parts.
pub(super) fn matmul_few(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("sum_parts") {
        let (rows, cols, splits, stride, offset) = (3usize, 37usize, 5usize, 41usize, 2usize);
        let mut rng = Rng::new(splits as u64);
        let (parts, old) = (rng.units(splits * rows * cols), rng.units(rows * stride));
        let (pb, yb) = (lab.floats(&parts)?, lab.floats(&old)?);
        let y = Matrix {
            data: (&yb).into(),
            rows: rows as u32,
            cols: cols as u32,
            stride: stride as u32,
            offset: offset as u32,
        };
        lab.run([kernels::sum_parts(Parts { data: (&pb).into(), splits: splits as u32 }, y, v.has("ACCUMULATE"))?])?;
        let mut want: Vec<Want> = old.iter().map(|&o| f64::from(o).into()).collect();
        for (i, w) in want.iter_mut().enumerate() {
            let (row, Some(col)) = (i / stride, (i % stride).checked_sub(offset)) else { continue };
            if col < cols {
                let kept = if v.has("ACCUMULATE") { *w } else { Want(0.0, 0.0) };
                let terms = (0..splits).map(|s| f64::from(parts[(s * rows + row) * cols + col]));
                *w = terms.fold(kept, |Want(v, size), t| Want(v + t, size + t.abs()));
            }
        }
        all.push(compare(
            format!("{splits} parts of {rows} x {cols}, {v}"),
            &lab.read(&yb, want.len())?,
            &want,
            1e-6,
            1e-6,
        ));
    }
    if lab.gpu.features().cooperative_matrix {
        all.extend(matmul(lab, "matmul_few", Product::Few(3e-4), [17, 32, 40])?);
    }
    Ok(all)
}
