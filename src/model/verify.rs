//! A file's matrices as the device decodes them, against what the file says.

use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::gpu::{Gate, Gpu, MemoryClass, Phase, Place, ReadbackClass};
use crate::kernels::{RowSource, WeightUploader, dequant};
use crate::quant::by_ggml_type;

const DECODED: Gate = Gate::new(Place::Cast, ReadbackClass::Debug, "weights");

/// Elements decoded at a time: 16 MiB of f32, which every adapter binds.
const CHUNK_ELEMENTS: u64 = 4 << 20;

/// What became of a tensor on the device.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorCheck {
    /// Name in the file.
    pub name: String,
    /// Its format's name.
    pub format: &'static str,
    /// Rows.
    pub rows: u64,
    /// Width.
    pub cols: u64,
    /// Elements that are not the same number. NaN equals NaN here.
    pub differing: u64,
    /// Largest difference; infinite if one side is not finite and the other is something else.
    pub max_error: f64,
    /// Largest finite magnitude in the file.
    pub largest: f64,
}

/// Uploads and repacks each matrix of a file as loading does, decodes it on the device, and compares it with the decoding of the file's own
/// bytes. Needs memory for one piece at a time. Tensors that do not run (see [`crate::model::measure`]) and vectors are left out.
///
/// # Errors
/// [`crate::Error::Guard`] where the context's guard forbids looking, what the device reports, or what `each` returns.
pub fn verify_weights(gpu: &Gpu, file: &Gguf, each: &mut dyn FnMut(TensorCheck) -> Result<()>) -> Result<()> {
    let scope = gpu.scope(Phase::Other);
    gpu.gate(&DECODED, &scope)?;
    for tensor in file.tensors() {
        let (Some(format), Some(&cols)) = (by_ggml_type(tensor.ggml_type), tensor.dims.first()) else { continue };
        let rows = tensor.elements() / cols.max(1);
        if tensor.dims.len() < 2 || rows == 0 {
            continue;
        }
        let Ok(k) = u32::try_from(cols) else { bail!(Unsupported, "tensor {}: rows of {cols}", tensor.name) };
        let mut check = TensorCheck {
            name: tensor.name.clone(),
            format: format.name,
            rows,
            cols,
            differing: 0,
            max_error: 0.0,
            largest: 0.0,
        };
        let piece = (CHUNK_ELEMENTS / cols).max(1);
        let row_bytes = format.row_bytes(cols as usize);
        let mut want = vec![0.0f32; cols as usize];
        let whole = file.data(tensor);
        for first in (0..rows).step_by(piece as usize) {
            let n = piece.min(rows - first);
            let data = &whole[first as usize * row_bytes..(first + n) as usize * row_bytes];
            let mut progress = |_| Ok(());
            let mut uploader = WeightUploader::new(gpu, &scope, &mut progress);
            let source = RowSource { format, rows: n as u32, data, bias: None };
            let weight = uploader.upload(&tensor.name, k, &[source])?;
            uploader.finish()?;
            let decoded = gpu.storage("verify", n * cols * 4, MemoryClass::Other, &scope)?;
            let mut recorder = gpu.recorder("verify", &scope);
            dequant(&weight, decoded.whole())?.into_iter().try_for_each(|d| recorder.record(d))?;
            recorder.submit()?;
            let got = gpu.download(decoded.whole(), DECODED, &scope)?;
            for (bytes, got) in data.chunks_exact(row_bytes).zip(got.chunks_exact(cols as usize * 4)) {
                (format.dequantize)(bytes, &mut want);
                let values = got.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                want.iter().zip(values).for_each(|(&want, got)| check.add(want, got));
            }
        }
        each(check)?;
    }
    Ok(())
}

impl TensorCheck {
    fn add(&mut self, want: f32, got: f32) {
        if want.is_finite() {
            self.largest = self.largest.max(f64::from(want.abs()));
        }
        if want == got || (want.is_nan() && got.is_nan()) {
            return;
        }
        self.differing += 1;
        let error = (f64::from(want) - f64::from(got)).abs();
        self.max_error = self.max_error.max(if error.is_nan() { f64::INFINITY } else { error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        let blank = || TensorCheck {
            name: String::new(),
            format: "",
            rows: 1,
            cols: 1,
            differing: 0,
            max_error: 0.0,
            largest: 0.0,
        };
        let of = |want: f32, got: f32| {
            let mut c = blank();
            c.add(want, got);
            (c.differing, c.max_error, c.largest)
        };
        assert_eq!(of(-2.0, -2.0), (0, 0.0, 2.0));
        assert_eq!(of(1.0, 1.5), (1, 0.5, 1.0));
        assert_eq!(of(f32::NAN, f32::NAN), (0, 0.0, 0.0));
        assert_eq!(of(f32::NAN, 1.0).1, f64::INFINITY);
        assert_eq!(of(1.0, f32::NAN).1, f64::INFINITY);
        assert_eq!(of(f32::INFINITY, f32::INFINITY), (0, 0.0, 0.0));
        assert_eq!(of(f32::INFINITY, -f32::INFINITY).1, f64::INFINITY);
    }
}
