//! How a tensor is made of stored ones: permuted, transposed, stacked, converted, quantised.
//!
//! Elements are moved as they are; only what has to be f32, or is quantised, is converted. Bytes are made when they are asked for, so that
//! no more than one weight is held at a time.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::format::{ElementType, SafetensorsFolder, StoredTensor, TensorSource};
use crate::quant::{self, Format};

/// What is done with a stored tensor. Dimensions in comments: the contiguous one last, as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Taken as it is.
    Plain,
    /// Rows of each query head, halves to adjacent pairs: the architecture rotates pairs.
    PairQ,
    /// As [`Op::PairQ`], for key heads.
    PairK,
    /// 1 is added: the norm multiplies by 1 + w.
    AddOne,
    /// `[a, b]` to `[b, a]`.
    Transpose,
    /// `{e}` in the name stands for the number of an expert; they are stacked.
    Stack,
    /// `[E, 2f, k]` to the first or second `[E, f, k]`.
    Half(usize),
    /// `[E, a, b]` to `[E, b, a]`.
    TransposeEach,
    /// `[E, k, 2f]` to `[E, f, k]` of the even or odd columns.
    Columns(usize),
    /// `[E, 2f]` to `[E, f]` of the even or odd elements.
    Every(usize),
    /// MXFP4 blocks `[E, r, k / 32, 16]` with scales beside them; of all rows, or of the even or odd ones.
    Mxfp4(Option<usize>),
}

/// How one tensor is made.
#[derive(Debug)]
pub(super) enum Recipe {
    /// Of the configuration.
    Given(Vec<f32>),
    Stored {
        parts: Vec<StoredTensor>,
        op: Op,
        /// Heads of [`Op::PairQ`] and [`Op::PairK`].
        heads: usize,
        from: ElementType,
        to: &'static Format,
    },
}

/// All tensors of a folder, as the model wants them.
pub(super) struct Recipes {
    pub(super) folder: Arc<SafetensorsFolder>,
    pub(super) list: Vec<Recipe>,
}

impl TensorSource for Recipes {
    fn data(&self, index: usize) -> Cow<'_, [u8]> {
        match self.list.get(index) {
            None => Cow::Borrowed(&[]),
            Some(Recipe::Given(values)) => Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Some(Recipe::Stored { parts, op, heads, from, to }) => self.stored(parts, *op, *heads, *from, to),
        }
    }

    fn sample(&self, index: usize, n: usize) -> Vec<u8> {
        match self.list.get(index) {
            Some(Recipe::Stored { parts, .. }) => {
                parts.iter().flat_map(|p| self.folder.data(p).iter().take(n)).copied().take(n).collect()
            }
            _ => self.data(index).iter().take(n).copied().collect(),
        }
    }
}

/// The dimensions that an operation makes, the contiguous one last.
pub(super) fn result_shape(parts: &[StoredTensor], op: Op, heads: usize) -> Result<Vec<u64>> {
    let Some(first) = parts.first() else { bail!(BadFile, "no experts") };
    let wrong = |wanted: &str| bail!(BadFile, "tensor {}: shape {:?}, expected {wanted}", first.name, first.shape);
    Ok(match (op, first.shape.as_slice()) {
        (Op::Plain | Op::AddOne, shape) => shape.to_vec(),
        (Op::PairQ | Op::PairK, shape @ ([rows] | [rows, _])) => {
            if heads == 0 || !rows.is_multiple_of(2 * heads as u64) {
                return wrong(&format!("rows for {heads} heads"));
            }
            shape.to_vec()
        }
        (Op::Transpose, &[a, b]) => vec![b, a],
        (Op::Stack, &[a, b]) => {
            if let Some(other) =
                parts.iter().find(|p| p.shape != first.shape || p.element_type() != first.element_type())
            {
                bail!(BadFile, "tensor {}: not of the shape and type of {}", other.name, first.name);
            }
            vec![parts.len() as u64, a, b]
        }
        (Op::Half(_), &[e, f, k]) if f.is_multiple_of(2) => vec![e, f / 2, k],
        (Op::TransposeEach, &[e, a, b]) => vec![e, b, a],
        (Op::Columns(_), &[e, k, f]) if f.is_multiple_of(2) => vec![e, f / 2, k],
        (Op::Every(_), &[e, f]) if f.is_multiple_of(2) => vec![e, f / 2],
        (Op::Mxfp4(which), &[e, r, blocks, 16]) if which.is_none() || r.is_multiple_of(2) => {
            if parts.get(1).map(|s| s.shape.as_slice()) != Some(&[e, r, blocks]) {
                return wrong("as many blocks as there are scales");
            }
            vec![e, if which.is_some() { r / 2 } else { r }, blocks * 32]
        }
        (Op::Half(_) | Op::Columns(_) | Op::TransposeEach, _) => return wrong("three dimensions, two of them even"),
        _ => return wrong("another number of dimensions"),
    })
}

