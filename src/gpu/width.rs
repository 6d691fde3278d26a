//! How many workgroups a device runs at once: what kernels divide their work by. Measured once for each adapter and driver
//! (`src/kernels/width.rs`) and kept beside the compiled pipelines, since results depend on it in their last bits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::error::Result;
use crate::gpu::adapter::AdapterInfo;
use crate::gpu::device::Gpu;
use crate::gpu::pipeline_blob::{cache_key, replace_file};

/// The width of a large device, in workgroups of 256 threads, and the most that is told apart: `src/kernels/constants.rs` says what fills such a one.
pub const FULL_WIDTH: u32 = 256;

#[derive(Debug)]
pub(crate) struct Width {
    workgroups: AtomicU32,
    /// Where a measured one is to be kept, if it is not there.
    missing: Option<PathBuf>,
}

/// Powers of two up to [`FULL_WIDTH`].
fn valid(width: u32) -> bool {
    width.is_power_of_two() && width <= FULL_WIDTH
}

fn read(file: &Path) -> Option<u32> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => {
            log::warn!("{}: {e}; the device's width is measured anew", file.display());
            return None;
        }
    };
    let width = text.trim().parse().ok().filter(|&w| valid(w));
    if width.is_none() {
        log::warn!("{}: not a width; it is measured anew", file.display());
    }
    width
}

impl Width {
    /// `wanted` if it is not 0; else what `cache_dir` holds; else a guess by the kind of device. What computes on a CPU is never measured: it is narrow, and
    /// other programs' work would be measured along.
    pub(crate) fn new(adapter: &AdapterInfo, wanted: u32, cache_dir: Option<&Path>) -> Self {
        let file = cache_dir.map(|dir| dir.join(format!("doppler-{:016x}.width", cache_key(adapter))));
        let (known, missing) = match (wanted, file) {
            (0, Some(file)) if !adapter.is_software() => {
                let known = read(&file);
                (known, known.is_none().then_some(file))
            }
            (0, _) => (None, None),
            (wanted, _) => (Some(wanted.min(FULL_WIDTH).next_power_of_two()), None),
        };
        let guess = match adapter.kind {
            "software" => 2,
            "integrated" => 32,
            _ => FULL_WIDTH,
        };
        Self { workgroups: AtomicU32::new(known.unwrap_or(guess)), missing }
    }

    /// Keeps a measured width, and takes what is kept then: another process may have been first. What cannot be kept is not taken, since it might be
    /// another one the next time.
    fn keep(&self, measured: u32) -> Result<()> {
        let Some(file) = &self.missing else { return Ok(()) };
        if read(file).is_none() {
            replace_file(file, format!("{}\n", measured.clamp(1, FULL_WIDTH).next_power_of_two()).as_bytes())?;
        }
        if let Some(width) = read(file) {
            self.workgroups.store(width, Relaxed);
        }
        Ok(())
    }
}

impl Gpu {
    /// Workgroups of 256 threads that the device runs at once as fast as one alone: a power of two up to [`FULL_WIDTH`], measured or guessed.
    pub fn width(&self) -> u32 {
        self.width.workgroups.load(Relaxed)
    }

    /// What fills this device where `full` fills one of [`FULL_WIDTH`]; 1 at least.
    pub(crate) fn filling(&self, full: u32) -> u32 {
        (full / (FULL_WIDTH / self.width())).max(1)
    }

    /// True if there is a place to keep a measured width, and none was found there.
    pub(crate) fn lacks_width(&self) -> bool {
        self.width.missing.is_some()
    }

    /// Takes a measured width from now on, and keeps it for later processes. Comes before the first model.
    ///
    /// # Errors
    /// [`crate::Error::Io`] naming the file; the width is then the guess.
    pub(crate) fn keep_width(&self, measured: u32) -> Result<()> {
        self.width.keep(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(kind: &'static str) -> AdapterInfo {
        crate::gpu::adapter::tests::info("Some device", kind)
    }

    #[test]
    fn a_width_is_asked_for_found_or_guessed() {
        let dir = std::env::temp_dir().join(format!("doppler-width-{}", std::process::id()));
        let of = |kind: &'static str, wanted: u32, dir: Option<&Path>| {
            let w = Width::new(&adapter(kind), wanted, dir);
            (w.workgroups.load(Relaxed), w.missing.is_some())
        };
        assert_eq!(of("discrete", 0, None), (FULL_WIDTH, false));
        assert_eq!(of("integrated", 0, None), (32, false));
        assert_eq!(of("software", 0, Some(&dir)), (2, false), "never measured");
        assert_eq!(of("discrete", 40, Some(&dir)), (64, false), "asked for");
        assert_eq!(of("discrete", u32::MAX, None), (FULL_WIDTH, false));
        assert_eq!(of("integrated", 0, Some(&dir)), (32, true), "nothing there");
        let file = Width::new(&adapter("integrated"), 0, Some(&dir)).missing.unwrap();
        replace_file(&file, b"16\n").unwrap();
        assert_eq!(of("integrated", 0, Some(&dir)), (16, false));
        for wrong in ["", "wide", "0", "48", "512", "-8"] {
            replace_file(&file, wrong.as_bytes()).unwrap();
            assert_eq!(of("integrated", 0, Some(&dir)), (32, true), "{wrong:?}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_measured_width_is_kept_or_not_taken() {
        let dir = std::env::temp_dir().join(format!("doppler-widths-{}", std::process::id()));
        let open = |dir: &Path| Width::new(&adapter("integrated"), 0, Some(dir));
        let of = |w: &Width| w.workgroups.load(Relaxed);
        let [first, second] = [open(&dir), open(&dir)];
        first.keep(100).unwrap();
        assert_eq!((of(&first), of(&second)), (128, 32));
        // Who measured at the same time takes what is there.
        second.keep(8).unwrap();
        assert_eq!((of(&second), of(&open(&dir))), (128, 128));
        // A place that is none: the guess stays.
        let nowhere = dir.join("a file");
        std::fs::write(&nowhere, "x").unwrap();
        let third = open(&nowhere.join("below"));
        assert!(third.keep(8).unwrap_err().to_string().contains("below"));
        assert_eq!(of(&third), 32);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
