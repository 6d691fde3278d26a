//! The table of ggml tensor types: number, name, and how many bytes a block of how many weights takes.
//!
//! It only measures. Which of these the library can compute with is the business of `quant` and `model`.
//! Invariant: ids are unique and both block sizes are at least one.

/// One tensor type of the ggml family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType {
    /// The number that stands in files.
    pub id: u32,
    /// The name people use.
    pub name: &'static str,
    /// Weights in one block, along the first dimension.
    pub block_len: u32,
    /// Bytes of one block.
    pub block_bytes: u32,
}

const fn ty(id: u32, name: &'static str, block_len: u32, block_bytes: u32) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes }
}

/// Every type that is known, in the order of its number. Numbers missing here were withdrawn or never given.
pub const GGML_TYPES: &[GgmlType] = &[
    ty(0, "F32", 1, 4),
    ty(1, "F16", 1, 2),
    ty(2, "Q4_0", 32, 18),
    ty(3, "Q4_1", 32, 20),
    ty(6, "Q5_0", 32, 22),
    ty(7, "Q5_1", 32, 24),
    ty(8, "Q8_0", 32, 34),
    ty(9, "Q8_1", 32, 36),
    ty(10, "Q2_K", 256, 84),
    ty(11, "Q3_K", 256, 110),
    ty(12, "Q4_K", 256, 144),
    ty(13, "Q5_K", 256, 176),
    ty(14, "Q6_K", 256, 210),
    ty(15, "Q8_K", 256, 292),
    ty(16, "IQ2_XXS", 256, 66),
    ty(17, "IQ2_XS", 256, 74),
    ty(18, "IQ3_XXS", 256, 98),
    ty(19, "IQ1_S", 256, 50),
    ty(20, "IQ4_NL", 32, 18),
    ty(21, "IQ3_S", 256, 110),
    ty(22, "IQ2_S", 256, 82),
    ty(23, "IQ4_XS", 256, 136),
    ty(24, "I8", 1, 1),
    ty(25, "I16", 1, 2),
    ty(26, "I32", 1, 4),
    ty(27, "I64", 1, 8),
    ty(28, "F64", 1, 8),
    ty(29, "IQ1_M", 256, 56),
    ty(30, "BF16", 1, 2),
    ty(34, "TQ1_0", 256, 54),
    ty(35, "TQ2_0", 256, 66),
    ty(39, "MXFP4", 32, 17),
    ty(40, "NVFP4", 64, 36),
];

/// The type with this number, if it is known.
#[must_use]
pub fn ggml_type(id: u32) -> Option<&'static GgmlType> {
    GGML_TYPES.iter().find(|t| t.id == id)
}

/// A type's name for messages; an unknown number is shown as such.
#[must_use]
pub fn type_name(id: u32) -> String {
    ggml_type(id).map_or_else(|| format!("unknown type {id}"), |t| t.name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sorted_and_blocks_are_not_empty() {
        assert!(GGML_TYPES.windows(2).all(|w| w[0].id < w[1].id));
        assert!(GGML_TYPES.iter().all(|t| t.block_len > 0 && t.block_bytes > 0));
        assert_eq!(type_name(12), "Q4_K");
        assert_eq!(type_name(31), "unknown type 31");
    }
}
