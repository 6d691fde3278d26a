//! Bit fields of quants: how blocks of 32 are laid out for the device, and how they are taken out of file blocks.
//!
//! On the device, bytes of a word belong to neighbouring weights, so that shaders shift and mask whole words (`shaders/lib/quants.wgsl`):
//!
//! * **nibbles**, 4 words: byte `j` of the 16 holds weight `j` low and weight `j + 16` high;
//! * **pairs** of bits, 2 words: bits `2c` of byte `e` of word `h` belong to weight `16h + 4c + e`;
//! * **single bits**, 1 word: bit `c` of byte `e` belongs to weight `4c + e`.
//!
//! In the super-blocks of files, 32 neighbouring bytes hold such a field of several blocks, each at its own shift.

/// Blocks of 32 in a super-block of 256.
pub(super) const BLOCKS: usize = 8;

/// 32 bytes as words.
#[inline]
pub(super) fn words(bytes: &[u8]) -> [u32; 8] {
    let mut out = [0; 8];
    for (w, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *w = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    out
}

/// Writes words in the order of the device, as many as `dst` holds.
#[inline]
pub(super) fn put(dst: &mut [u8], words: &[u32]) {
    for (d, w) in dst.chunks_exact_mut(4).zip(words) {
        d.copy_from_slice(&w.to_le_bytes());
    }
}

/// The nibbles of a block: 4 bits at `shift` of each of 32 bytes.
#[inline]
pub(super) fn nibbles(w: &[u32; 8], shift: usize) -> [u32; 4] {
    let part = |i: usize| (w[i] >> shift) & 0x0f0f_0f0f;
    [0, 1, 2, 3].map(|i| part(i) | part(i + 4) << 4)
}

/// The pairs of a block: 2 bits at `shift` of each of 32 bytes.
#[inline]
pub(super) fn pairs(w: &[u32; 8], shift: usize) -> [u32; 2] {
    let part = |i: usize, c: usize| ((w[i] >> shift) & 0x0303_0303) << (2 * c);
    [0, 4].map(|h| (0..4).fold(0, |sum, c| sum | part(h + c, c)))
}

/// The single bits of a block: the bit at `shift` of each of 32 bytes.
#[inline]
pub(super) fn bits(w: &[u32; 8], shift: usize) -> u32 {
    (0..8).fold(0, |sum, c| sum | ((w[c] >> shift) & 0x0101_0101) << c)
}

/// The single bits of a block whose weight `i` has bit `i` of `word`.
#[inline]
pub(super) fn spread(word: u32) -> u32 {
    // The product puts bit e of a nibble at bit 8e (and elsewhere).
    (0..8).fold(0, |sum, c| sum | (((word >> (4 * c)) & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) << c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of which no two are alike.
    fn sample() -> [u8; 32] {
        std::array::from_fn(|i| (i as u8).wrapping_mul(0x9d) ^ 0x5a)
    }

    #[test]
    fn fields_stand_where_the_text_says() {
        let bytes = sample();
        let w = words(&bytes);
        for shift in [0, 4] {
            let mut out = [0; 16];
            put(&mut out, &nibbles(&w, shift));
            for j in 0..16 {
                assert_eq!(out[j], (bytes[j] >> shift) & 15 | ((bytes[j + 16] >> shift) & 15) << 4);
            }
        }
        for shift in [0, 2, 4, 6] {
            let mut out = [0; 8];
            put(&mut out, &pairs(&w, shift));
            for (i, byte) in bytes.iter().enumerate() {
                let (h, c, e) = (i / 16, i / 4 % 4, i % 4);
                assert_eq!((out[4 * h + e] >> (2 * c)) & 3, (byte >> shift) & 3, "weight {i}");
            }
        }
        for shift in 0..8 {
            let out = bits(&w, shift).to_le_bytes();
            for (i, byte) in bytes.iter().enumerate() {
                assert_eq!((out[i % 4] >> (i / 4)) & 1, (byte >> shift) & 1, "weight {i}");
            }
        }
        for word in [0x8000_0001u32, 0x1234_5678, 0xfedc_ba98, u32::MAX] {
            let out = spread(word).to_le_bytes();
            for i in 0..32 {
                assert_eq!(u32::from((out[i % 4] >> (i / 4)) & 1), (word >> i) & 1, "weight {i} of {word:x}");
            }
        }
    }
}
