//! Folders of safetensors files: one `model.safetensors`, or several shards with an index; memory mapped.
//!
//! This finds tensors by name and gives their bytes. What a name means is not known here. Invariant: every tensor handed out lies inside its
//! file, its bytes are as many as its shape and type say, and names are unique over all shards.

use super::gguf::map;
use crate::error::{Error, Result, bail};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// The file of a model in one piece.
const SINGLE: &str = "model.safetensors";
/// The list of a model's shards.
const INDEX: &str = "model.safetensors.index.json";

/// Element types that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the type it names")]
pub enum ElementType {
    F32,
    F16,
    BF16,
    U8,
}

impl ElementType {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }
}

/// A tensor of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Dimensions, the contiguous one last.
    pub shape: Vec<u64>,
    /// `None` for a type that is not read; [`StoredTensor::element_type`] names it.
    dtype: Option<ElementType>,
    type_name: String,
    shard: usize,
    range: Range<usize>,
}

impl StoredTensor {
    /// Its element type.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming tensor and type, if it is none of those that are read.
    pub fn element_type(&self) -> Result<ElementType> {
        match self.dtype {
            Some(t) => Ok(t),
            None => bail!(Unsupported, "tensor {}: type {} (F32, F16, BF16 run)", self.name, self.type_name),
        }
    }
}

/// An open folder.
pub struct SafetensorsFolder {
    name: String,
    shards: Vec<memmap2::Mmap>,
    tensors: Vec<StoredTensor>,
    names: HashMap<String, usize>,
}

impl std::fmt::Debug for SafetensorsFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SafetensorsFolder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A JSON file of a folder.
///
/// # Errors
/// [`Error::Io`] or [`Error::BadFile`] naming the file.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|e| Error::Io(format!("{name}: {e}")))?;
    serde_json::from_slice(&text).map_err(|e| Error::BadFile(format!("{name}: not JSON: {e}")))
}

impl SafetensorsFolder {
    /// Maps the weights of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] naming a file that cannot be read, [`Error::BadFile`] naming the file, shard or tensor that is broken.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut new =
            Self { name: folder.display().to_string(), shards: Vec::new(), tensors: Vec::new(), names: HashMap::new() };
        let index = folder.join(INDEX);
        if !index.exists() {
            new.add(&folder.join(SINGLE))?;
            return Ok(new);
        }
        let json = read_json(&index)?;
        let Some(list) = json.get("weight_map").and_then(serde_json::Value::as_object) else {
            bail!(BadFile, "{}: key \"weight_map\" is missing, or no object", index.display());
        };
        let mut files: Vec<&str> = Vec::new();
        for (tensor, file) in list {
            match file.as_str() {
                // Nothing outside of the folder is opened.
                Some(f) if !f.is_empty() && !f.contains(['/', '\\']) && f != ".." => files.push(f),
                _ => bail!(BadFile, "{}: tensor {tensor}: {file} is no name of a file", index.display()),
            }
        }
        files.sort_unstable();
        files.dedup();
        files.iter().try_for_each(|file| new.add(&folder.join(file)))?;
        for (tensor, file) in list {
            if new.tensor(tensor).is_none() {
                bail!(BadFile, "{}: tensor {tensor} is missing in {file}", new.name);
            }
        }
        Ok(new)
    }

    /// Maps one file of a folder.
    ///
    /// # Errors
    /// As [`SafetensorsFolder::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut new = Self { name, shards: Vec::new(), tensors: Vec::new(), names: HashMap::new() };
        new.add(path)?;
        Ok(new)
    }

    /// Maps one file and lists its tensors.
    fn add(&mut self, path: &Path) -> Result<()> {
        let name = path.display().to_string();
        let io = |e: std::io::Error| Error::Io(format!("{name}: {e}"));
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            bail!(BadFile, "{name}: the file is empty");
        }
        let bytes = map(&file).map_err(io)?;
        let broken = |e: &dyn std::fmt::Display| Error::BadFile(format!("{name}: {e}"));
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(&e))?;
        let start = header + size_of::<u64>();
        if start.checked_add(metadata.data_len()) != Some(bytes.len()) {
            let (wanted, found) = (metadata.data_len(), bytes.len().saturating_sub(start));
            return Err(broken(&format!("{found} bytes of weights, the header says {wanted}")));
        }
        for (tensor, info) in metadata.tensors() {
            let dtype = match info.dtype {
                Dtype::F32 => Some(ElementType::F32),
                Dtype::F16 => Some(ElementType::F16),
                Dtype::BF16 => Some(ElementType::BF16),
                Dtype::U8 => Some(ElementType::U8),
                _ => None,
            };
            let stored = StoredTensor {
                name: tensor.clone(),
                shape: info.shape.iter().map(|&d| d as u64).collect(),
                dtype,
                type_name: format!("{:?}", info.dtype),
                shard: self.shards.len(),
                range: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            if self.names.insert(tensor.clone(), self.tensors.len()).is_some() {
                return Err(broken(&format!("tensor {tensor} is in another shard as well")));
            }
            self.tensors.push(stored);
        }
        self.shards.push(bytes);
        Ok(())
    }

    /// The folder's path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All tensors, in no order.
    #[must_use]
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The tensor of a name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.names.get(name).and_then(|&i| self.tensors.get(i))
    }

    /// A tensor's bytes, little-endian. Empty for a tensor of another folder that does not fit this one.
    #[must_use]
    pub fn data(&self, tensor: &StoredTensor) -> &[u8] {
        self.shards.get(tensor.shard).and_then(|s| s.get(tensor.range.clone())).unwrap_or_default()
    }
}
