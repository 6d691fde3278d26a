//! `doppler adapters`: the adapters of this machine.

use std::io::Write;

use doppler::gpu::{AdapterInfo, list_adapters};
use serde_json::{Value, json};

use super::input;
use super::outcome::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything known of an adapter.
pub(super) fn as_json(a: &AdapterInfo) -> Value {
    json!({
        "name": a.name, "driver": a.driver, "backend": a.backend, "kind": a.kind, "vendor": a.vendor,
        "device": a.device, "subgroup_min": a.subgroup_min, "subgroup_max": a.subgroup_max,
        "max_binding_bytes": a.max_binding_bytes, "max_buffer_bytes": a.max_buffer_bytes, "subgroups": a.subgroups,
        "f16": a.f16, "immediates": a.immediates, "timestamps": a.timestamps, "pipeline_cache": a.pipeline_cache,
        "cooperative_matrix": a.cooperative_matrix, "chains": a.chains,
    })
}

pub(super) fn run(args: &Args) -> Outcome {
    let list = list_adapters();
    if args.json {
        input::print_json(&list.iter().map(as_json).collect())?;
    } else {
        let mut out = std::io::stdout().lock();
        for (i, a) in list.iter().enumerate() {
            writeln!(out, "{i}: {} ({}, {})", a.name, a.kind, a.backend)?;
            writeln!(out, "   driver {}; subgroups of {} to {}", a.driver, a.subgroup_min, a.subgroup_max)?;
            let abilities = [
                (a.subgroups, "subgroups"),
                (a.f16, "f16"),
                (a.immediates, "immediates"),
                (a.timestamps, "timestamps"),
                (a.pipeline_cache, "pipeline-cache"),
                (a.cooperative_matrix, "cooperative-matrix"),
                (a.chains, "chains"),
            ];
            let has: Vec<_> = abilities.iter().filter(|x| x.0).map(|x| x.1).collect();
            let mib = |bytes: u64| bytes >> 20;
            writeln!(
                out,
                "   {}; bindings up to {} MiB, buffers up to {} MiB",
                has.join(" "),
                mib(a.max_binding_bytes),
                mib(a.max_buffer_bytes)
            )?;
        }
    }
    if list.is_empty() {
        return Err(Failure::Message(
            "no adapter found; is a Vulkan, Metal or D3D12 driver installed? (Debian and Ubuntu: mesa-vulkan-drivers)"
                .into(),
        ));
    }
    Ok(())
}
