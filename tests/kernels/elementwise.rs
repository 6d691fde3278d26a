//! Activations, sums and casts.

use doppler::gpu::Gpu;
use doppler::kernels::{Activation, Cast, Matrix, activate, add_bias, cast, gelu, glu, residual, silu, softcap};

use crate::common::*;

fn silu64(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu64(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// Arguments that matter: both tails, zeros, small and huge ones, then random ones.
fn arguments(rng: &mut Rng, n: usize) -> Vec<f32> {
    let special = [0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 20.0, -20.0, 88.0, -88.0, 200.0, -200.0, 1e4, -1e4];
    (0..n).map(|i| if i < special.len() { special[i] } else { rng.unit() * 8.0 }).collect()
}

/// Both functions lose bits where 1 + tanh or exp cancels: an absolute error of some ulps of the argument.
fn activation_want(x: f32, y: f64) -> Want {
    Want { value: y, magnitude: y.abs() + 0.05 * f64::from(x.abs()) }
}

#[test]
fn activations() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for (rows, cols) in [(1u32, 1u32), (1, 63), (3, 65), (7, 130)] {
            let mut rng = Rng(u64::from(cols));
            let n = (rows * cols) as usize;
            let x = arguments(&mut rng, n);
            let xb = upload(gpu, &x);
            for (name, which) in [("silu", Activation::Silu), ("gelu", Activation::GeluTanh)] {
                let f = if which == Activation::Silu { silu64 } else { gelu64 };
                let y = untouched(gpu, n + 4);
                let (mx, my) = (Matrix::new(&xb, rows, cols), Matrix::new(&y, rows, cols));
                let d = if which == Activation::Silu { silu(mx, my) } else { gelu(mx, my) };
                run(gpu, d);
                let got = download(gpu, &y, n + 1);
                let want: Vec<_> = x.iter().map(|&x| activation_want(x, f(x.into()))).collect();
                close(&format!("{name} {rows} x {cols} ({})", v.name), &got[..n], &want, 1e-30, 1e-5);
                assert_eq!(got[n], UNTOUCHED, "{name}: wrote past the end");
            }
        }
    }
}

#[test]
fn gated_activations_read_columns_of_one_matrix() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for (rows, cols, gap) in [(1u32, 4u32, 0u32), (5, 33, 3), (2, 200, 8)] {
            let mut rng = Rng(7);
            let (x_stride, y_stride) = (2 * cols + 2 * gap, cols + gap);
            let x: Vec<f32> = rng.floats((rows * x_stride) as usize).iter().map(|v| v * 6.0).collect();
            let xb = upload(gpu, &x);
            let whole = Matrix::new(&xb, rows, x_stride);
            // Gate after up: the order of the columns is free.
            for (gate_at, up_at) in [(0, cols + gap), (cols + gap, 0)] {
                for which in [Activation::Silu, Activation::GeluTanh] {
                    let y = untouched(gpu, (rows * y_stride) as usize);
                    let my = Matrix { stride: y_stride, ..Matrix::new(&y, rows, cols) };
                    run(gpu, glu(which, whole.columns(gate_at, cols), whole.columns(up_at, cols), my));
                    let got = download(gpu, &y, (rows * y_stride) as usize);
                    let want: Vec<Want> = (0..rows * y_stride)
                        .map(|i| {
                            let (r, c) = (i / y_stride, i % y_stride);
                            if c >= cols {
                                return f64::from(UNTOUCHED).into();
                            }
                            let g = x[(r * x_stride + gate_at + c) as usize];
                            let u = f64::from(x[(r * x_stride + up_at + c) as usize]);
                            let f = if which == Activation::Silu { silu64 } else { gelu64 };
                            let w = activation_want(g, f(g.into()));
                            Want { value: w.value * u, magnitude: w.magnitude * u.abs() }
                        })
                        .collect();
                    close(&format!("glu {which:?} {rows} x {cols} ({})", v.name), &got, &want, 1e-30, 1e-5);
                }
            }
        }
    }
}

