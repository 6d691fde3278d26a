//! How wide a device is: how many workgroups it runs at once. Products and attention divide their work by it ([`Gpu::filling`]).

use std::time::{Duration, Instant};

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, FULL_WIDTH, Forms, Gpu, Kernel, MemoryClass, Phase, linear_grid, params};
use crate::kernels::constants::THREADS_LONG;

pub(super) static DEVICE_WIDTH: Kernel = Kernel {
    name: "device_width",
    source: include_str!("../../shaders/device_width.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: WidthParams::FIELDS,
};

params!(WidthParams { rounds: u32 });

/// Rounds of a measurement: a workgroup takes about half a millisecond where an operation takes two nanoseconds.
const ROUNDS: u32 = 1 << 15;
/// Each number of workgroups is timed so often, and the shortest counts: the first time a device may have to come to its clock.
const TIMES: u32 = 4;

/// `groups` workgroups of 256 threads, each of which makes 8 · `rounds` operations one after the other and leaves the result in `y`: of thread `i`
/// of a workgroup `2 + (i − 2) · 2^(−8 · rounds)`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if `y` is too small.
pub fn width_work(groups: u32, rounds: u32, y: BufferSlice<'_>) -> Result<Dispatch<'_>> {
    if y.size < u64::from(groups) * u64::from(THREADS_LONG) * 4 {
        bail!(InvalidArgument, "device_width: {groups} workgroups in {} bytes", y.size);
    }
    Ok(Dispatch::new(&DEVICE_WIDTH, &WidthParams { rounds }, linear_grid(groups.into()))
        .constant("WG", THREADS_LONG)
        .bind("y", y))
}

/// The width, from how long 1, 2, 4 … workgroups took: the most that took no more than half as long again as one.
pub fn width_of(times: &[Duration]) -> u32 {
    let Some(one) = times.first() else { return 1 };
    let n = times.iter().take_while(|t| **t <= *one * 3 / 2).count();
    1 << n.saturating_sub(1)
}

/// Measures the width of a device: some ten milliseconds of a large one.
///
/// # Errors
/// What compiling and running a small kernel report.
pub fn measure_width(gpu: &Gpu) -> Result<u32> {
    let scope = gpu.scope(Phase::Load);
    let y = gpu.storage("width", u64::from(FULL_WIDTH * THREADS_LONG) * 4, MemoryClass::Other, &scope)?;
    let sizes = FULL_WIDTH.ilog2() + 1;
    let mut times = vec![Duration::MAX; sizes as usize];
    for _ in 0..TIMES {
        for (i, time) in times.iter_mut().enumerate() {
            let started = Instant::now();
            let submission = width_work(1 << i, ROUNDS, y.whole())?.run(gpu, &scope)?;
            gpu.wait(&submission)?;
            *time = started.elapsed().min(*time);
            // Twice as many take twice as long from there on.
            if i > 0 && *time > Duration::from_millis(20) {
                break;
            }
        }
    }
    Ok(width_of(&times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_is_where_more_take_longer() {
        let ms = |t: &[u64]| t.iter().map(|&t| Duration::from_millis(t)).collect::<Vec<_>>();
        assert_eq!(width_of(&[]), 1);
        assert_eq!(width_of(&ms(&[10])), 1);
        assert_eq!(width_of(&ms(&[10, 10, 11, 12, 24, 48])), 8);
        assert_eq!(width_of(&ms(&[10, 20, 40])), 1);
        assert_eq!(width_of(&ms(&[10, 15, 16, 10])), 2, "what comes behind does not count");
        assert_eq!(width_of(&ms(&[10; 9])), 256);
    }
}
