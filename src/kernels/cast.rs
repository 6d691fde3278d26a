//! Conversion of element types.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::THREADS;

pub(super) static CAST: Kernel = Kernel {
    name: "cast",
    source: include_str!("../../shaders/cast.wgsl"),
    flags: &["TO_F16", "FROM_F16"],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[], exists: |v| !(v.has("TO_F16") && v.has("FROM_F16")) },
    params: CastParams::FIELDS,
};

params!(CastParams { n: u32 });

/// From which type to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cast {
    /// f32 to f16, rounded to nearest.
    F32ToF16,
    /// f16 to f32, exact.
    F16ToF32,
    /// bf16 to f32, exact.
    Bf16ToF32,
}

/// `y[i] = x[i]` in another type, for `n` elements; 2-byte types are packed two in a word.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small.
pub fn cast<'a>(which: Cast, n: u32, x: BufferSlice<'a>, y: BufferSlice<'a>) -> Result<Dispatch<'a>> {
    let packed = u64::from(n).div_ceil(2) * 4;
    let wide = u64::from(n) * 4;
    let (x_bytes, y_bytes) = if which == Cast::F32ToF16 { (wide, packed) } else { (packed, wide) };
    if x.size < x_bytes || y.size < y_bytes {
        bail!(InvalidArgument, "cast of {n} elements: {} bytes to {} bytes", x.size, y.size);
    }
    Ok(Dispatch::new(&CAST, &CastParams { n }, linear_grid(u64::from(n).div_ceil(u64::from(THREADS) * 2)))
        .constant("WG", THREADS)
        .flag("TO_F16", which == Cast::F32ToF16)
        .flag("FROM_F16", which == Cast::F16ToF32)
        .bind("x", x)
        .bind("y", y))
}
