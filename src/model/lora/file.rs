//! Adapter files: which tensors they change, found, paired and measured before anything is uploaded.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::checksum::Checksum;
use crate::error::{Result, bail};
use crate::format::{Gguf, TensorInfo, type_name};
use crate::model::hf;
use crate::model::spec::ModelSpec;
use crate::model::weights::Places;
use crate::quant;

/// The embedding table, whose adapters are looked up in, not multiplied by.
pub(super) const EMBEDDING: &str = "token_embd.weight";

/// What one tensor gets added: `scale · B · A`.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    /// The tensor's name in GGUF files.
    pub(super) tensor: &'a str,
    /// `[rank, k]`; of the embedding `[n_vocab, rank]`.
    pub(super) a: &'a TensorInfo,
    /// `[rows, rank]`.
    pub(super) b: &'a TensorInfo,
    pub(super) rank: u32,
    /// α by the rank, or what else the file says.
    pub(super) scale: f64,
}

/// An adapter file: GGUF, or a folder as PEFT writes it, read as if it were one.
#[derive(Debug)]
pub(super) struct LoraFile {
    pub(super) gguf: Gguf,
    /// α, and of single tensors the whole factor.
    alpha: f32,
    scales: HashMap<String, f64>,
}

impl LoraFile {
    /// Opens a file and checks that it is an adapter for this architecture.
    pub(super) fn open(path: &Path, spec: &ModelSpec) -> Result<Self> {
        if path.is_dir() {
            let (gguf, scales) = hf::open_adapter(path, spec)?;
            return Ok(Self { gguf, alpha: 0.0, scales });
        }
        let gguf = Gguf::open(path)?;
        let name = gguf.name();
        for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
            match gguf.get_str(key)? {
                Some(found) if found == wanted => {}
                found => bail!(
                    BadFile,
                    "{name}: key {key:?} is {:?}: not a LoRA adapter, which has {wanted:?}",
                    found.unwrap_or("absent")
                ),
            }
        }
        let arch = gguf.require_str("general.architecture")?;
        if arch != spec.architecture {
            bail!(BadFile, "{name}: an adapter for architecture {arch:?}, the model is {:?}", spec.architecture);
        }
        if let Some((key, _)) = gguf.metadata().find(|(k, _)| k.starts_with("adapter.alora.")) {
            bail!(Unsupported, "{name}: key {key:?}: adapters that begin at certain tokens do not run");
        }
        let alpha = gguf.get_f32("adapter.lora.alpha")?.unwrap_or(0.0);
        if !alpha.is_finite() {
            bail!(BadFile, "{name}: key \"adapter.lora.alpha\" is {alpha}");
        }
        Ok(Self { gguf, alpha, scales: HashMap::new() })
    }

    /// What the adapter changes, by tensor, in the order of their names.
    pub(super) fn pairs(&self, spec: &ModelSpec, places: &Places) -> Result<Vec<Pair<'_>>> {
        let file = self.gguf.name();
        let mut halves: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
        for (name, info) in self.gguf.named_tensors() {
            let (tensor, half) = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
                (Some(tensor), _) => (tensor, 0),
                (_, Some(tensor)) => (tensor, 1),
                _ => bail!(Unsupported, "{file}: tensor {}: neither \".lora_a\" nor \".lora_b\"", info.name),
            };
            halves.entry(tensor).or_default()[half] = Some(info);
        }
        if halves.is_empty() {
            bail!(BadFile, "{file}: an adapter without tensors");
        }
        halves.into_iter().map(|(tensor, halves)| self.pair(tensor, halves, spec, places)).collect()
    }

    fn pair<'a>(
        &'a self,
        tensor: &'a str,
        halves: [Option<&'a TensorInfo>; 2],
        spec: &ModelSpec,
        places: &Places,
    ) -> Result<Pair<'a>> {
        let file = self.gguf.name();
        let (a, b) = match halves {
            [Some(a), Some(b)] => (a, b),
            [Some(one), None] => bail!(BadFile, "{file}: tensor {} has no other half: {tensor}.lora_b", one.name),
            [None, Some(one)] => bail!(BadFile, "{file}: tensor {} has no other half: {tensor}.lora_a", one.name),
            [None, None] => bail!(Internal, "{file}: {tensor} without tensors"),
        };
        // Of the embedding the first half has a row for each token.
        let (n_vocab, n_embd) = (u64::from(spec.n_vocab), u64::from(spec.n_embd));
        let (a_dims, rows) = match places.tensors.get(tensor) {
            _ if tensor == EMBEDDING => ([b.dims.first().copied().unwrap_or(0), n_vocab], n_embd),
            Some(place) => {
                let k = places.products.get(place.product).map_or(0, |p| p.k);
                ([k.into(), a.dims.get(1).copied().unwrap_or(1)], u64::from(place.rows))
            }
            None if places.experts.contains(tensor) => {
                bail!(Unsupported, "{file}: tensor {}: adapters of routers and experts do not run", a.name)
            }
            None => bail!(BadFile, "{file}: tensor {}: the model has no matrix {tensor}", a.name),
        };
        let rank = if tensor == EMBEDDING { a_dims[0] } else { a_dims[1] };
        for (t, wanted) in [(a, a_dims), (b, [rank, rows])] {
            // Files leave out trailing dimensions of 1.
            let found = [0, 1].map(|i| t.dims.get(i).copied().unwrap_or(1));
            if found != wanted || t.dims.iter().skip(2).any(|&d| d != 1) || !(1..=1 << 16).contains(&rank) {
                bail!(BadFile, "{file}: tensor {}: shape {:?}, expected {wanted:?}", t.name, t.dims);
            }
        }
        let scale = match self.scales.get(tensor) {
            Some(&scale) => scale,
            None if self.alpha == 0.0 => 1.0,
            None => f64::from(self.alpha) / rank as f64,
        };
        Ok(Pair { tensor, a, b, rank: rank as u32, scale })
    }

    /// A tensor's numbers.
    pub(super) fn values(&self, t: &TensorInfo) -> Result<Vec<f32>> {
        let file = self.gguf.name();
        let Some(format) = quant::by_ggml_type(t.ggml_type) else {
            bail!(Unsupported, "{file}: tensor {}: type {}", t.name, type_name(t.ggml_type));
        };
        let mut values = vec![0.0; t.elements() as usize];
        (format.dequantize)(&self.gguf.data(t), &mut values);
        if let Some(x) = values.iter().find(|x| !x.is_finite()) {
            bail!(BadFile, "{file}: tensor {}: it holds {x}", t.name);
        }
        Ok(values)
    }

    /// A number that other adapters do not have.
    pub(super) fn fingerprint(&self, pairs: &[Pair<'_>]) -> u64 {
        let mut hash = Checksum::default();
        for p in pairs {
            hash.write(p.tensor.as_bytes());
            hash.write(&p.scale.to_le_bytes());
            for t in [p.a, p.b] {
                t.dims.iter().for_each(|d| hash.write(&d.to_le_bytes()));
                hash.write(&self.gguf.data(t));
            }
        }
        hash.value()
    }
}
