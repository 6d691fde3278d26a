//! A bounds-checked little-endian reader over a file's bytes.
//!
//! It knows nothing of GGUF beyond numbers, strings and arrays. Invariant: it never reads past the end and never
//! allocates more than a small multiple of the bytes that are left, whatever a count in the file claims.

use super::value::{Array, Value};
use crate::error::{Result, bail};

/// Arrays of arrays deeper than this are refused; real files have none.
const MAX_DEPTH: u32 = 4;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn offset(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The next `n` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            bail!(BadFile, "the file ends in {what}: {n} bytes wanted at offset {}, {} left", self.at, self.remaining())
        };
        self.at += n;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `min_bytes` each, refused when the rest of the file cannot hold them.
    pub(super) fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize> {
        let at = self.at;
        let n = self.u64(what)?;
        match usize::try_from(n) {
            Ok(count) if count <= self.remaining() / min_bytes.max(1) => Ok(count),
            _ => bail!(BadFile, "{what} at offset {at} is {n}, more than the {} bytes left can hold", self.remaining()),
        }
    }

    fn string_bytes(&mut self, what: &str) -> Result<&'a [u8]> {
        let n = self.count(1, &format!("the length of {what}"))?;
        self.take(n, what)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<&'a str> {
        let at = self.at;
        let bytes = self.string_bytes(what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s),
            Err(e) => bail!(BadFile, "{what} at offset {at} is not UTF-8 (byte {})", e.valid_up_to()),
        }
    }

    fn bool(&mut self, what: &str) -> Result<bool> {
        let at = self.at;
        match self.array::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [b] => bail!(BadFile, "{what} at offset {at} is {b}, which is neither false (0) nor true (1)"),
        }
    }

    /// A value of the numbered type; `key` names it in errors.
    pub(super) fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        macro_rules! number {
            ($t:ty, $v:ident) => {
                Value::$v(<$t>::from_le_bytes(self.array(key)?))
            };
        }
        Ok(match kind {
            0 => number!(u8, U8),
            1 => number!(i8, I8),
            2 => number!(u16, U16),
            3 => number!(i16, I16),
            4 => number!(u32, U32),
            5 => number!(i32, I32),
            6 => number!(f32, F32),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(key)?.to_owned()),
            9 => Value::Array(self.value_array(key, 0)?),
            10 => number!(u64, U64),
            11 => number!(i64, I64),
            12 => number!(f64, F64),
            other => bail!(BadFile, "{key} at offset {} has the unknown value type {other}", self.at),
        })
    }

    fn value_array(&mut self, key: &str, depth: u32) -> Result<Array> {
        if depth >= MAX_DEPTH {
            bail!(BadFile, "{key} at offset {} nests arrays deeper than {MAX_DEPTH}", self.at);
        }
        let kind = self.u32(key)?;
        let what = format!("the element count of {key}");
        macro_rules! numbers {
            ($t:ty, $v:ident) => {{
                const SIZE: usize = size_of::<$t>();
                let n = self.count(SIZE, &what)?;
                // `count` made sure that n elements are there, so the product cannot overflow.
                let (chunks, _) = self.take(n * SIZE, key)?.as_chunks::<SIZE>();
                Array::$v(chunks.iter().map(|c| <$t>::from_le_bytes(*c)).collect())
            }};
        }
        Ok(match kind {
            0 => numbers!(u8, U8),
            1 => numbers!(i8, I8),
            2 => numbers!(u16, U16),
            3 => numbers!(i16, I16),
            4 => numbers!(u32, U32),
            5 => numbers!(i32, I32),
            6 => numbers!(f32, F32),
            7 => {
                let n = self.count(1, &what)?;
                Array::Bool((0..n).map(|_| self.bool(key)).collect::<Result<_>>()?)
            }
            8 => {
                let n = self.count(8, &what)?;
                let mut strings = Vec::with_capacity(n);
                let mut mended = 0usize;
                for _ in 0..n {
                    let text = String::from_utf8_lossy(self.string_bytes(key)?);
                    mended += usize::from(matches!(text, std::borrow::Cow::Owned(_)));
                    strings.push(text.into_owned());
                }
                if mended > 0 {
                    log::warn!("{key}: {mended} of {n} strings are not UTF-8; bad bytes became U+FFFD");
                }
                Array::String(strings)
            }
            9 => {
                let n = self.count(12, &what)?;
                Array::Array((0..n).map(|_| self.value_array(key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => numbers!(u64, U64),
            11 => numbers!(i64, I64),
            12 => numbers!(f64, F64),
            other => bail!(BadFile, "{key} at offset {} has the unknown element type {other}", self.at),
        })
    }
}
