//! Weight formats: one file each, with its block layout, CPU decoding, repacking and WGSL decoding.
//!
//! A format is what a GGUF tensor's rows are made of. On the device rows are *planar*: each row is padded to whole blocks of
//! [`GPU_BLOCK`] weights and its parts (quants, scales) stand in separate aligned planes, because most GGML blocks are not a multiple of
//! 4 bytes. Kernels read weights through one WGSL function, `weight_block(b)`, which the format's fragment defines:
//! the 32 weights of block `b` as eight `vec4<f32>`. So a new format needs no change in kernels or models.
//! What a super-block of 256 weights has in common stands in one entry for 8 such blocks.
//!
//! Decoding follows GGML's formulas in f32. A product of a quant and its scales has at most 23 significant bits, so it is exact, and a
//! weight has at most one rounding: CPU and device agree bit for bit, whether or not a driver fuses a product and a sum. The exception
//! are results below the smallest normal f32 (MXFP4 has scales down to 2^−128), which a device may take for zero.

mod bf16;
mod bits;
mod f16;
mod f32;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod sub_scales;
#[cfg(test)]
mod tests;

/// Weights in a block on the device; rows are padded to a multiple with zeros.
pub const GPU_BLOCK: usize = 32;
/// Weights in a super-block: what the K-quants and IQ4_XS call a block.
pub const SUPER_BLOCK: usize = GPU_BLOCK * bits::BLOCKS;

/// One plane of a planar row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// The WGSL variable that reads it.
    pub name: &'static str,
    /// Weights that share an entry: [`GPU_BLOCK`] or [`SUPER_BLOCK`].
    pub weights: usize,
    /// Bytes of an entry.
    pub bytes: usize,
}

impl Plane {
    /// A plane with `bytes` for each block.
    const fn of_block(name: &'static str, bytes: usize) -> Self {
        Self { name, weights: GPU_BLOCK, bytes }
    }

    /// A plane with `bytes` for each super-block.
    const fn of_super_block(name: &'static str, bytes: usize) -> Self {
        Self { name, weights: SUPER_BLOCK, bytes }
    }

    /// Bytes of a row of `k` weights. Formats with super-blocks have whole ones in a row.
    pub fn row_bytes(&self, k: usize) -> usize {
        k.div_ceil(self.weights) * self.bytes
    }
}

/// Encodes whole blocks of weights and adds their bytes.
pub type Quantize = fn(src: &[f32], dst: &mut Vec<u8>);

/// A weight format. Two formats are the same if their names are.
#[derive(Debug)]
pub struct Format {
    /// GGML's name: `Q8_0`.
    pub name: &'static str,
    /// GGML's type number in files.
    pub ggml_type: u32,
    /// Weights in a block of the file.
    pub block_len: usize,
    /// Bytes of a block of the file.
    pub block_bytes: usize,
    /// Planes on the device, in binding order.
    pub planes: &'static [Plane],
    /// WGSL that declares the planes' bindings and defines `weight_block` and, see [`Format::has_bytes`], `weight_raw` and `weight_bytes_of`, or `weight_eight`.
    pub fragment: &'static str,
    /// Decodes whole blocks: `src.len() / block_bytes * block_len == dst.len()`.
    pub dequantize: fn(src: &[u8], dst: &mut [f32]),
    /// Spreads one row (whole file blocks) over its planes. The planes are zeroed and long enough for the padded row.
    pub repack: fn(row: &[u8], planes: &mut [&mut [u8]]),
    /// Encodes whole blocks as GGML's reference does, bit for bit, where this library makes the format: `src.len() / block_len * block_bytes`
    /// bytes are added to `dst`.
    pub quantize: Option<Quantize>,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Every format that runs.
pub const FORMATS: &[&Format] = &[
    &f32::F32,
    &f16::F16,
    &bf16::BF16,
    &q8_0::Q8_0,
    &q4_0::Q4_0,
    &q4_1::Q4_1,
    &q5_0::Q5_0,
    &q5_1::Q5_1,
    &q2_k::Q2_K,
    &q3_k::Q3_K,
    &q4_k::Q4_K,
    &q5_k::Q5_K,
    &q6_k::Q6_K,
    &iq4_nl::IQ4_NL,
    &iq4_xs::IQ4_XS,
    &mxfp4::MXFP4,
];

/// The format with a GGML type number, if it runs.
pub fn by_ggml_type(id: u32) -> Option<&'static Format> {
    FORMATS.iter().copied().find(|f| f.ggml_type == id)
}

/// The format with a GGML name, if it runs.
pub fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().copied().find(|f| f.name == name)
}

impl Format {
    /// Bytes of a row of `k` weights in a file.
    pub fn row_bytes(&self, k: usize) -> usize {
        k / self.block_len * self.block_bytes
    }

    /// True if the fragment defines `weight_bytes_of` beside `weight_block`: weights are `scale · byte + offset`. Those of single elements do not; they
    /// define `weight_eight`.
    pub fn has_bytes(&self) -> bool {
        self.block_len.is_multiple_of(GPU_BLOCK)
    }

    /// Blocks of a row of `k` weights on the device.
    pub fn gpu_blocks(k: usize) -> usize {
        k.div_ceil(GPU_BLOCK)
    }
}

/// The f16 with these bytes, little-endian.
#[inline]
fn half(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// The file blocks in `src`. `B` is made of bytes, so it may stand at any address.
fn blocks<B: bytemuck::AnyBitPattern>(src: &[u8]) -> impl Iterator<Item = &B> {
    const { assert!(align_of::<B>() == 1) };
    src.chunks_exact(size_of::<B>()).map(bytemuck::from_bytes)
}

/// Repacking of the element formats: the row as it is.
fn repack_plain(row: &[u8], planes: &mut [&mut [u8]]) {
    planes[0][..row.len()].copy_from_slice(row);
}

/// Repacking of scales of `SCALE` bytes followed by quants that stay as they are.
fn repack_scale_first<const BLOCK: usize, const SCALE: usize>(row: &[u8], planes: &mut [&mut [u8]]) {
    let [quants, scales] = planes else { return };
    let blocks = row.chunks_exact(BLOCK);
    for ((block, q), d) in blocks.zip(quants.chunks_exact_mut(BLOCK - SCALE)).zip(scales.chunks_exact_mut(SCALE)) {
        d.copy_from_slice(&block[..SCALE]);
        q.copy_from_slice(&block[SCALE..]);
    }
}

/// Repacking of scales of `SCALE` bytes, then a word of high bits, then nibbles.
fn repack_five_bits<const BLOCK: usize, const SCALE: usize>(row: &[u8], planes: &mut [&mut [u8]]) {
    let [quants, high, scales] = planes else { return };
    let planes = quants.chunks_exact_mut(16).zip(high.chunks_exact_mut(4)).zip(scales.chunks_exact_mut(SCALE));
    for (block, ((q, h), d)) in row.chunks_exact(BLOCK).zip(planes) {
        let (scale, rest) = block.split_at(SCALE);
        d.copy_from_slice(scale);
        let word = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        bits::put(h, &[bits::spread(word)]);
        q.copy_from_slice(&rest[4..]);
    }
}
