//! GGUF containers, versions 2 and 3, little-endian, memory mapped.
//!
//! This reads the container only: metadata keys, tensor names and shapes, and where the bytes are. It gives no meaning
//! to a key apart from `general.alignment` and `split.count`, which are about the container itself. Files in several
//! parts and big-endian files are refused by name.
//!
//! Strings: keys, tensor names and single string values must be UTF-8, or the file is refused with the key's name. In
//! arrays of strings (vocabularies) bad bytes become U+FFFD with a warning, because one broken token out of a hundred
//! thousand should not make a model unusable.
//!
//! Invariant: every `TensorInfo` of an open file has a known type, non-zero dimensions, whole blocks, an aligned start
//! and a range inside the file; keys and tensor names are unique.

use super::cursor::Cursor;
use super::ggml_type::{ggml_type, type_name};
use super::value::Value;
use crate::error::{Error, Result, bail};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// A larger alignment than this serves nothing and would only hide a broken file.
const MAX_ALIGNMENT: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;
/// Keys and tensor names longer than this are refused (the format's own limit for keys).
const MAX_NAME: usize = 65_535;

/// Where a tensor is and what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name in the file.
    pub name: String,
    /// Dimensions, the contiguous one first.
    pub dims: Vec<u64>,
    /// The element type's number, see [`super::GGML_TYPES`].
    pub ggml_type: u32,
    /// Where the data begins, counted from the start of the file.
    pub offset: u64,
    /// How many bytes the data takes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        // Cannot overflow: `Gguf` checked the product when it read the file.
        self.dims.iter().product()
    }
}

/// Makes the bytes of tensors that are not in a GGUF file.
pub trait TensorSource: Send + Sync {
    /// The bytes of the tensor with this number, as many as its type and shape say.
    fn data(&self, index: usize) -> Cow<'_, [u8]>;

    /// At most `n` bytes that tell the tensor from another one, without making all of it.
    fn sample(&self, index: usize, n: usize) -> Vec<u8>;
}

/// A tensor of [`Gguf::assemble`].
#[derive(Debug, Clone)]
pub struct MadeTensor {
    /// The name it is found by.
    pub name: String,
    /// The name it has where it comes from, for messages.
    pub shown: String,
    /// Dimensions, the contiguous one first.
    pub dims: Vec<u64>,
    /// The element type's number.
    pub ggml_type: u32,
}

enum Backing {
    Map(memmap2::Mmap),
    Owned(Vec<u8>),
    /// Offsets of tensors are their numbers here.
    Made(Box<dyn TensorSource>),
}

impl Backing {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(m) => m,
            Self::Owned(v) => v,
            Self::Made(_) => &[],
        }
    }
}

/// An open GGUF file.
pub struct Gguf {
    name: String,
    backing: Backing,
    header: Header,
}

struct Header {
    version: u32,
    alignment: u64,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("name", &self.name)
            .field("version", &self.header.version)
            .field("keys", &self.header.metadata.len())
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

/// Maps a file for reading.
#[allow(unsafe_code, reason = "mapping a file is unsafe in every API: another process may change it")]
pub(super) fn map(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is private to this process and only ever read, as plain bytes that are checked like any other
    // input. If someone overwrites the file while it is open, weights change (wrong numbers, no memory error: names
    // and ranges were copied out and checked at open). If someone shortens it, reading a page past the new end raises
    // SIGBUS on Unix; Windows forbids shortening a mapped file. Model files are replaced by renaming, which is safe.
    unsafe { memmap2::Mmap::map(file) }
}

impl Gguf {
    /// Maps and reads the file's header; weights are paged in when they are used.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let io = |e: std::io::Error| Error::Io(format!("{name}: {e}"));
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if meta.is_dir() {
            bail!(Io, "{name}: is a directory, not a GGUF file");
        }
        if meta.len() == 0 {
            bail!(BadFile, "{name}: the file is empty");
        }
        let map = map(&file).map_err(io)?;
        Self::new(name, Backing::Map(map))
    }

