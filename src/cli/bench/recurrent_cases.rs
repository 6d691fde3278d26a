//! The operations of recurrent layers that `doppler bench kernels` measures.

use doppler::gpu::Buffer;
use doppler::kernels::sample::Row;
use doppler::kernels::{self, Matrix, Memory, Places, ScanInputs, ScanShape, ShortConv};

use super::super::selfcheck::Rng;
use super::kernel_cases::{Case, case, rows_of};

fn memory<'a>(steps: u32, rows: &'a Buffer, places: &'a Buffer, states: &'a Buffer) -> Memory<'a> {
    Memory { sequences: 1, steps, rows: rows.into(), places: places.into(), states: states.into() }
}

/// A scan along one sequence: the gated delta rule, or Mamba-2. Three products with the state for each row, two of them sums.
fn scan(delta: bool, shape: ScanShape, steps: u32) -> Case {
    let ScanShape { n_head, n_key, key_dim, head_dim, .. } = shape;
    let (keys, inner) = (n_key * key_dim, n_head * head_dim);
    let (width, drives) = (2 * keys + inner, 2 * n_head);
    let state = u64::from(n_head) * u64::from(key_dim) * u64::from(head_dim);
    let rows = u64::from(steps) * u64::from(width + inner + drives);
    let name = if delta { "scan delta" } else { "scan mamba2" };
    let name = format!("{name} {n_head}x{key_dim}x{head_dim}, {}", rows_of(steps));
    case(name, (2 * state + rows) * 4, 6 * state * u64::from(steps), move |bench| {
        // Short keys: long ones would make the delta rule diverge.
        let small: Vec<f32> =
            Rng::new(7).units((steps * width) as usize).iter().map(|v| v / (key_dim as f32).sqrt()).collect();
        let x = bench.words(bytemuck::cast_slice(&small))?;
        let g = bench.floats((steps * drives).into())?;
        let heads: Vec<f32> = (0..4 * n_head).map(|i| if i % 4 == 0 { -0.5 } else { 0.25 }).collect();
        let heads = bench.words(bytemuck::cast_slice(&heads))?;
        let rows = bench.words(bytemuck::cast_slice(&vec![Row { slot: 0, pos: 0 }; steps as usize]))?;
        let places = bench.words(bytemuck::cast_slice(&[Places { before: 0, after: 1 }]))?;
        let (states, y) = (bench.floats(2 * state)?, bench.blank(u64::from(steps) * u64::from(inner))?);
        Ok(Box::new(move |r, _| {
            let (x, g) = (Matrix::new(&x, steps, width), Matrix::new(&g, steps, drives));
            let inputs = ScanInputs {
                q: x.columns(0, keys),
                k: x.columns(keys, keys),
                v: x.columns(2 * keys, inner),
                step: g.columns(0, n_head),
                beta: delta.then(|| g.columns(n_head, n_head)),
                heads: (&heads).into(),
            };
            let memory = memory(steps, &rows, &places, &states);
            r.record(kernels::state_scan(shape, inputs, memory, Matrix::new(&y, steps, inner))?)
        }))
    })
}

fn short_conv(channels: u32, kernel: u32, steps: u32) -> Case {
    let n = u64::from(steps) * u64::from(channels);
    let (weights, past) = (u64::from(channels * kernel), u64::from(channels * (kernel - 1)));
    let name = format!("short conv {channels}x{kernel}, {}", rows_of(steps));
    case(name, (2 * n + weights + 2 * past) * 4, 2 * n * u64::from(kernel), move |bench| {
        let (x, w, y) = (bench.floats(n)?, bench.floats(weights)?, bench.blank(n)?);
        let rows = bench.words(bytemuck::cast_slice(&vec![Row { slot: 0, pos: 0 }; steps as usize]))?;
        let places = bench.words(bytemuck::cast_slice(&[Places { before: 0, after: 1 }]))?;
        let states = bench.floats(2 * past)?;
        Ok(Box::new(move |r, _| {
            let conv = ShortConv { kernel, w: (&w).into(), bias: None, silu: true };
            let (x, y) = (Matrix::new(&x, steps, channels), Matrix::new(&y, steps, channels));
            r.record(kernels::short_conv(conv, x, None, memory(steps, &rows, &places, &states), y)?)
        }))
    })
}

/// Shapes of Qwen3-Next and Granite 4, or small ones.
pub(super) fn cases(quick: bool) -> Vec<Case> {
    let shape = |n_head, n_key, key_dim, head_dim| ScanShape { n_head, n_key, key_dim, head_dim, tiled: false };
    let (delta, mamba, channels, rows) = match quick {
        true => (shape(2, 1, 32, 32), shape(2, 1, 16, 32), 256, 8),
        false => (shape(32, 16, 128, 128), shape(48, 1, 128, 64), 8192, 512),
    };
    let of = |steps| [scan(true, delta, steps), scan(false, mamba, steps), short_conv(channels, 4, steps)];
    [1, rows].into_iter().flat_map(of).collect()
}
