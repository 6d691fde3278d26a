//! Rotary embeddings of a configuration, in the keys and tensors of GGUF files.

use std::f64::consts::PI;

use super::config::{Config, Keys};
use crate::error::Result;

/// The part of the configuration about rotation: `rope_parameters`, or `rope_scaling` of older files.
fn parameters(c: &Config) -> Config {
    c.object("rope_parameters").or_else(|| c.object("rope_scaling")).unwrap_or_else(|| c.none())
}

/// Base, scaling and rotated dimensions. `total_magnitude`: the key for it means all of YaRN's magnitude, not a factor on it.
pub(super) fn rope(c: &Config, k: &mut Keys, head_dim: u32, total_magnitude: bool) -> Result<()> {
    let all = parameters(c);
    let p = all.object("full_attention").unwrap_or_else(|| parameters(c));
    let theta = match p.f32("rope_theta")? {
        None => c.f32("rope_theta")?,
        theta => theta,
    };
    k.put_some("rope.freq_base", theta);
    let local = match all.object("sliding_attention") {
        Some(local) => {
            local.expect("rope_type", &["default".into()])?;
            local.f32("rope_theta")?
        }
        None => c.f32("rope_local_base_freq")?,
    };
    k.put_some("rope.freq_base_swa", local);
    let partial = match p.f64("partial_rotary_factor")? {
        None => c.f64("partial_rotary_factor")?,
        partial => partial,
    };
    let n_rot = partial.map_or(head_dim, |f| (f64::from(head_dim) * f) as u32);
    k.put("rope.dimension_count", n_rot);
    let kind = match p.str("rope_type")? {
        None => p.str("type")?,
        kind => kind,
    };
    let original = match p.u32("original_max_position_embeddings")? {
        None => c.u32("original_max_position_embeddings")?,
        n => n,
    };
    match kind.as_deref().unwrap_or("default") {
        "default" => {}
        "linear" => {
            k.put("rope.scaling.type", "linear");
            k.put("rope.scaling.factor", p.need_f32("factor")?);
        }
        "llama3" => {
            let base = f64::from(theta.unwrap_or(10000.0));
            k.tensors.push(("rope_freqs.weight", llama3(&p, base, n_rot)?));
        }
        "yarn" => {
            for key in ["mscale", "mscale_all_dim"] {
                p.expect(key, &[])?;
            }
            let factor = p.need_f32("factor")?;
            k.put("rope.scaling.type", "yarn");
            k.put("rope.scaling.factor", factor);
            k.put_some("rope.scaling.original_context_length", original);
            k.put_some("rope.scaling.yarn_beta_fast", p.f32("beta_fast")?);
            k.put_some("rope.scaling.yarn_beta_slow", p.f32("beta_slow")?);
            if let Some(magnitude) = p.f32("attention_factor")? {
                let usual = if total_magnitude { 1.0 } else { 1.0 + 0.1 * factor.ln() };
                k.put("rope.scaling.attn_factor", magnitude / usual);
            }
        }
        "longrope" | "su" => longrope(c, &p, k, original)?,
        _ => p.refuse(if p.str("rope_type")?.is_some() { "rope_type" } else { "type" })?,
    }
    Ok(())
}

/// Divisors of the frequencies: slow ones by the factor, fast ones by 1, those between by something between.
fn llama3(p: &Config, base: f64, n_rot: u32) -> Result<Vec<f32>> {
    let (factor, low, high) = (p.need_f64("factor")?, p.need_f64("low_freq_factor")?, p.need_f64("high_freq_factor")?);
    let original = f64::from(p.need_u32("original_max_position_embeddings")?);
    let divisor = |i: u32| {
        let turns = original / (2.0 * PI * base.powf(f64::from(2 * i) / f64::from(n_rot)));
        if turns > high {
            return 1.0;
        }
        if turns < low {
            return factor as f32;
        }
        let smooth = (turns - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Ok((0..n_rot / 2).map(divisor).collect())
}

fn longrope(c: &Config, p: &Config, k: &mut Keys, original: Option<u32>) -> Result<()> {
    k.tensors.push(("rope_factors_long.weight", p.need_numbers("long_factor")?));
    k.tensors.push(("rope_factors_short.weight", p.need_numbers("short_factor")?));
    let Some(original) = original else { return c.need_u32("original_max_position_embeddings").map(drop) };
    k.put("rope.scaling.original_context_length", original);
    let magnitude = match p.f32("attention_factor")? {
        Some(m) => m,
        None => {
            let stretch = f64::from(c.need_u32("max_position_embeddings")?) / f64::from(original);
            if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / f64::from(original).ln()).sqrt() as f32 }
        }
    };
    k.put("rope.scaling.attn_factor", magnitude);
    Ok(())
}
