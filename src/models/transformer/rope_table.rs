//! Rotary frequencies with long-context scaling, as transformers' `modeling_rope_utils` computes them.
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{config::Config, spec::Spec};
use crate::{device::Device, tensor::Tensor};

/// cos and sin of position * frequency, (rows, HS / 2) each, times the attention factor.
pub struct RopeTable {
    /// (rows, HS / 2)
    pub cos: Tensor,
    /// (rows, HS / 2)
    pub sin: Tensor,
}

/// A table for each of the decoder's rotary embeddings, and which of their rows a token reads.
///
/// The frequencies of `dynamic` and `longrope` depend on the sequence's length. Row p of a table is what a token at position p reads whose sequence ends with it (a decode
/// step), which is also right for every token of a sequence that is not longer than the length at which frequencies begin to change. Longer documents of a
/// batch get rows of their own behind those, written for the batch.
pub struct RopeTables {
    tables: Vec<RopeTable>,
    specs: Vec<RopeSpec>,
    /// Longer sequences have frequencies of their own.
    changes_beyond: usize,
    positions: usize,
}

impl RopeTables {
    /// For positions below `positions` and batches of up to `batch_tokens` tokens, F32 on `device`.
    pub(super) fn new(
        spec: &Spec,
        positions: usize,
        batch_tokens: usize,
        device: &Device,
    ) -> Result<RopeTables> {
        let specs = spec.ropes.clone();
        let changes_beyond = specs.iter().filter_map(RopeSpec::changes_beyond).min().unwrap_or(usize::MAX);
        let own = if changes_beyond < positions { batch_tokens } else { 0 };
        let table = |rope: &RopeSpec| RopeTable::new(rope, positions, own, device);
        let tables = specs.iter().map(table).collect::<Result<_>>()?;
        Ok(RopeTables { tables, specs, changes_beyond, positions })
    }

    /// In the order of [`Spec::ropes`].
    pub(super) fn tables(&self) -> &[RopeTable] {
        &self.tables
    }

    /// The row of each token of documents of these lengths, which lie back to back.
    pub(super) fn rows(&mut self, lengths: &[usize]) -> Result<Vec<u32>> {
        let (mut rows, mut free) = (vec![], self.positions);
        for &length in lengths {
            let first = if length > self.changes_beyond {
                for (table, rope) in self.tables.iter_mut().zip(&self.specs) {
                    let (cos, sin) = rope.angles(0..length, length)?;
                    table.cos.rows(free..free + length)?.write_f32(&cos)?;
                    table.sin.rows(free..free + length)?.write_f32(&sin)?;
                }
                free += length;
                free - length
            } else {
                0
            };
            rows.extend((first..first + length).map(|row| row as u32));
        }
        Ok(rows)
    }
}

