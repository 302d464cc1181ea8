//! Rotary frequencies with long-context scaling, as transformers' `modeling_rope_utils` computes them.
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{config::Config, spec::Spec};
use crate::{device::Device, tensor::Tensor};

/// cos and sin of position * frequency, (positions, HS / 2) each, times the attention factor.
pub struct RopeTable {
    /// (positions, HS / 2)
    pub cos: Tensor,
    /// (positions, HS / 2)
    pub sin: Tensor,
}

impl RopeTable {
    /// One for each of the decoder's rotary embeddings.
    pub(super) fn of_spec(spec: &Spec, positions: usize, device: &Device) -> Result<Vec<RopeTable>> {
        spec.ropes.iter().map(|rope| RopeTable::new(rope, positions, device)).collect()
    }

    /// The table for positions 0..`positions`, F32 on `device`.
    pub fn new(spec: &RopeSpec, positions: usize, device: &Device) -> Result<RopeTable> {
        let (inv_freq, factor) = spec.frequencies(positions).context("rope_scaling")?;
        let angle = |t: usize, f: &f64| t as f64 * f;
        let table = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..positions)
                .flat_map(|t| inv_freq.iter().map(move |w| (f(angle(t, w)) * factor) as f32))
                .collect()
        };
        let dims = [positions, inv_freq.len()];
        Ok(RopeTable {
            cos: Tensor::from_f32("rope_cos", &dims, &table(f64::cos))?.to_device(device)?,
            sin: Tensor::from_f32("rope_sin", &dims, &table(f64::sin))?.to_device(device)?,
        })
    }
}

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// The frequencies' base.
    pub theta: f64,
    /// Long-context scaling in transformers' fields (`rope_type`, `factor`, ...).
    pub scaling: Option<Map<String, Value>>,
    /// Elements that are rotated: all of a head, HS.
    pub dim: usize,
    /// Positions that the model was made for.
    pub max_positions: usize,
}

/// Fields that a scaling may have.
const KNOWN: [&str; 14] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "truncate",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "partial_rotary_factor",
];

impl RopeSpec {
    /// Of a configuration with one rotary embedding.
    pub fn of_config(config: &Config) -> RopeSpec {
        let nested = config.rope_parameters.as_ref();
        let theta = nested
            .and_then(|p| p.get("rope_theta"))
            .and_then(Value::as_f64)
            .or(config.rope_theta)
            .unwrap_or(10000.0);
        RopeSpec {
            theta,
            scaling: config.rope_scaling.as_ref().or(nested).cloned(),
            dim: config.head_size(),
            max_positions: config.max_position_embeddings,
        }
    }

    /// With the fields of `rope_parameters`, and `theta` where they have none.
    pub fn of_fields(config: &Config, theta: f64, fields: Option<&Map<String, Value>>) -> RopeSpec {
        RopeSpec {
            theta: fields.and_then(|f| f.get("rope_theta")).and_then(Value::as_f64).unwrap_or(theta),
            scaling: fields.cloned(),
            dim: config.head_size(),
            max_positions: config.max_position_embeddings,
        }
    }

    /// (inverse frequencies, attention factor) for sequences of up to `length`.
    pub fn frequencies(&self, length: usize) -> Result<(Vec<f64>, f64)> {
        frequencies(self, length)
    }
}

fn frequencies(rope: &RopeSpec, length: usize) -> Result<(Vec<f64>, f64)> {
    let (theta, dim) = (rope.theta, rope.dim);
    ensure!(theta > 0.0 && theta.is_finite(), "rope_theta is {theta}: a positive number was expected");
    // transformers computes these in f32.
    let plain = |theta: f64| -> Vec<f64> {
        (0..dim / 2).map(|i| (1.0 / (theta as f32).powf(2.0 * i as f32 / dim as f32)) as f64).collect()
    };
    let Some(scaling) = &rope.scaling else { return Ok((plain(theta), 1.0)) };
    if let Some(unknown) = scaling.keys().find(|k| !KNOWN.contains(&k.as_str())) {
        bail!("`{unknown}` is not supported");
    }
    if let Some(part) =
        scaling.get("partial_rotary_factor").filter(|x| !x.is_null() && x.as_f64() != Some(1.0))
    {
        bail!("partial_rotary_factor {part} is not supported: only whole heads are rotated");
    }
    let kind = scaling.get("rope_type").or(scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let inv_freq = plain(theta);
    Ok(match kind {
        "default" | "none" => (inv_freq, 1.0),
        "linear" => {
            let factor = number(scaling, "factor")?;
            (inv_freq.iter().map(|f| f / factor).collect(), 1.0)
        }
        "dynamic" => {
            let (factor, most) = (number(scaling, "factor")?, rope.max_positions as f64);
            let length = (length as f64).max(most);
            let base =
                theta * (factor * length / most - (factor - 1.0)).powf(dim as f64 / (dim as f64 - 2.0));
            (plain(base), 1.0)
        }
        "llama3" => (llama3(scaling, inv_freq)?, 1.0),
        "yarn" => yarn(scaling, rope, inv_freq)?,
        other => bail!("type `{other}` is not supported (default, linear, dynamic, llama3, yarn are)"),
    })
}

fn number(map: &Map<String, Value>, key: &str) -> Result<f64> {
    map.get(key).and_then(Value::as_f64).with_context(|| format!("no number `{key}`"))
}

/// Llama 3.1: long waves are stretched, short ones kept, those between are blended.
fn llama3(scaling: &Map<String, Value>, inv_freq: Vec<f64>) -> Result<Vec<f64>> {
    let factor = number(scaling, "factor")?;
    let (low, high) = (number(scaling, "low_freq_factor")?, number(scaling, "high_freq_factor")?);
    let context = number(scaling, "original_max_position_embeddings")?;
    let blend = |f: f64| {
        let wave = 2.0 * std::f64::consts::PI / f;
        if wave > context / low {
            f / factor
        } else if wave < context / high {
            f
        } else {
            let smooth = (context / wave - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    Ok(inv_freq.into_iter().map(blend).collect())
}

/// YaRN (Peng et al. 2023): a linear ramp between interpolated and kept frequencies, and a temperature on attention.
fn yarn(scaling: &Map<String, Value>, rope: &RopeSpec, inv_freq: Vec<f64>) -> Result<(Vec<f64>, f64)> {
    let factor = number(scaling, "factor")?;
    let (dim, theta) = (rope.dim as f64, rope.theta);
    let context = number(scaling, "original_max_position_embeddings").unwrap_or(rope.max_positions as f64);
    let or = |key: &str, default: f64| scaling.get(key).and_then(Value::as_f64).unwrap_or(default);
    let turns =
        |rotations: f64| dim * (context / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
    let truncate = scaling.get("truncate").and_then(Value::as_bool).unwrap_or(true);
    let (mut low, mut high) = (turns(or("beta_fast", 32.0)), turns(or("beta_slow", 1.0)));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let blended = inv_freq.iter().enumerate().map(|(i, f)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f / factor * ramp + f * (1.0 - ramp)
    });
    let mscale = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let attention = match (
        scaling.get("attention_factor").and_then(Value::as_f64),
        number(scaling, "mscale"),
        number(scaling, "mscale_all_dim"),
    ) {
        (Some(x), ..) => x,
        (None, Ok(m), Ok(all)) if m != 0.0 && all != 0.0 => mscale(factor, m) / mscale(factor, all),
        _ => mscale(factor, 1.0),
    };
    Ok((blended.collect(), attention))
}