    /// Reads a file that is already in memory. `name` stands for it in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::new(name.to_owned(), Backing::Owned(bytes))
    }

    fn new(name: String, backing: Backing) -> Result<Self> {
        let header = Header::read(backing.bytes()).map_err(|e| e.within(&name))?;
        Ok(Self { name, backing, header })
    }

    /// What stands for a GGUF file: keys and tensors made of something else. The number of a tensor in
    /// the list is what `source` gets.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming a tensor of an impossible shape or type, or a key or name that appears twice.
    pub fn assemble(
        name: &str,
        metadata: Vec<(String, Value)>,
        tensors: Vec<MadeTensor>,
        source: Box<dyn TensorSource>,
    ) -> Result<Self> {
        let mut header = Header {
            version: 3,
            alignment: DEFAULT_ALIGNMENT,
            keys: HashMap::with_capacity(metadata.len()),
            metadata,
            tensors: Vec::with_capacity(tensors.len()),
            names: HashMap::with_capacity(tensors.len()),
        };
        for (i, (key, _)) in header.metadata.iter().enumerate() {
            if header.keys.insert(key.clone(), i).is_some() {
                bail!(BadFile, "{name}: key {key:?} appears twice");
            }
        }
        for (i, MadeTensor { name: key, shown, dims, ggml_type }) in tensors.into_iter().enumerate() {
            let bytes = tensor_bytes(&dims, ggml_type).map_err(|e| e.within(&format!("{name}: tensor {shown:?}")))?;
            if header.names.insert(key, i).is_some() {
                bail!(BadFile, "{name}: tensor {shown:?} appears twice");
            }
            header.tensors.push(TensorInfo { name: shown, dims, ggml_type, offset: i as u64, bytes });
        }
        Ok(Self { name: name.to_owned(), backing: Backing::Made(source), header })
    }

    /// The file's path, or the name given to [`Gguf::from_bytes`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The container's version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The alignment of tensor data in the file.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.header.alignment
    }

    /// All keys and values, in the order of the file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.header.metadata.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.header.get(key)
    }

    /// All tensors, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// All tensors with the names that they are found by, in the order of the file.
    #[must_use]
    pub fn named_tensors(&self) -> Vec<(&str, &TensorInfo)> {
        let mut all: Vec<(&str, usize)> = self.header.names.iter().map(|(name, &i)| (name.as_str(), i)).collect();
        all.sort_unstable_by_key(|&(_, i)| i);
        all.into_iter().filter_map(|(name, i)| Some((name, self.header.tensors.get(i)?))).collect()
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.names.get(name).and_then(|&i| self.header.tensors.get(i))
    }

    /// A tensor's bytes. They begin at a multiple of [`Gguf::alignment`] in the file, which for a file given as a
    /// `Vec<u8>` says nothing about the address. Made anew at each call where the file is not a GGUF file. Empty for a `TensorInfo` of another file that does not fit this one.
    #[must_use]
    pub fn data(&self, tensor: &TensorInfo) -> Cow<'_, [u8]> {
        if let Backing::Made(source) = &self.backing {
            return source.data(usize::try_from(tensor.offset).unwrap_or(usize::MAX));
        }
        let range = usize::try_from(tensor.offset).ok().zip(usize::try_from(tensor.bytes).ok());
        let range = range.and_then(|(at, n)| Some(at..at.checked_add(n)?));
        Cow::Borrowed(range.and_then(|r| self.backing.bytes().get(r)).unwrap_or_default())
    }

    /// At most `n` bytes that tell a tensor from another one: its first ones.
    #[must_use]
    pub fn sample(&self, tensor: &TensorInfo, n: usize) -> Vec<u8> {
        match &self.backing {
            Backing::Made(source) => source.sample(usize::try_from(tensor.offset).unwrap_or(usize::MAX), n),
            _ => self.data(tensor).iter().take(n).copied().collect(),
        }
    }
}