impl RopeTable {
    /// Row p for a sequence that ends at p, and `own` rows to be written, F32 on `device`.
    fn new(rope: &RopeSpec, positions: usize, own: usize, device: &Device) -> Result<RopeTable> {
        let fixed = rope.changes_beyond().unwrap_or(positions).min(positions);
        let (mut cos, mut sin) = rope.angles(0..fixed, fixed)?;
        for p in fixed..positions {
            let (c, s) = rope.angles(p..p + 1, p + 1)?;
            cos.extend(c);
            sin.extend(s);
        }
        let dims = [positions + own, rope.dim / 2];
        cos.resize(dims[0] * dims[1], 0.0);
        sin.resize(dims[0] * dims[1], 0.0);
        Ok(RopeTable {
            cos: Tensor::from_f32("rope_cos", &dims, &cos)?.to_device(device)?,
            sin: Tensor::from_f32("rope_sin", &dims, &sin)?.to_device(device)?,
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
const KNOWN: [&str; 16] = [
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
    "short_factor",
    "long_factor",
];

impl RopeSpec {
    /// Of a configuration with one rotary embedding.
    pub fn of_config(config: &Config) -> RopeSpec {
        let given = |map: &&Map<String, Value>| !map.is_empty();
        let scaling =
            config.rope_scaling.as_ref().filter(given).or(config.rope_parameters.as_ref().filter(given));
        RopeSpec::of_fields(config, config.rope_theta.unwrap_or(10000.0), scaling)
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
        let (inv_freq, factor) = frequencies(self, length)?;
        let sound = inv_freq.iter().all(|f| f.is_finite()) && factor.is_finite();
        ensure!(sound, "the frequencies for {length} tokens are no numbers: {inv_freq:?}, times {factor}");
        Ok((inv_freq, factor))
    }

    /// The length beyond which a sequence has frequencies of its own; `None` where the length does not matter.
    pub fn changes_beyond(&self) -> Option<usize> {
        let scaling = self.scaling.as_ref()?;
        match kind_of(scaling) {
            "dynamic" => Some(self.max_positions),
            "longrope" if scaling.get("short_factor") != scaling.get("long_factor") => {
                Some(original_positions(scaling, self) as usize)
            }
            _ => None,
        }
    }

    /// The length beyond which a sequence has other frequencies once and for all (LongRoPE): keys from before it are to be computed again.
    pub fn switches_beyond(&self) -> Option<usize> {
        let scaling = self.scaling.as_ref()?;
        self.changes_beyond().filter(|_| kind_of(scaling) == "longrope")
    }

    /// (cosines, sines) of `positions` in a sequence of `length`, times the attention factor.
    fn angles(&self, positions: Range<usize>, length: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let (inv_freq, factor) = self.frequencies(length).context("rope_scaling")?;
        let table = |f: fn(f64) -> f64| -> Vec<f32> {
            let row = |t: usize| inv_freq.iter().map(move |w| (f(t as f64 * w) * factor) as f32);
            positions.clone().flat_map(row).collect()
        };
        Ok((table(f64::cos), table(f64::sin)))
    }
}

pub(super) fn kind_of(scaling: &Map<String, Value>) -> &str {
    scaling.get("rope_type").or(scaling.get("type")).and_then(Value::as_str).unwrap_or("default")
}

/// Positions before the context was stretched; absent means those of the configuration.
fn original_positions(scaling: &Map<String, Value>, rope: &RopeSpec) -> f64 {
    number(scaling, "original_max_position_embeddings").unwrap_or(rope.max_positions as f64)
}

/// By how much the context is stretched; absent means the ratio of the positions after and before.
fn factor_of(scaling: &Map<String, Value>, rope: &RopeSpec) -> Result<f64> {
    if scaling.get("factor").is_some_and(|x| !x.is_null()) {
        return number(scaling, "factor");
    }
    Ok(rope.max_positions as f64
        / number(scaling, "original_max_position_embeddings").context("no number `factor` either")?)
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
    let inv_freq = plain(theta);
    Ok(match kind_of(scaling) {
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
        "llama3" => (llama3(scaling, rope, inv_freq)?, 1.0),
        "yarn" => yarn(scaling, rope, inv_freq)?,
        "longrope" => longrope(scaling, rope, inv_freq, length)?,
        other => {
            bail!("type `{other}` is not supported (default, linear, dynamic, llama3, yarn, longrope are)")
        }
    })
}

fn number(map: &Map<String, Value>, key: &str) -> Result<f64> {
    map.get(key).and_then(Value::as_f64).with_context(|| format!("no number `{key}`"))
}

/// Llama 3.1: long waves are stretched, short ones kept, those between are blended.
fn llama3(scaling: &Map<String, Value>, rope: &RopeSpec, inv_freq: Vec<f64>) -> Result<Vec<f64>> {
    let factor = number(scaling, "factor")?;
    let (low, high) = (number(scaling, "low_freq_factor")?, number(scaling, "high_freq_factor")?);
    let context = original_positions(scaling, rope);
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
    let factor = factor_of(scaling, rope)?;
    let (dim, theta) = (rope.dim as f64, rope.theta);
    let context = original_positions(scaling, rope);
    let or = |key: &str, default: f64| {
        scaling.get(key).and_then(Value::as_f64).filter(|&x| x != 0.0).unwrap_or(default)
    };
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

/// LongRoPE (Ding et al. 2024): a factor for each frequency, of two lists: one for sequences up to the original context, one for longer ones.
fn longrope(
    scaling: &Map<String, Value>,
    rope: &RopeSpec,
    inv_freq: Vec<f64>,
    length: usize,
) -> Result<(Vec<f64>, f64)> {
    let context = original_positions(scaling, rope);
    let list = |key: &str| -> Result<Vec<f64>> {
        let list = scaling.get(key).and_then(Value::as_array).with_context(|| format!("no list `{key}`"))?;
        let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        let numbers = numbers.filter(|n| n.iter().all(|&x| x > 0.0 && x.is_finite()));
        let numbers =
            numbers.with_context(|| format!("`{key}` holds something else than positive numbers"))?;
        ensure!(
            numbers.len() == inv_freq.len(),
            "`{key}` has {} factors for {} frequencies",
            numbers.len(),
            inv_freq.len()
        );
        Ok(numbers)
    };
    let (short, long) = (list("short_factor")?, list("long_factor")?);
    let factors = if length as f64 > context { long } else { short };
    let attention = match scaling.get("attention_factor").and_then(Value::as_f64) {
        Some(x) => x,
        None => match factor_of(scaling, rope)? {
            factor if factor <= 1.0 => 1.0,
            factor => (1.0 + factor.ln() / context.ln()).sqrt(),
        },
    };
    Ok((inv_freq.iter().zip(factors).map(|(f, x)| f / x).collect(), attention))
}
