//! Host memory of loading, measured in a process of its own.

#![cfg(target_os = "linux")]

#[path = "common/llama_file.rs"]
mod llama_file;

use std::path::Path;

use doppler::gpu::{AdapterChoice, GpuOptions};
use doppler::session::{Context, ModelOptions};

use llama_file::one_layer;

/// Anonymous and shared memory of this process; mapped files do not count.
fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("number") * 1024
    };
    field("RssAnon:") + field("RssShmem:")
}

/// A llama file with an embedding table of `vocab` rows, written without holding it in memory.
fn big_file(path: &Path, n_embd: u64, n_ff: u64, vocab: u64) {
    use std::io::Write as _;
    let tokens: Vec<String> = ["a", "b", "ab", "c"].map(str::to_string).to_vec();
    // The table comes last and is written as a hole: zeros that take no room on most file systems.
    let w = one_layer(n_embd, n_ff, tokens, "a b", |n| vec![0; (n * 2) as usize]);
    // A table of one row stands for the big one in the writer; its shape is set in the bytes.
    let one = w.tensor("token_embd.weight", &[n_embd, 1], 1, vec![0; (n_embd * 2) as usize]).to_bytes();
    let name = b"token_embd.weight";
    let at = one.windows(name.len()).position(|b| b == name).expect("tensor entry") + name.len() + 4 + 8;
    let mut bytes = one;
    bytes[at..at + 8].copy_from_slice(&vocab.to_le_bytes());
    let mut file = std::fs::File::create(path).expect("create");
    file.write_all(&bytes).expect("write");
    file.set_len(bytes.len() as u64 + (vocab - 1) * n_embd * 2).expect("set_len");
}

#[test]
fn loading_a_large_file_takes_little_host_memory() {
    let adapter = AdapterChoice { allow_software: true, ..Default::default() };
    let context = match Context::open(&GpuOptions { adapter, ..Default::default() }) {
        Ok(c) => c,
        Err(e) if std::env::var("DOPPLER_NO_GPU").is_ok_and(|v| v == "1") => {
            println!("skipped: {e}");
            return;
        }
        Err(e) => panic!("{e}; install a driver (Debian: mesa-vulkan-drivers) or set DOPPLER_NO_GPU=1"),
    };
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-big.gguf", std::process::id()));
    // 400 MiB of table: several parts on adapters that bind 128 MiB.
    big_file(&path, 1024, 2048, 200 * 1024);
    let device = || context.gpu().memory().snapshot().total;
    let (memory_before, device_before) = (own_memory(), device());
    let mut peak = 0i64;
    let model = context.load_model(&path, &ModelOptions { n_ctx: 64, ..Default::default() }, &mut |_, _| {
        let host = own_memory() as i64 - memory_before as i64;
        // A software adapter's device memory is memory of this process.
        let on_device = if context.gpu().adapter().is_software() { (device() - device_before) as i64 } else { 0 };
        peak = peak.max(host - on_device);
        Ok(())
    });
    std::fs::remove_file(&path).expect("remove");
    let model = model.expect("load");
    println!("{} bytes of weights, host memory beyond device and file: {} MiB", model.info().file_bytes, peak >> 20);
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
}
