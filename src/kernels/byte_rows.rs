//! Activations as rows of signed bytes: what products with quantised weights read in whole numbers.
//!
//! 32 neighbouring numbers share a scale `d = max|x| / 127`; each is `round(x / d)`, off by half a step at most. With the bytes of a weight's
//! block ([`crate::quant::Format::has_bytes`]) a product of two blocks is a few whole-number dot products, which devices have instructions
//! for, and reads a quarter of what f32 takes.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::THREADS;
use crate::quant::GPU_BLOCK;

pub(super) static BYTE_ROWS: Kernel = Kernel {
    name: "byte_rows",
    source: include_str!("../../shaders/byte_rows.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: ByteRowsParams::FIELDS,
};

params!(ByteRowsParams { rows: u32, cols4: u32, x_stride4: u32, x_offset4: u32 });

/// Rows of signed bytes with their scales, dense. Several operations write them beside their f32 result.
#[derive(Debug, Clone, Copy)]
pub struct ByteRows<'a> {
    /// The bytes; of a row first the first halves of its blocks of 32, then the second halves.
    pub quants: BufferSlice<'a>,
    /// `[rows, cols / 32]` of the scale, f32, and the sums of the bytes of both halves, two i16.
    pub scales: BufferSlice<'a>,
    /// Rows (tokens).
    pub rows: u32,
    /// Numbers in a row, a multiple of 32.
    pub cols: u32,
}

impl<'a> ByteRows<'a> {
    /// Bytes of [`ByteRows::quants`] and [`ByteRows::scales`] of so many rows.
    pub fn sizes(rows: u32, cols: u32) -> [u64; 2] {
        let n = u64::from(rows) * u64::from(cols);
        [n, n / 4]
    }

    /// Fails unless `rows` x `cols` numbers can stand here.
    pub(super) fn check(&self, what: &str, rows: u32, cols: u32) -> Result<()> {
        let [quants, scales] = Self::sizes(rows, cols);
        let whole = cols.is_multiple_of(GPU_BLOCK as u32);
        if self.rows != rows || self.cols != cols || !whole || self.quants.size < quants || self.scales.size < scales {
            bail!(
                InvalidArgument,
                "{what}: {rows} x {cols} numbers as {} x {} bytes, in {} and {} bytes",
                self.rows,
                self.cols,
                self.quants.size,
                self.scales.size
            );
        }
        Ok(())
    }

    /// Binds them for writing.
    pub(super) fn bind_out(&self, d: Dispatch<'a>) -> Dispatch<'a> {
        d.flag("BYTES", true).bind("byte_quants", self.quants).bind("byte_scales", self.scales)
    }
}

/// `x` as rows of bytes.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or rows are not whole blocks.
pub fn byte_rows<'a>(x: Matrix<'a>, out: ByteRows<'a>) -> Result<Dispatch<'a>> {
    x.check_vec4("byte_rows: x")?;
    out.check("byte_rows", x.rows, x.cols)?;
    let params = ByteRowsParams { rows: x.rows, cols4: x.cols / 4, x_stride4: x.stride / 4, x_offset4: x.offset / 4 };
    let threads = u64::from(x.rows) * u64::from(x.cols / 4);
    Ok(Dispatch::new(&BYTE_ROWS, &params, linear_grid(threads.div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .bind("x", x.data)
        .bind("byte_quants", out.quants)
        .bind("byte_scales", out.scales))
}