/// Both factors beyond the limit, at it and within.
#[test]
fn clamped_swiglu() {
    let (alpha, limit) = (1.702f32, 7.0f32);
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        let (rows, cols) = (3u32, 67u32);
        let mut rng = Rng(21);
        let mut x: Vec<f32> = rng.floats((rows * cols * 2) as usize).iter().map(|v| v * 14.0).collect();
        x[..8].copy_from_slice(&[7.0, -7.0, 7.5, -7.5, 1e4, -1e4, 0.0, -0.0]);
        let (xb, y) = (upload(gpu, &x), untouched(gpu, (rows * cols + 1) as usize));
        let m = Matrix::new(&xb, rows, 2 * cols);
        let which = Activation::ClampedSwiglu { alpha, limit };
        // The first column holds up: the special values are tried as both.
        for (gate, up) in [(0, cols), (cols, 0)] {
            run(gpu, glu(which, m.columns(gate, cols), m.columns(up, cols), Matrix::new(&y, rows, cols)));
            let mut want: Vec<Want> = (0..rows * cols)
                .map(|i| {
                    let at = |from| f64::from(x[(i / cols * 2 * cols + from + i % cols) as usize]);
                    let (g, u) = (at(gate).min(limit.into()), at(up).clamp((-limit).into(), limit.into()));
                    let value = g / (1.0 + (-f64::from(alpha) * g).exp()) * (u + 1.0);
                    // The exponent's rounding counts as often as it is large.
                    Want { value, magnitude: value.abs() * (1.0 + g.abs()) + 1e-30 * g.abs() }
                })
                .collect();
            want.push(f64::from(UNTOUCHED).into());
            close(&format!("gate at {gate} ({})", v.name), &download(gpu, &y, want.len()), &want, 1e-30, 3e-6);
        }
    }
    let Some(v) = full() else { return };
    let (a, b) = (untouched(&v.gpu, 64), untouched(&v.gpu, 64));
    let m = |b| Matrix::new(b, 2, 8);
    let e = activate(Activation::ClampedSwiglu { alpha, limit }, m(&a), m(&b)).unwrap_err().to_string();
    assert!(e.contains("gate"), "{e}");
    assert!(activate(Activation::GeluTanh, m(&a), m(&b)).is_ok());
}

#[test]
fn soft_caps() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for (n, cap) in [(1u32, 30.0f32), (63, 8.0), (65, 0.5), (1001, 50.0)] {
            let mut rng = Rng(u64::from(n));
            let mut x: Vec<f32> = rng.floats(n as usize + 1).iter().map(|v| v * 3.0 * cap).collect();
            x[0] = -1e6;
            let xb = upload(gpu, &x);
            run(gpu, softcap(n, cap, (&xb).into()));
            let cap = f64::from(cap);
            let mut want: Vec<Want> = x.iter().map(|&x| (cap * (f64::from(x) / cap).tanh()).into()).collect();
            // What lies beyond the last element stays.
            want[n as usize] = f64::from(x[n as usize]).into();
            // A device's tanh may be made of exponentials, whose rounding is one of the cap, not of the result.
            let got = download(gpu, &xb, n as usize + 1);
            close(&format!("softcap of {n} ({})", v.name), &got, &want, cap * 5e-7, 2e-6);
        }
    }
    let Some(v) = full() else { return };
    let n = 65_535u32 * 64 + 777;
    let x = Rng(4).floats(n as usize);
    let xb = upload(&v.gpu, &x);
    run(&v.gpu, softcap(n, 0.5, (&xb).into()));
    let want: Vec<Want> = x.iter().map(|&x| (0.5 * (f64::from(x) / 0.5).tanh()).into()).collect();
    close("softcap of many", &download(&v.gpu, &xb, n as usize), &want, 3e-7, 2e-6);
    for (n, cap) in [(n + 9, 1.0), (8, 0.0), (8, -1.0), (8, f32::NAN), (8, f32::INFINITY)] {
        assert!(softcap(n, cap, (&xb).into()).is_err(), "{n} {cap}");
    }
}

