//! Softmax over rows.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::THREADS_LONG;

pub(super) static SOFTMAX: Kernel = Kernel {
    name: "softmax",
    source: include_str!("../../shaders/softmax.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: SoftmaxParams::FIELDS,
};

params!(SoftmaxParams { rows: u32, cols: u32, inv_temperature: f32 });

/// `y[r, :] = softmax(x[r, :] / temperature)`. A row of −∞ gives zeros, NaN counts as −∞. Both matrices are dense.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or the temperature is not positive.
pub fn softmax<'a>(x: Matrix<'a>, y: Matrix<'a>, temperature: f32) -> Result<Dispatch<'a>> {
    x.check("softmax: x")?;
    y.check("softmax: y")?;
    let dense = |m: &Matrix<'_>| m.stride == m.cols && m.offset == 0;
    if x.cols != y.cols || x.rows != y.rows || !dense(&x) || !dense(&y) {
        bail!(InvalidArgument, "softmax: x {} x {}, y {} x {}", x.rows, x.cols, y.rows, y.cols);
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        bail!(InvalidArgument, "softmax: temperature {temperature}");
    }
    let params = SoftmaxParams { rows: x.rows, cols: x.cols, inv_temperature: 1.0 / temperature };
    Ok(Dispatch::new(&SOFTMAX, &params, linear_grid(x.rows.into()))
        .constant("WG", THREADS_LONG)
        .bind("x", x.data)
        .bind("y", y.data))
}
