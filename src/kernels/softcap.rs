//! Soft capping: numbers are bent into `(−cap, cap)`.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::THREADS;

pub(super) static SOFTCAP: Kernel = Kernel {
    name: "softcap",
    source: include_str!("../../shaders/softcap.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: SoftcapParams::FIELDS,
};

params!(SoftcapParams { n: u32, cap: f32 });

/// `x[i] = cap · tanh(x[i] / cap)` for the first `n` elements, in place.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if the buffer is too small or the cap is not a positive number.
pub fn softcap<'a>(n: u32, cap: f32, x: BufferSlice<'a>) -> Result<Dispatch<'a>> {
    if x.size < u64::from(n) * 4 || !(cap > 0.0 && cap.is_finite()) {
        bail!(InvalidArgument, "softcap of {n} elements by {cap}: {} bytes", x.size);
    }
    Ok(Dispatch::new(&SOFTCAP, &SoftcapParams { n, cap }, linear_grid(u64::from(n).div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .bind("x", x))
}
