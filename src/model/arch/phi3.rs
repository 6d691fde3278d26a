//! `phi3`: Phi-3, Phi-3.5, Phi-4 and Phi-4-mini.
//!
//! As `llama` with rotated halves, q, k and v in one tensor, and gate and up in `ffn_up`. Long-context models carry two sets of divisors of
//! the frequencies ([`crate::model::RopeScaling::LongRope`]) and no key for the type of scaling; some turn only a part of each head. A
//! window that is not 0 counts, as in the models' own implementation (llama.cpp leaves it out).

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const PHI3: Architecture = Architecture { name: "phi3", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    decoder(&Keys::new(file)?, RopePairs::Halves, NormKind::Rms, None)
}
