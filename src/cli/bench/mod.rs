//! `doppler bench`: measuring, and comparing what was measured. `docs/performance.md` has the method.

mod batch;
pub(super) mod compare;
mod copy;
mod ending;
pub(super) mod inference;
mod kernel_cases;
pub(super) mod kernels;
pub(super) mod load;
mod plot;
mod recurrent_cases;
mod results;
mod stats;
pub(super) mod table;

use std::io::Write;
use std::path::Path;

use doppler::session::Context;
use serde_json::{Value, json};

use super::outcome::{Failure, Outcome};
use super::{adapters, input, report};

/// Version of the JSON that `--json` writes and that comparing reads.
const SCHEMA_VERSION: u32 = 2;

/// Text goes to stderr where stdout is for JSON.
fn say(json: Option<&Path>, text: &str) -> Outcome {
    match json {
        Some(file) if file.as_os_str() == "-" => writeln!(std::io::stderr(), "{text}")?,
        _ => writeln!(std::io::stdout(), "{text}")?,
    }
    Ok(())
}

/// Writes a text file, or to stdout for `-`.
fn write_text(file: &Path, text: &str) -> Outcome {
    if file.as_os_str() == "-" {
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    std::fs::write(file, text).map_err(|e| Failure::Message(format!("{}: {e}", file.display())))
}

fn write_json(file: &Path, value: &Value) -> Outcome {
    if file.as_os_str() == "-" {
        input::print_json(value)
    } else {
        write_text(file, &serde_json::to_string_pretty(value)?)
    }
}

/// Program, machine and device.
fn environment(context: &Context) -> Value {
    let gpu = context.gpu();
    let f = gpu.features();
    json!({
        "program": "doppler", "version": env!("CARGO_PKG_VERSION"), "debug_build": cfg!(debug_assertions),
        "os": std::env::consts::OS, "cpu": std::env::consts::ARCH, "adapter": adapters::as_json(gpu.adapter()),
        "width": gpu.width(), "gpu_time_source": report::gpu_time_source(gpu.timed()),
        "features": {
            "subgroups": f.subgroups, "f16": f.f16, "immediates": f.immediates, "timestamps": f.timestamps,
            "pipeline_cache": f.pipeline_cache, "cooperative_matrix": f.cooperative_matrix, "chains": f.chains,
        },
    })
}