impl Recipes {
    fn stored(&self, parts: &[StoredTensor], op: Op, heads: usize, from: ElementType, to: &Format) -> Cow<'_, [u8]> {
        let mut sources = parts.iter().map(|p| self.folder.data(p));
        let (first, shape) = (sources.next().unwrap_or_default(), parts.first().map_or(&[][..], |p| &p.shape));
        let size = from.bytes();
        let dim = |i: usize| shape.get(i).map_or(1, |&d| d as usize);
        let bytes: Cow<'_, [u8]> = match op {
            Op::Plain | Op::AddOne => Cow::Borrowed(first),
            Op::PairQ | Op::PairK => {
                let pair = dim(0) / heads / 2;
                let row = dim(1) * size;
                gather(first, row, dim(0), |r| {
                    let (head, r) = (r / (2 * pair), r % (2 * pair));
                    head * 2 * pair + r % 2 * pair + r / 2
                })
            }
            Op::Transpose => gather(first, size, dim(0) * dim(1), |i| i % dim(0) * dim(1) + i / dim(0)),
            Op::Stack => {
                let mut all = first.to_vec();
                sources.for_each(|s| all.extend_from_slice(s));
                Cow::Owned(all)
            }
            Op::Half(which) => {
                let row = dim(1) / 2 * dim(2) * size;
                gather(first, row, dim(0), |e| 2 * e + which)
            }
            Op::TransposeEach => {
                let (a, b) = (dim(1), dim(2));
                gather(first, size, dim(0) * a * b, |i| i / (a * b) * (a * b) + i % a * b + i % (a * b) / a)
            }
            Op::Columns(which) => {
                let (k, f) = (dim(1), dim(2));
                let each = k * f / 2;
                gather(first, size, dim(0) * each, |i| {
                    let (expert, i) = (i / each, i % each);
                    expert * k * f + i % k * f + i / k * 2 + which
                })
            }
            Op::Every(which) => gather(first, size, dim(0) * dim(1) / 2, |i| 2 * i + which),
            Op::Mxfp4(which) => return Cow::Owned(mxfp4(first, sources.next().unwrap_or_default(), dim(2), which)),
        };
        if op != Op::AddOne && to.ggml_type == stored_format(from).ggml_type {
            return bytes;
        }
        let mut values = vec![0.0f32; bytes.len() / size.max(1)];
        (stored_format(from).dequantize)(&bytes, &mut values);
        if op == Op::AddOne {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        let mut out = Vec::with_capacity(values.len() / to.block_len * to.block_bytes);
        match to.quantize {
            Some(quantize) => quantize(&values, &mut out),
            None => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        }
        Cow::Owned(out)
    }
}

/// The format of stored elements.
pub(super) fn stored_format(t: ElementType) -> &'static Format {
    let name = match t {
        ElementType::F32 | ElementType::U8 => "F32",
        ElementType::F16 => "F16",
        ElementType::BF16 => "BF16",
    };
    format_named(name)
}

/// A format that is known to be there.
pub(super) fn format_named(name: &str) -> &'static Format {
    quant::FORMATS.iter().find(|f| f.name == name).copied().unwrap_or(quant::FORMATS[0])
}

/// `n` pieces of `size` bytes, each from the place that `from` says.
fn gather(src: &[u8], size: usize, n: usize, from: impl Fn(usize) -> usize) -> Cow<'static, [u8]> {
    let mut out = Vec::with_capacity(n * size);
    for i in 0..n {
        let at = from(i) * size;
        out.extend_from_slice(src.get(at..at + size).unwrap_or_default());
    }
    Cow::Owned(out)
}

/// MXFP4 as GGML orders it: a scale before 16 bytes, byte `j` with weight `j` low and `j + 16` high. Stored bytes hold neighbours.
fn mxfp4(blocks: &[u8], scales: &[u8], per_row: usize, which: Option<usize>) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len() + scales.len());
    for (i, (block, scale)) in blocks.chunks_exact(16).zip(scales).enumerate() {
        if which.is_some_and(|w| i / per_row.max(1) % 2 != w) {
            continue;
        }
        let weight = |j: usize| block.get(j / 2).map_or(0, |b| b >> (j % 2 * 4) & 15);
        out.push(*scale);
        out.extend((0..16).map(|j| weight(j) | weight(j + 16) << 4));
    }
    out
}
