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
    /// `[2f, k]` to the first or second `[f, k]`.
    HalfRows(usize),
    /// `[n]` to `[n, 1]`.
    Column,
    /// `[n]` to `[1, n]`.
    Row,
    /// Rows of each key head (its query, its key, its values, their gates) to all queries, all keys, all values.
    Qkv,
    /// Of the same rows, the gates.
    Gates,
    /// Values of the heads that share a key stand together; here the first of all keys come first, then the second of all. This is for rows,
    /// or numbers, one for each value head or each of its dimensions, behind those of queries and keys if there are any.
    TileRows,
    /// As [`Op::TileRows`], for columns.
    TileColumns,
}

/// What is done with each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Each {
    /// Nothing.
    Same,
    /// 1 is added: the norm multiplies by 1 + w.
    AddOne,
    /// −exp(w): stored is the logarithm of the decay.
    NegExp,
}

/// Heads of attention, or of the delta rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Heads {
    /// Whose rows are paired.
    pub(super) paired: usize,
    pub(super) keys: usize,
    pub(super) values: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
}

impl Heads {
    /// Rows of all queries and keys, and of all values.
    fn widths(&self) -> (usize, usize) {
        (2 * self.keys * self.key_dim, self.values * self.value_dim)
    }

    /// Where the piece at `i` of values in tiles comes from; each head has `size` pieces.
    fn tiled(&self, i: usize, size: usize) -> usize {
        let (head, at) = (i / size, i % size);
        let (turn, key) = (head / self.keys, head % self.keys);
        (key * (self.values / self.keys) + turn) * size + at
    }

    /// Where a row of [`Op::Qkv`] or [`Op::Gates`] comes from.
    fn grouped(&self, i: usize, gates: bool) -> usize {
        let per_key = self.values / self.keys * self.value_dim;
        let group = 2 * self.key_dim + 2 * per_key;
        let (q, k) = (self.keys * self.key_dim, 2 * self.keys * self.key_dim);
        match i {
            i if gates => i / per_key * group + 2 * self.key_dim + per_key + i % per_key,
            i if i < q => i / self.key_dim * group + i % self.key_dim,
            i if i < k => (i - q) / self.key_dim * group + self.key_dim + (i - q) % self.key_dim,
            i => (i - k) / per_key * group + 2 * self.key_dim + (i - k) % per_key,
        }
    }
}

/// How one tensor is made.
#[derive(Debug)]
pub(super) enum Recipe {
    /// Of the configuration.
    Given(Vec<f32>),
    Stored {
        parts: Vec<StoredTensor>,
        op: Op,
        each: Each,
        heads: Heads,
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
            Some(Recipe::Stored { parts, op, each, heads, from, to }) => {
                self.stored(parts, *op, *each, *heads, *from, to)
            }
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
pub(super) fn result_shape(parts: &[StoredTensor], op: Op, heads: Heads) -> Result<Vec<u64>> {
    let Some(first) = parts.first() else { bail!(BadFile, "no experts") };
    let (qk, v) = heads.widths();
    let wrong = |wanted: &str| bail!(BadFile, "tensor {}: shape {:?}, expected {wanted}", first.name, first.shape);
    Ok(match (op, first.shape.as_slice()) {
        (Op::Plain, shape) => shape.to_vec(),
        (Op::PairQ | Op::PairK, shape @ ([rows] | [rows, _])) => {
            if heads.paired == 0 || !rows.is_multiple_of(2 * heads.paired as u64) {
                return wrong(&format!("rows for {} heads", heads.paired));
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
        (Op::HalfRows(_), &[f, k]) if f.is_multiple_of(2) => vec![f / 2, k],
        (Op::Column, &[n]) => vec![n, 1],
        (Op::Row, &[n]) => vec![1, n],
        (Op::Qkv, &[rows, k]) if rows as usize == qk + 2 * v => vec![(qk + v) as u64, k],
        (Op::Gates, &[rows, k]) if rows as usize == qk + 2 * v => vec![v as u64, k],
        (Op::TileRows, shape @ ([rows] | [rows, _])) if [heads.values, v, qk + v].contains(&(*rows as usize)) => {
            shape.to_vec()
        }
        (Op::TileColumns, shape @ &[_, columns]) if columns as usize == v => shape.to_vec(),
        (Op::Half(_) | Op::Columns(_) | Op::TransposeEach, _) => return wrong("three dimensions, two of them even"),
        _ => return wrong("another number of dimensions"),
    })
}

impl Recipes {
    fn stored(
        &self,
        parts: &[StoredTensor],
        op: Op,
        each: Each,
        heads: Heads,
        from: ElementType,
        to: &Format,
    ) -> Cow<'_, [u8]> {
        let mut sources = parts.iter().map(|p| self.folder.data(p));
        let (first, shape) = (sources.next().unwrap_or_default(), parts.first().map_or(&[][..], |p| &p.shape));
        let size = from.bytes();
        let dim = |i: usize| shape.get(i).map_or(1, |&d| d as usize);
        let bytes: Cow<'_, [u8]> =
            match op {
                Op::Plain | Op::Column | Op::Row => Cow::Borrowed(first),
                Op::PairQ | Op::PairK => {
                    let pair = dim(0) / heads.paired / 2;
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
                Op::HalfRows(which) => {
                    let half = dim(0) / 2 * dim(1) * size;
                    gather(first, half, 1, |_| which)
                }
                Op::Qkv => {
                    gather(first, dim(1) * size, heads.widths().0 + heads.widths().1, |r| heads.grouped(r, false))
                }
                Op::Gates => gather(first, dim(1) * size, heads.widths().1, |r| heads.grouped(r, true)),
                Op::TileRows => {
                    let (qk, v) = heads.widths();
                    let skip = if dim(0) == qk + v { qk } else { 0 };
                    let per_head = (dim(0) - skip) / heads.values;
                    gather(first, dim(1) * size, dim(0), |r| {
                        if r < skip { r } else { skip + heads.tiled(r - skip, per_head) }
                    })
                }
                Op::TileColumns => {
                    let columns = dim(1);
                    gather(first, size, dim(0) * columns, |i| {
                        i / columns * columns + heads.tiled(i % columns, heads.value_dim)
                    })
                }
                Op::Mxfp4(which) => return Cow::Owned(mxfp4(first, sources.next().unwrap_or_default(), dim(2), which)),
            };
        if each == Each::Same && to.ggml_type == stored_format(from).ggml_type {
            return bytes;
        }
        let mut values = vec![0.0f32; bytes.len() / size.max(1)];
        (stored_format(from).dequantize)(&bytes, &mut values);
        match each {
            Each::Same => {}
            Each::AddOne => values.iter_mut().for_each(|v| *v += 1.0),
            Each::NegExp => values.iter_mut().for_each(|v| *v = -v.exp()),
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
