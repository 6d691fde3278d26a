//! Model files: bytes to named metadata and named tensor views.
//!
//! Not here: what a key means (the `model` layer reads keys), how a block of weights is decoded (`quant`),
//! and anything of the GPU. Invariant: every range, count and name handed out was checked against the file,
//! so callers may slice without checking again. File bytes never cause a panic, only an error that names
//! the file and the key, tensor or offset.

pub mod gguf;
pub mod gguf_write;
pub mod safetensors;

mod cursor;
mod getters;
mod ggml_type;
mod value;

pub use ggml_type::{GGML_TYPES, GgmlType, ggml_type, type_name};
pub use gguf::{Gguf, MadeTensor, TensorInfo, TensorSource};
pub use gguf_write::GgufWriter;
pub use safetensors::{ElementType, SafetensorsFolder, StoredTensor, read_json};
pub use value::{Array, Value};
