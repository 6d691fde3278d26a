//! `doppler probe`: statistics of a model's intermediate tensors.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, PROBE_POINTS, ProbeOptions, ProbeReading, SessionOptions};
use serde_json::json;

use super::input;
use super::open::{self, DeviceArgs, EngineArgs};
use super::outcome::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file
    model: PathBuf,
    /// Text to evaluate
    prompt: String,
    /// Points to look at; without: all (`list` names them)
    #[arg(long, value_name = "POINT,…", value_delimiter = ',')]
    points: Vec<String>,
    /// First and last layer to look at, such as 0-3
    #[arg(long, value_name = "A-B", value_parser = layers)]
    layers: Option<(u32, u32)>,
    /// First values of each tensor to show
    #[arg(long, value_name = "N", default_value_t = 4)]
    values: u32,
    /// Tokens to generate after the prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    tokens: u32,
    /// Magnitude beyond which a value is bad; 65500 finds what half precision cannot hold
    #[arg(long, value_name = "X", default_value_t = f32::MAX)]
    limit: f32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

fn layers(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |t: &str| t.trim().parse().map_err(|e| format!("\"{t}\": {e}"));
    Ok((number(first)?, number(last)?))
}

fn print(r: &ProbeReading) -> Outcome {
    let mut out = std::io::stdout().lock();
    let layer = r.layer.map_or("-".to_string(), |l| l.to_string());
    write!(out, "{:<14}{layer:>6}{:>8}{:>7} x {:<7}", r.point.name, r.position, r.rows, r.cols)?;
    match &r.stats {
        Some(s) => {
            write!(out, "{:>12.4e}{:>12.4e}{:>12.4e}{:>12.4e}", s.min, s.max, s.mean(), s.rms())?;
            write!(out, "{:>6}{:>6}{:>6}", s.nan, s.inf, s.over)?;
            let values: Vec<_> = r.values().iter().map(|v| format!("{v:.5}")).collect();
            writeln!(out, "  {}", values.join(" "))?;
        }
        None => writeln!(out, "{:>66}  {:?}", "", r.words)?,
    }
    Ok(())
}

fn as_json(r: &ProbeReading) -> serde_json::Value {
    let stats = r.stats.map(|s| {
        json!({
            "count": s.count, "nan": s.nan, "inf": s.inf, "over": s.over, "first_bad": (!s.sound()).then_some(s.first_bad),
            "min": s.min, "max": s.max, "mean": s.mean(), "rms": s.rms(),
        })
    });
    let values = match r.stats {
        Some(_) => json!(r.values()),
        None => json!(r.words),
    };
    json!({
        "point": r.point.name, "place": r.point.place.name(), "layer": r.layer, "position": r.position, "rows": r.rows,
        "cols": r.cols, "stats": stats, "values": values,
    })
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    if args.points == ["list"] {
        for p in PROBE_POINTS {
            writeln!(std::io::stdout(), "{}{}", p.name, if p.per_layer { " (each layer)" } else { "" })?;
        }
        return Ok(());
    }
    let context = device.open()?;
    let model = open::model(&context, &args.model, &args.engine.model_options())?;
    let mut session = model.open_session(&SessionOptions::default())?;
    session.set_probe(Some(ProbeOptions {
        points: args.points.clone(),
        layers: args.layers,
        values: args.values,
        limit: args.limit,
        require_finite: false,
    }))?;
    session.append_text(&args.prompt, false)?;
    if session.tokens().is_empty() {
        return Err(Failure::Usage("the prompt is empty".into()));
    }
    let options = GenerateOptions {
        max_tokens: args.tokens.max(1),
        sampling: SamplingOptions::greedy(),
        ignore_eos: true,
        ..Default::default()
    };
    session.generate(&options, &mut |_| ControlFlow::Continue(()))?;
    let readings = session.take_readings();
    if args.json {
        input::print_json(&json!({ "readings": readings.iter().map(as_json).collect::<Vec<_>>() }))?;
    } else {
        writeln!(
            std::io::stdout(),
            "{:<14}{:>6}{:>8}{:>17}{:>12}{:>12}{:>12}{:>12}{:>6}{:>6}{:>6}  first values",
            "point",
            "layer",
            "pos",
            "rows x columns",
            "min",
            "max",
            "mean",
            "rms",
            "nan",
            "inf",
            "over"
        )?;
        readings.iter().try_for_each(print)?;
    }
    let bad = readings.iter().find(|r| r.stats.is_some_and(|s| !s.sound()));
    match bad {
        None => Ok(()),
        Some(r) => Err(Failure::Message(format!(
            "{} of layer {} at position {} holds bad values",
            r.point.name,
            r.layer.map_or("-".to_string(), |l| l.to_string()),
            r.position
        ))),
    }
}