#[test]
fn activation_refuses_shapes_that_disagree() {
    let Some(v) = full() else { return };
    let (a, b) = (untouched(&v.gpu, 64), untouched(&v.gpu, 64));
    assert!(silu(Matrix::new(&a, 2, 8), Matrix::new(&b, 2, 9)).is_err());
    assert!(silu(Matrix::new(&a, 9, 8), Matrix::new(&b, 9, 8)).is_err(), "does not fit");
    let m = Matrix::new(&a, 4, 16);
    let other = Matrix::new(&b, 4, 16);
    let y = Matrix::new(&b, 4, 8);
    assert!(glu(Activation::Silu, m.columns(0, 8), other.columns(8, 8), y).is_err(), "two buffers");
    assert!(glu(Activation::Silu, m.columns(0, 8), m.columns(12, 8), y).is_err(), "past the last row's end");
}

#[test]
fn residual_and_bias() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        let mut rng = Rng(3);
        for (rows, cols) in [(1u32, 1u32), (1, 64), (3, 65), (5, 129)] {
            let n = rows * cols;
            let (a, b) = (rng.floats(n as usize), rng.floats(n as usize));
            let (ab, bb) = (upload(gpu, &a), upload(gpu, &b));
            for scale in [1.0f32, -0.25] {
                let y = untouched(gpu, n as usize + 1);
                run(gpu, residual(n, (&ab).into(), (&bb).into(), (&y).into(), scale));
                let got = download(gpu, &y, n as usize + 1);
                let want: Vec<Want> = (0..n as usize)
                    .map(|i| sum_of(&[f64::from(a[i]), f64::from(scale) * f64::from(b[i])]))
                    .chain([f64::from(UNTOUCHED).into()])
                    .collect();
                close(&format!("residual {n} ({})", v.name), &got, &want, 1e-30, 2e-7);
            }
            let y = untouched(gpu, n as usize);
            run(gpu, add_bias(rows, cols, (&ab).into(), bb.slice(0, u64::from(cols) * 4), (&y).into()));
            let want: Vec<Want> =
                (0..n as usize).map(|i| sum_of(&[a[i].into(), b[i % cols as usize].into()])).collect();
            close(
                &format!("add_bias {rows} x {cols} ({})", v.name),
                &download(gpu, &y, n as usize),
                &want,
                1e-30,
                2e-7,
            );
        }
    }
    let Some(v) = full() else { return };
    let a = untouched(&v.gpu, 16);
    assert!(residual(17, (&a).into(), (&a).into(), (&a).into(), 1.0).is_err());
    assert!(add_bias(4, 0, (&a).into(), (&a).into(), (&a).into()).is_ok(), "nothing to do");
}

fn sum_of(terms: &[f64]) -> Want {
    Want { value: terms.iter().sum(), magnitude: terms.iter().map(|t| t.abs()).sum() }
}

/// Packs 16-bit values two in a word.
fn pack(values: &[u16]) -> Vec<u32> {
    values.chunks(2).map(|p| u32::from(p[0]) | u32::from(*p.get(1).unwrap_or(&0)) << 16).collect()
}

#[test]
fn casts_of_every_length_parity() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for n in [1u32, 2, 3, 127, 128, 129, 1001] {
            let mut rng = Rng(u64::from(n));
            let x: Vec<f32> = rng.floats(n as usize).iter().map(|v| v * 300.0).collect();
            // To f16: within half an ulp, which for |x| >= 2^-14 is 2^-11 of the value.
            let xb = upload(gpu, &x);
            let words = n.div_ceil(2) as usize;
            let y = untouched(gpu, words + 1);
            run(gpu, cast(Cast::F32ToF16, n, (&xb).into(), (&y).into()));
            let got = download_words(gpu, &y, words + 1);
            assert_eq!(got[words], UNTOUCHED.to_bits(), "wrote past the end");
            let halves: Vec<f32> =
                (0..n as usize).map(|i| half::f16::from_bits((got[i / 2] >> (16 * (i % 2))) as u16).to_f32()).collect();
            let want: Vec<Want> = x.iter().map(|&x| f64::from(x).into()).collect();
            close(&format!("f32 to f16, {n} ({})", v.name), &halves, &want, 6e-8, 1.0 / 2048.0);
            if n % 2 == 1 {
                assert_eq!(got[words - 1] >> 16, 0, "the padding half of an odd length is zero");
            }
            // From f16 and bf16: exact, infinities included.
            let bits: Vec<u16> = (0..n)
                .map(|i| match i {
                    0 => 0x7c00,
                    1 => 0x8000,
                    _ => half::f16::from_f32(rng.unit() * 60000.0).to_bits(),
                })
                .collect();
            exact(gpu, Cast::F16ToF32, &bits, |b| half::f16::from_bits(b).to_f32());
            let bits: Vec<u16> = (0..n)
                .map(|i| match i {
                    0 => 0xff80,
                    1 => 0x8000,
                    _ => half::bf16::from_f32(rng.unit() * 1e30).to_bits(),
                })
                .collect();
            exact(gpu, Cast::Bf16ToF32, &bits, |b| half::bf16::from_bits(b).to_f32());
        }
    }
}

