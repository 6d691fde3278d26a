//! The driver's compiled pipelines on disk: one file for each adapter and driver.
//!
//! The file is `doppler-<16 hex digits>.pipelines`; the digits are a hash of everything that makes a blob useless elsewhere (backend, vendor, device,
//! driver, this library's version). Layout, little-endian: magic `DPLPIPES`, u32 format version, u32 zero, u64 key, u64 length, u64 checksum, then the driver's
//! bytes. Anything unexpected is ignored with a warning: the pipelines are then compiled as if there were no file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::checksum::checksum;
use crate::error::{Error, Result};
use crate::gpu::adapter::AdapterInfo;
use crate::gpu::pipeline::PipelineCache;
use crate::gpu::sync::Mutex;

const MAGIC: &[u8; 8] = b"DPLPIPES";
const VERSION: u32 = 2;
const HEADER: usize = 40;

/// The file of one adapter.
#[derive(Debug)]
pub(crate) struct PipelineBlob {
    path: PathBuf,
    key: u64,
    /// What the file held when it was opened; empty if it was absent or refused.
    loaded: Vec<u8>,
    rejected: bool,
    /// Pipelines compiled when the file was last written.
    saved: AtomicU64,
    writing: Mutex<()>,
}

impl PipelineBlob {
    /// Reads the adapter's file in `dir`, if it is there and sound.
    pub(crate) fn open(dir: &Path, adapter: &AdapterInfo) -> Self {
        let key = cache_key(adapter);
        let path = dir.join(format!("doppler-{key:016x}.pipelines"));
        let (loaded, rejected) = match std::fs::read(&path) {
            Ok(file) => match unpack(&file, key) {
                Ok(data) => (data.to_vec(), false),
                Err(why) => {
                    log::warn!("{}: {why}; ignored, pipelines are compiled anew", path.display());
                    (Vec::new(), true)
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (Vec::new(), false),
            Err(e) => {
                log::warn!("{}: {e}; pipelines are compiled anew", path.display());
                (Vec::new(), true)
            }
        };
        Self { path, key, loaded, rejected, saved: AtomicU64::new(0), writing: Mutex::new(()) }
    }

    /// The driver's bytes, if there are any.
    pub(crate) fn data(&self) -> Option<&[u8]> {
        (!self.loaded.is_empty()).then_some(&self.loaded)
    }

    /// A file was there but could not be used.
    pub(crate) fn rejected(&self) -> bool {
        self.rejected
    }

    /// Writes the cache's blob if pipelines were compiled since the last time. The file is replaced in one step, so that a process that reads it
    /// meanwhile finds the old or the new one.
    pub(crate) fn save(&self, cache: &PipelineCache) -> Result<()> {
        let _one_at_a_time = self.writing.lock();
        let compiled = cache.stats().misses;
        if compiled == self.saved.load(Relaxed) {
            return Ok(());
        }
        let Some(data) = cache.driver_blob() else { return Ok(()) };
        self.saved.store(compiled, Relaxed);
        if data == self.loaded {
            return Ok(());
        }
        replace_file(&self.path, &pack(&data, self.key))
    }
}

/// What tells an adapter with its driver, and this version, from others.
pub(crate) fn cache_key(a: &AdapterInfo) -> u64 {
    let version = env!("CARGO_PKG_VERSION");
    let text = format!("{}|{:x}|{:x}|{}|{}|{version}", a.backend, a.vendor, a.device, a.name, a.driver);
    checksum(text.as_bytes())
}

/// Writes a file in one step; its folder is made if it does not exist.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e: std::io::Error| Error::Io(format!("{}: {e}", path.display()));
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    // Of this process and this call alone.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let temporary = path.with_extension(format!("{}-{}.new", std::process::id(), CALLS.fetch_add(1, Relaxed)));
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of a failed attempt; if even this fails there is nothing more to do.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

fn pack(data: &[u8], key: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + data.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    for word in [key, data.len() as u64, checksum(data)] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(data);
    out
}

fn unpack(file: &[u8], key: u64) -> std::result::Result<&[u8], &'static str> {
    let Some((header, data)) = file.split_at_checked(HEADER) else { return Err("shorter than its header") };
    let word = |at: usize| header.get(at..at + 8).map_or(0, bytemuck::pod_read_unaligned::<u64>).to_le();
    if &header[..8] != MAGIC {
        return Err("not a file of compiled pipelines");
    }
    if word(8) != u64::from(VERSION) {
        return Err("written by another version");
    }
    if word(16) != key {
        return Err("made for another adapter or driver");
    }
    if word(24) != data.len() as u64 {
        return Err("cut short or grown");
    }
    if word(32) != checksum(data) {
        return Err("damaged (its checksum differs)");
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_files_come_back_and_others_say_why() {
        let file = pack(b"pipelines", 7);
        assert_eq!(unpack(&file, 7), Ok(&b"pipelines"[..]));
        assert!(unpack(&file, 8).unwrap_err().contains("another adapter"));
        assert!(unpack(&file[..20], 7).unwrap_err().contains("shorter"));
        assert!(unpack(&file[..file.len() - 1], 7).unwrap_err().contains("cut short"));
        let damaged = |at: usize| {
            let mut f = file.clone();
            f[at] ^= 1;
            unpack(&f, 7).unwrap_err()
        };
        assert!(damaged(0).contains("not a file"));
        assert!(damaged(8).contains("another version"));
        assert!(damaged(HEADER).contains("checksum"));
    }
}
