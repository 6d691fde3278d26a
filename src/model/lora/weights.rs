//! An adapter on the device: for each product two small matrices, with the factors of the file in them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Result, bail};
use crate::gpu::{Buffer, Gpu, MemoryClass, Scope};
use crate::kernels::{RowSource, Weight, WeightUploader};
use crate::model::lora::file::{EMBEDDING, LoraFile, Pair};
use crate::model::spec::ModelSpec;
use crate::model::weights::{Places, Run};
use crate::quant::{self, Format};

/// `B · A`, both as weights of products. Ranks are padded with zeros to what kernels read.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[ranks, k]`: those of all tensors of the product, one behind the other. Of the embedding `[n_vocab, rank]`.
    pub(crate) a: Weight,
    /// `[rows, ranks]`: zero where a row is not of the rank's tensor.
    pub(crate) b: Weight,
}

/// An adapter of a model. Buffers go when it does; sessions that use it keep it.
#[derive(Debug)]
pub struct Lora {
    pub(super) id: u64,
    info: LoraInfo,
    pub(super) embedding: Option<LowRank>,
    /// By the name of the product's weight.
    pub(super) products: HashMap<String, LowRank>,
    /// What the first matrix makes of a batch's rows, and that times a session's factor.
    pub(super) rows: [Buffer; 2],
}

/// What an adapter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraInfo {
    /// `general.name`, or empty.
    pub name: String,
    /// Tensors of the model that it changes.
    pub tensors: u32,
    /// The highest rank among them.
    pub rank: u32,
    /// Bytes on the device.
    pub bytes: u64,
    /// A number that other adapters do not have.
    pub fingerprint: u64,
}

/// Handed out once.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Columns of a weight: what kernels read at once.
fn padded(rank: u32) -> u32 {
    rank.next_multiple_of(4)
}

/// Numbers in the smallest format of single elements that holds them as they are.
fn smallest(values: &[f32]) -> Result<(&'static Format, Vec<u8>)> {
    let (name, bytes) = if values.iter().all(|&x| half::f16::from_f32(x).to_f32() == x) {
        ("F16", values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect())
    } else if values.iter().all(|&x| half::bf16::from_f32(x).to_f32() == x) {
        ("BF16", values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect())
    } else {
        ("F32", values.iter().flat_map(|x| x.to_le_bytes()).collect())
    };
    match quant::by_name(name) {
        Some(format) => Ok((format, bytes)),
        None => bail!(Internal, "no weight format {name}"),
    }
}

fn upload(up: &mut WeightUploader<'_>, name: &str, k: u32, values: &[f32]) -> Result<Weight> {
    let (format, data) = smallest(values)?;
    let rows = (values.len() / k.max(1) as usize) as u32;
    up.upload(name, k, &[RowSource { format, rows, data: &data, bias: None }])
}

/// Copies `runs` of a second matrix's rows, times `scale`, to columns from `column` on of one that is `width` wide.
fn place(to: &mut [f32], width: u32, column: u32, from: &[f32], rank: u32, scale: f64, runs: &[Run]) {
    let (width, column, rank) = (width as usize, column as usize, rank as usize);
    for run in runs {
        for i in 0..run.rows as usize {
            let (source, target) = ((run.first as usize + i) * rank, (run.at as usize + i) * width + column);
            let numbers = from.get(source..source + rank).unwrap_or_default();
            let Some(row) = to.get_mut(target..target + numbers.len()) else { continue };
            row.iter_mut().zip(numbers).for_each(|(y, &x)| *y = (f64::from(x) * scale) as f32);
        }
    }
}

/// Loads the adapter in a GGUF file or a folder of PEFT for a model of this spec, for batches of up to `rows` rows.
pub(crate) fn load(
    gpu: &Gpu,
    path: &Path,
    spec: &ModelSpec,
    places: &Places,
    rows: u32,
    scope: &Scope,
) -> Result<Lora> {
    let file = LoraFile::open(path, spec)?;
    let pairs = file.pairs(spec, places)?;
    let mut none = |_| Ok(());
    let mut up = WeightUploader::new(gpu, scope, &mut none);
    let mut by_product: HashMap<usize, Vec<&Pair<'_>>> = HashMap::new();
    let mut embedding = None;
    for p in &pairs {
        match places.tensors.get(p.tensor).filter(|_| p.tensor != EMBEDDING) {
            Some(place) => by_product.entry(place.product).or_default().push(p),
            None => embedding = Some(table(&mut up, &file, p, spec)?),
        }
    }
    let mut products = HashMap::new();
    for (i, pairs) in by_product {
        let Some(product) = places.products.get(i) else { bail!(Internal, "no product {i}") };
        let width = padded(pairs.iter().map(|p| p.rank).sum());
        let mut a = Vec::with_capacity(width as usize * product.k as usize);
        let mut b = vec![0.0; product.rows as usize * width as usize];
        let mut column = 0;
        for p in pairs {
            let Some(at) = places.tensors.get(p.tensor) else { bail!(Internal, "no place of {}", p.tensor) };
            a.extend(file.values(p.a)?);
            place(&mut b, width, column, &file.values(p.b)?, p.rank, p.scale, &at.runs);
            column += p.rank;
        }
        a.resize(width as usize * product.k as usize, 0.0);
        let name = |half: &str| format!("{}.lora_{half}", product.name);
        let low =
            LowRank { a: upload(&mut up, &name("a"), product.k, &a)?, b: upload(&mut up, &name("b"), width, &b)? };
        products.insert(product.name.clone(), low);
    }
    up.finish()?;
    let all = || products.values().chain(&embedding);
    let width = all().map(|p| p.b.k()).max().unwrap_or(4);
    let buffer = |name: &str| gpu.storage(name, u64::from(rows) * u64::from(width) * 4, MemoryClass::Scratch, scope);
    let rows = [buffer("lora.rows")?, buffer("lora.scaled")?];
    let info = LoraInfo {
        name: file.gguf.get_str("general.name")?.unwrap_or_default().to_string(),
        tensors: pairs.len() as u32,
        rank: pairs.iter().map(|p| p.rank).max().unwrap_or(0),
        bytes: all().map(|p| p.a.bytes() + p.b.bytes()).chain(rows.iter().map(Buffer::size)).sum(),
        fingerprint: file.fingerprint(&pairs),
    };
    Ok(Lora { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), info, embedding, products, rows })
}

/// The embedding's matrices; a row of the first for each token.
fn table(up: &mut WeightUploader<'_>, file: &LoraFile, p: &Pair<'_>, spec: &ModelSpec) -> Result<LowRank> {
    let width = padded(p.rank);
    let widen = |values: &[f32], rows: u32, scale: f64| {
        let mut wide = vec![0.0; rows as usize * width as usize];
        place(&mut wide, width, 0, values, p.rank, scale, &[Run { first: 0, rows, at: 0 }]);
        wide
    };
    let (a, b) = (file.values(p.a)?, file.values(p.b)?);
    Ok(LowRank {
        a: upload(up, &format!("{EMBEDDING}.lora_a"), width, &widen(&a, spec.n_vocab, 1.0))?,
        b: upload(up, &format!("{EMBEDDING}.lora_b"), width, &widen(&b, spec.n_embd, p.scale))?,
    })
}

impl Lora {
    /// What it is.
    pub fn info(&self) -> &LoraInfo {
        &self.info
    }
}
