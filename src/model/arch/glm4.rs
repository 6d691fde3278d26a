//! `glm4`: GLM-4 0414.
//!
//! Norms before and after each block, biases on q, k and v, adjacent pairs in a part of each head, gate and up in `ffn_up`.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ModelSpec, NormNames};

pub(super) const GLM4: Architecture = Architecture { name: "glm4", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    // Models that see pictures turn in another way.
    let sections = k.name("rope.dimension_sections");
    if file.get(&sections).is_some() {
        bail!(Unsupported, "{}: key {sections}", file.name());
    }
    let mut spec = decoder(&k, RopePairs::Adjacent, NormKind::Rms, None)?;
    spec.layers.iter_mut().for_each(|l| l.norms = NormNames::BOTH);
    Ok(spec)
}
