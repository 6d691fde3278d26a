//! The checksum of what the library writes to disk and reads again.

/// A 64-bit checksum over words: any change within one word changes it, others all but surely. It guards against accidents, not against
/// someone who means harm.
#[derive(Debug)]
pub(crate) struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

/// The checksum of some bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = Checksum::default();
    sum.write(bytes);
    sum.value()
}

impl Checksum {
    /// Adds bytes, and their number.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let mut word = |w: u64| {
            // Each step can be undone, so a difference stays; the shift brings high bits down.
            self.0 = (self.0 ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 ^= self.0 >> 32;
        };
        let words = bytes.chunks_exact(8);
        let mut tail = [0; 8];
        tail[..words.remainder().len()].copy_from_slice(words.remainder());
        words.for_each(|w| word(bytemuck::pod_read_unaligned(w)));
        word(u64::from_le_bytes(tail));
        word(bytes.len() as u64);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_the_length_count() {
        let bytes: Vec<u8> = (0..=40).collect();
        for n in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[n] ^= 0x80;
            assert_ne!(checksum(&bent), checksum(&bytes), "byte {n}");
            assert_ne!(checksum(&bytes[..n]), checksum(&bytes), "the first {n}");
        }
        assert_ne!(checksum(&[0; 8]), checksum(&[0; 9]));
        // Files of earlier builds stay readable.
        assert_eq!(checksum(b"doppler"), 0xdb7e_6d8c_e2a8_c161);
    }
}