impl Header {
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).and_then(|&i| self.metadata.get(i)).map(|(_, v)| v)
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let mut c = Cursor::new(bytes);
        if bytes.is_empty() {
            bail!(BadFile, "the file is empty");
        }
        let magic = c.array::<4>("the magic number")?;
        if magic != MAGIC {
            bail!(BadFile, "not a GGUF file: it begins with {magic:02x?} and not with \"GGUF\" (offset 0)");
        }
        let version = c.u32("the version")?;
        match version {
            2 | 3 => {}
            1 => bail!(Unsupported, "GGUF version 1 (offset 4); convert the file again to get version 3"),
            v if (1..=0xffff).contains(&v.swap_bytes()) => {
                bail!(Unsupported, "a big-endian GGUF file (version {} at offset 4)", v.swap_bytes())
            }
            v => bail!(Unsupported, "GGUF version {v} (offset 4); versions 2 and 3 can be read"),
        }
        // A tensor takes at least its name's length, a count, a type and an offset; a key its length, a type and a byte.
        let tensor_count = c.count(24, "the tensor count")?;
        let key_count = c.count(13, "the metadata count")?;

        let mut header = Self {
            version,
            alignment: DEFAULT_ALIGNMENT,
            metadata: Vec::with_capacity(key_count),
            keys: HashMap::with_capacity(key_count),
            tensors: Vec::with_capacity(tensor_count),
            names: HashMap::with_capacity(tensor_count),
        };
        header.read_metadata(&mut c, key_count)?;
        header.read_container_keys()?;
        header.read_tensors(&mut c, tensor_count)?;
        header.place_tensors(c.offset() as u64, bytes.len() as u64)?;
        Ok(header)
    }

    fn read_metadata(&mut self, c: &mut Cursor<'_>, count: usize) -> Result<()> {
        for i in 0..count {
            let at = c.offset();
            let key = c.string(&format!("the name of metadata key {i}"))?;
            if key.is_empty() || key.len() > MAX_NAME {
                bail!(BadFile, "the name of metadata key {i} at offset {at} has {} bytes", key.len());
            }
            let what = format!("key {key:?}");
            let kind = c.u32(&what)?;
            let value = c.value(kind, &what)?;
            if self.keys.insert(key.to_owned(), i).is_some() {
                bail!(BadFile, "{what} at offset {at} appears twice");
            }
            self.metadata.push((key.to_owned(), value));
        }
        Ok(())
    }

    /// The keys that are about the container itself.
    fn read_container_keys(&mut self) -> Result<()> {
        if let Some(value) = self.get("general.alignment") {
            match value.as_integer().and_then(|v| u64::try_from(v).ok()) {
                Some(a) if a.is_power_of_two() && a <= MAX_ALIGNMENT => self.alignment = a,
                _ => bail!(
                    BadFile,
                    "key \"general.alignment\" must be a power of two up to {MAX_ALIGNMENT}, found {value:?}"
                ),
            }
        }
        if let Some(parts) = self.get("split.count").and_then(Value::as_integer)
            && parts > 1
        {
            bail!(
                Unsupported,
                "this is one of {parts} parts of a split model (key \"split.count\"); merge the parts into one file first"
            );
        }
        Ok(())
    }

    fn read_tensors(&mut self, c: &mut Cursor<'_>, count: usize) -> Result<()> {
        for i in 0..count {
            let at = c.offset();
            let name = c.string(&format!("the name of tensor {i}"))?;
            if name.is_empty() || name.len() > MAX_NAME {
                bail!(BadFile, "the name of tensor {i} at offset {at} has {} bytes", name.len());
            }
            let what = format!("tensor {name:?}");
            let n_dims = c.u32(&what)?;
            if n_dims > MAX_DIMS {
                bail!(BadFile, "{what} at offset {at} has {n_dims} dimensions, at most {MAX_DIMS} are possible");
            }
            let dims = (0..n_dims).map(|_| c.u64(&what)).collect::<Result<Vec<u64>>>()?;
            let id = c.u32(&what)?;
            let offset = c.u64(&what)?;
            let bytes = tensor_bytes(&dims, id).map_err(|e| e.within(&format!("{what} at offset {at}")))?;
            if self.names.insert(name.to_owned(), i).is_some() {
                bail!(BadFile, "{what} at offset {at} appears twice");
            }
            self.tensors.push(TensorInfo { name: name.to_owned(), dims, ggml_type: id, offset, bytes });
        }
        Ok(())
    }

    /// Turns offsets into the data section to offsets into the file, and checks them.
    fn place_tensors(&mut self, header_end: u64, file_len: u64) -> Result<()> {
        let alignment = self.alignment;
        let Some(data_start) = header_end.checked_next_multiple_of(alignment) else {
            bail!(BadFile, "the header ends at offset {header_end}, where no data can follow");
        };
        for t in &mut self.tensors {
            if t.offset % alignment != 0 {
                bail!(BadFile, "tensor {:?}: its data offset {} is no multiple of {alignment}", t.name, t.offset);
            }
            let start = data_start.checked_add(t.offset);
            let end = start.and_then(|s| s.checked_add(t.bytes));
            match (start, end) {
                (Some(start), Some(end)) if end <= file_len => t.offset = start,
                _ => bail!(
                    BadFile,
                    "tensor {:?}: {} bytes at offset {data_start} + {} are not in the file, which has {file_len} bytes",
                    t.name,
                    t.bytes,
                    t.offset
                ),
            }
        }
        Ok(())
    }
}

/// How many bytes a tensor of this shape and type takes.
fn tensor_bytes(dims: &[u64], id: u32) -> Result<u64> {
    let Some(ty) = ggml_type(id) else {
        bail!(BadFile, "unknown tensor type {id}");
    };
    if dims.contains(&0) {
        bail!(BadFile, "a dimension is zero: {dims:?}");
    }
    let block_len = u64::from(ty.block_len);
    let row = dims.first().copied().unwrap_or(1);
    if row % block_len != 0 {
        bail!(BadFile, "{} needs a first dimension that is a multiple of {block_len}, found {row}", type_name(id));
    }
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    match elements.and_then(|n| (n / block_len).checked_mul(u64::from(ty.block_bytes))) {
        Some(bytes) => Ok(bytes),
        None => bail!(BadFile, "the shape {dims:?} is too large for any file"),
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
