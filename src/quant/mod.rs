//! Weight formats: one file each, with its block layout, CPU decoding, repacking and WGSL decoding.
//!
//! A format is what a GGUF tensor's rows are made of. On the device rows are *planar*: each row is padded to whole blocks of
//! [`GPU_BLOCK`] weights and its parts (quants, scales) stand in separate aligned planes, because most GGML blocks are not a multiple of
//! 4 bytes. Kernels read weights through one WGSL function, `weight_block(b)`, which the format's fragment defines:
//! the 32 weights of block `b` as eight `vec4<f32>`. So a new format needs no change in kernels or models.

mod bf16;
mod f16;
mod f32;
mod q4_0;
mod q8_0;

/// Weights in a block on the device; rows are padded to a multiple with zeros.
pub const GPU_BLOCK: usize = 32;

/// One plane of a planar row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// The WGSL variable that reads it.
    pub name: &'static str,
    /// Bytes for each block of [`GPU_BLOCK`] weights.
    pub block_bytes: usize,
}

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
    /// WGSL that declares the planes' bindings and defines `weight_block`.
    pub fragment: &'static str,
    /// Decodes whole blocks: `src.len() / block_bytes * block_len == dst.len()`.
    pub dequantize: fn(src: &[u8], dst: &mut [f32]),
    /// Spreads one row (whole file blocks) over its planes. The planes are zeroed and long enough for the padded row.
    pub repack: fn(row: &[u8], planes: &mut [&mut [u8]]),
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Every format that runs.
pub const FORMATS: &[&Format] = &[&f32::F32, &f16::F16, &bf16::BF16, &q8_0::Q8_0, &q4_0::Q4_0];

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

    /// Blocks of a row of `k` weights on the device.
    pub fn gpu_blocks(k: usize) -> usize {
        k.div_ceil(GPU_BLOCK)
    }
}

/// The f16 at `bytes[0..2]`, little-endian.
fn read_f16(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Repacking of the element formats: the row as it is.
fn repack_plain(row: &[u8], planes: &mut [&mut [u8]]) {
    planes[0][..row.len()].copy_from_slice(row);
}

/// Repacking of a 2-byte scale followed by quants.
fn repack_scale_first<const BLOCK_BYTES: usize>(row: &[u8], planes: &mut [&mut [u8]]) {
    let [quants, scales] = planes else { return };
    let blocks = row.chunks_exact(BLOCK_BYTES);
    for ((block, q), d) in blocks.zip(quants.chunks_exact_mut(BLOCK_BYTES - 2)).zip(scales.chunks_exact_mut(2)) {
        d.copy_from_slice(&block[..2]);
        q.copy_from_slice(&block[2..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_hold_a_block_and_are_word_aligned_enough() {
        for f in FORMATS {
            let bytes: usize = f.planes.iter().map(|p| p.block_bytes).sum();
            assert_eq!(bytes, f.block_bytes * GPU_BLOCK / f.block_len, "{}", f.name);
            assert_eq!(f.planes[0].block_bytes % 16, 0, "{}: quants are read as vec4<u32>", f.name);
            for p in f.planes {
                assert!(f.fragment.contains(&format!(" {}:", p.name)), "{}: plane {}", f.name, p.name);
            }
            assert_eq!(by_ggml_type(f.ggml_type), Some(*f));
            assert_eq!(by_name(f.name), Some(*f));
        }
    }

    #[test]
    fn repacking_pads_with_zeros_and_keeps_order() {
        let row: Vec<u8> = (0..34 * 3).map(|i| i as u8).collect();
        let (mut q, mut d) = (vec![0; 32 * 3], vec![0; 8]);
        (q8_0::Q8_0.repack)(&row, &mut [&mut q, &mut d]);
        assert_eq!(&d[..6], &[0, 1, 34, 35, 68, 69]);
        assert_eq!((q[0], q[32], q[95]), (2, 36, 101));
        let mut plane = vec![9; 16];
        plane.fill(0);
        (f32::F32.repack)(&[1, 2, 3, 4], &mut [&mut plane]);
        assert_eq!(&plane[..6], &[1, 2, 3, 4, 0, 0]);
    }
}