fn exact(gpu: &Gpu, which: Cast, bits: &[u16], f: impl Fn(u16) -> f32) {
    let n = bits.len();
    let x = upload_words(gpu, &pack(bits));
    let y = untouched(gpu, n + 1);
    run(gpu, cast(which, n as u32, (&x).into(), (&y).into()));
    let want: Vec<f32> = bits.iter().map(|&b| f(b)).chain([UNTOUCHED]).collect();
    same_bits(&format!("{which:?} of {n}"), &download(gpu, &y, n + 1), &want);
}

/// Every f16 bit pattern but NaN, and rounding in both directions at ties and beyond.
#[test]
fn every_f16_is_cast_exactly() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let bits: Vec<u16> = (0..=u16::MAX)
            .filter(|&b| {
                let h = half::f16::from_bits(b);
                // Devices may flush subnormal halves to zero.
                !h.is_nan() && (h.is_normal() || h.to_f32() == 0.0 || h.is_infinite())
            })
            .collect();
        exact(&v.gpu, Cast::F16ToF32, &bits, |b| half::f16::from_bits(b).to_f32());
        let values: Vec<f32> = bits.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect();
        let (x, y) = (upload(&v.gpu, &values), untouched(&v.gpu, bits.len().div_ceil(2)));
        run(&v.gpu, cast(Cast::F32ToF16, bits.len() as u32, (&x).into(), (&y).into()));
        assert_eq!(download_words(&v.gpu, &y, bits.len().div_ceil(2)), pack(&bits), "{}", v.name);
    }
}

/// Grids beyond 65,535 workgroups.
#[test]
fn large_grids() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let n = 65_535u32 * 64 + 12_345;
    let mut rng = Rng(11);
    let (a, b) = (rng.floats(n as usize), rng.floats(n as usize));
    let (ab, bb, y) = (upload(gpu, &a), upload(gpu, &b), untouched(gpu, n as usize + 1));
    run(gpu, residual(n, (&ab).into(), (&bb).into(), (&y).into(), 0.5));
    let want: Vec<Want> = (0..n as usize)
        .map(|i| sum_of(&[f64::from(a[i]), 0.5 * f64::from(b[i])]))
        .chain([f64::from(UNTOUCHED).into()])
        .collect();
    close("large residual", &download(gpu, &y, n as usize + 1), &want, 1e-30, 2e-7);
    run(gpu, silu(Matrix::new(&ab, 1, n), Matrix::new(&y, 1, n)));
    let want: Vec<Want> =
        a.iter().map(|&x| activation_want(x, silu64(x.into()))).chain([f64::from(UNTOUCHED).into()]).collect();
    close("large silu", &download(gpu, &y, n as usize + 1), &want, 1e-30, 1e-5);
    let n = 65_535u32 * 128 + 4_321;
    let bits: Vec<u16> = (0..n).map(|i| 0x3c00 + (i % 0x1003) as u16).collect();
    exact(gpu, Cast::Bf16ToF32, &bits, |b| half::bf16::from_bits(b).to_f32());
}
