//! 6-bit scales of the sub-blocks of a super-block: how files pack them, and how the device finds them.
//!
//! On the device, a super-block has four words: its scale or scales, then eight pairs `(a, b)` of 6-bit numbers, one pair a block of
//! 32. Nibble `j` of the second word holds the low bits of `a`, of the third those of `b`; of the fourth the high bits of `a` low and
//! those of `b` high. `shaders/lib/sub_scales.wgsl` reads it.

use super::bits::BLOCKS;

/// Bytes of a super-block's scales on the device.
pub(super) const BYTES: usize = 16;

/// One pair a block of 32.
pub(super) type Pairs = [(u8, u8); BLOCKS];

/// Scales and minimums of Q4_K and Q5_K: the first four pairs are the low 6 bits of bytes `j` and `j + 4`; of the others the low
/// 4 bits share byte `j + 8`, and the high 2 stand above the numbers of the first four.
#[inline]
pub(super) fn scales_and_mins(p: &[u8; 12]) -> Pairs {
    std::array::from_fn(|j| match j {
        0..4 => (p[j] & 63, p[j + 4] & 63),
        _ => ((p[j + 4] & 15) | (p[j - 4] >> 6) << 4, p[j + 4] >> 4 | (p[j] >> 6) << 4),
    })
}

/// The 16 scales of Q3_K, two a block: scale `i` has its low 4 bits in byte `i % 8` (the first eight scales
/// low in it), its high 2 at bit `2 · (i / 4)` of byte `8 + i % 4`.
#[inline]
pub(super) fn scales_of_q3(p: &[u8; 12]) -> Pairs {
    let scale = |i: usize| (p[i % 8] >> (i / 8 * 4)) & 15 | ((p[8 + i % 4] >> (i / 4 * 2)) & 3) << 4;
    std::array::from_fn(|j| (scale(2 * j), scale(2 * j + 1)))
}

/// The four words of the device; `first` is the super-block's own scale or scales.
#[inline]
pub(super) fn pack(first: u32, pairs: &Pairs) -> [u32; 4] {
    let mut out = [first, 0, 0, 0];
    for (j, &(a, b)) in pairs.iter().enumerate() {
        let (a, b) = (u32::from(a), u32::from(b));
        out[1] |= (a & 15) << (4 * j);
        out[2] |= (b & 15) << (4 * j);
        out[3] |= (a >> 4 | (b >> 4) << 2) << (4 * j);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packed as the quantiser does it.
    #[test]
    fn every_bit_of_scales_and_mins() {
        let want: Pairs = std::array::from_fn(|j| ((j as u8 * 9 + 3) & 63, (61 - j as u8 * 7) & 63));
        let mut p = [0u8; 12];
        for (j, &(s, m)) in want.iter().enumerate() {
            if j < 4 {
                p[j] |= s;
                p[j + 4] |= m;
            } else {
                p[j + 4] = (s & 15) | (m & 15) << 4;
                p[j - 4] |= (s >> 4) << 6;
                p[j] |= (m >> 4) << 6;
            }
        }
        assert_eq!(scales_and_mins(&p), want);
        for bit in 0..96 {
            let mut one = [0u8; 12];
            one[bit / 8] = 1 << (bit % 8);
            let pairs = scales_and_mins(&one);
            assert_eq!(pairs.iter().map(|&(a, b)| a.count_ones() + b.count_ones()).sum::<u32>(), 1, "bit {bit}");
        }
    }

    #[test]
    fn every_bit_of_the_scales_of_q3() {
        // The first scale is all of byte 0 low and of byte 8's lowest bits; the last of byte 7 high and byte 11's highest bits.
        let mut p = [0u8; 12];
        (p[0], p[8]) = (0x0d, 0x02);
        (p[7], p[11]) = (0xb0, 0x40);
        p[5] = 0x06;
        let pairs = scales_of_q3(&p);
        assert_eq!((pairs[0].0, pairs[7].1, pairs[2].1), (0x2d, 0x1b, 6));
        for bit in 0..96 {
            let mut one = [0u8; 12];
            one[bit / 8] = 1 << (bit % 8);
            let pairs = scales_of_q3(&one);
            assert_eq!(pairs.iter().map(|&(a, b)| a.count_ones() + b.count_ones()).sum::<u32>(), 1, "bit {bit}");
        }
    }

    #[test]
    fn the_device_finds_each_pair() {
        let pairs: Pairs = std::array::from_fn(|j| (63 - 5 * j as u8, 7 * j as u8 + 11));
        let [first, a, b, high] = pack(0x1234_5678, &pairs);
        assert_eq!(first, 0x1234_5678);
        for (j, &(x, y)) in pairs.iter().enumerate() {
            let nibble = |w: u32| (w >> (4 * j)) & 15;
            assert_eq!(nibble(a) | (nibble(high) & 3) << 4, u32::from(x));
            assert_eq!(nibble(b) | (nibble(high) & 12) << 2, u32::from(y));
        }
    }
}
