//! The type of numbers in which a model's weights stand in its files.
use std::{collections::BTreeMap, fmt, str::FromStr};

use anyhow::{Result, anyhow, bail};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::WeightSource;
use crate::{ops::quantize::GgmlType, tensor::DType};

/// A type that weights are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// The upper half of one.
    Bf16,
    /// 16-bit floats of IEEE 754.
    F16,
}

impl Stored {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        if self == Stored::F32 { 4 } else { 2 }
    }
    /// As config.json has it: `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Stored::F32 => "float32",
            Stored::Bf16 => "bfloat16",
            Stored::F16 => "float16",
        }
    }
    /// As safetensors has it: `BF16`.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Stored::F32 => "F32",
            Stored::Bf16 => "BF16",
            Stored::F16 => "F16",
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Stored::F32 => "f32",
            Stored::Bf16 => "bf16",
            Stored::F16 => "f16",
        })
    }
}

impl FromStr for Stored {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Stored> {
        [Stored::F32, Stored::Bf16, Stored::F16]
            .into_iter()
            .find(|t| t.to_string() == s)
            .ok_or_else(|| anyhow!("`{s}` is none of f32, bf16 and f16"))
    }
}

impl TryFrom<DType> for Stored {
    type Error = anyhow::Error;
    fn try_from(dtype: DType) -> Result<Stored> {
        match dtype {
            DType::F32 => Ok(Stored::F32),
            DType::Bf16 => Ok(Stored::Bf16),
            DType::U32 => bail!("weights are not integers"),
        }
    }
}

impl WeightSource {
    /// The type that most of the weights stand in: F32 for 64-bit floats too; `None` if they are quantised.
    pub fn stored(&self) -> Option<Stored> {
        let mut numbers: BTreeMap<Option<Stored>, usize> = BTreeMap::new();
        match self {
            WeightSource::Safetensors(c) => c.types().for_each(|(dtype, n)| {
                let stored = match dtype {
                    Dtype::F32 | Dtype::F64 => Some(Stored::F32),
                    Dtype::BF16 => Some(Stored::Bf16),
                    Dtype::F16 => Some(Stored::F16),
                    _ => None,
                };
                *numbers.entry(stored).or_default() += n;
            }),
            WeightSource::Gguf(c) => c.types().for_each(|(kind, n)| {
                let stored = match kind {
                    Some(GgmlType::F32) => Some(Stored::F32),
                    Some(GgmlType::Bf16) => Some(Stored::Bf16),
                    Some(GgmlType::F16) => Some(Stored::F16),
                    _ => None,
                };
                *numbers.entry(stored).or_default() += n;
            }),
        }
        numbers.into_iter().max_by_key(|(_, n)| *n).and_then(|(stored, _)| stored)
    }
}

/// Refuses a config.json whose two keys of one meaning, `dtype` and the older `torch_dtype`, say different things.
pub fn check_dtype_keys(config: &Map<String, Value>) -> Result<()> {
    let of = |key: &str| config.get(key).and_then(Value::as_str).map(|s| s.trim_start_matches("torch."));
    match (of("dtype"), of("torch_dtype")) {
        (Some(new), Some(old)) if new != old => bail!(
            "config.json says dtype {new} and torch_dtype {old}, which are two names of one field: remove the wrong one"
        ),
        _ => Ok(()),
    }
}
