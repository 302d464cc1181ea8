//! The XLM-RoBERTa encoder (Conneau et al. 2020; also InfoXLM, multilingual E5): post-norm, biases everywhere, learned positions.
//!
//! Sentences run packed, each confined to itself, so there is no padding to compute; a sentence's states do not depend on the
//! sentences beside it.
mod encoder;

use std::path::Path;

use crate::data::files::FileContext;
use crate::error::{Error, Kind};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{
    transformer::weights::DenseLinear as Linear,
    weights::{check_memory, safetensors::Checkpoint},
};
use crate::{
    device::Device,
    tensor::{DType, Tensor},
};

pub use encoder::{Encoder, LastLayer, States, batches};

/// `config.json`, with Hugging Face's names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct XlmRobertaConfig {
    /// `xlm-roberta`; `roberta` and `camembert` are the same encoder, and `bert` but for its positions, which begin at the table's first row
    /// (multilingual-e5-small, paraphrase-multilingual-MiniLM).
    pub model_type: String,
    /// C
    pub hidden_size: usize,
    /// F
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// NH
    pub num_attention_heads: usize,
    /// V
    pub vocab_size: usize,
    /// Rows of the position table; those before [`XlmRobertaConfig::first_position`] are never used.
    pub max_position_embeddings: usize,
    /// Rows of the token type table; only the first is used.
    #[serde(default = "one")]
    pub type_vocab_size: usize,
    /// Added to variances.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f32,
    /// Only `gelu`, the exact one.
    #[serde(default = "default_act")]
    pub hidden_act: String,
    /// Positions start behind it.
    #[serde(default = "default_pad")]
    pub pad_token_id: u32,
    /// `<s>`
    #[serde(default)]
    pub bos_token_id: u32,
    /// `</s>`
    #[serde(default = "default_eos")]
    pub eos_token_id: u32,
    /// Only `absolute`.
    #[serde(default = "default_positions")]
    pub position_embedding_type: String,
}

fn one() -> usize {
    1
}
fn default_eps() -> f32 {
    1e-12
}
fn default_act() -> String {
    "gelu".into()
}
fn default_pad() -> u32 {
    1
}
fn default_eos() -> u32 {
    2
}
fn default_positions() -> String {
    "absolute".into()
}

impl XlmRobertaConfig {
    /// Reads `DIR/config.json`.
    pub fn from_dir(dir: &Path) -> Result<XlmRobertaConfig> {
        let path = dir.join("config.json");
        let text = crate::data::json::read_text(&path).reading(&path)?;
        let config = XlmRobertaConfig::from_json(&text).with_context(|| format!("{}", path.display()));
        config.or_kind(|message| Error::unsupported(path.display(), message))
    }

    /// Parses and checks a `config.json`.
    pub fn from_json(text: &str) -> Result<XlmRobertaConfig> {
        XlmRobertaConfig::from_value(serde_json::from_str(text).context("not valid JSON")?)
    }

    /// The same, parsed.
    pub fn from_value(value: Value) -> Result<XlmRobertaConfig> {
        let kind = value["model_type"].as_str().unwrap_or("absent").to_string();
        ensure!(
            ["xlm-roberta", "roberta", "camembert", "bert"].contains(&kind.as_str()),
            "model_type is {kind}; an encoder of type `xlm-roberta` was expected"
        );
        let config: XlmRobertaConfig = serde_json::from_value(value)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let sizes = [self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.vocab_size];
        ensure!(sizes.iter().all(|&x| x > 0 && x < 1 << 24), "a size is 0 or absurd: {sizes:?}");
        let widths = [self.hidden_size, self.intermediate_size];
        ensure!(widths.iter().all(|&x| x < 1 << 20), "a size is absurd: {widths:?}");
        ensure!(self.num_hidden_layers < 1 << 12, "{} layers are absurd", self.num_hidden_layers);
        let (c, nh) = (self.hidden_size, self.num_attention_heads);
        ensure!(nh > 0 && c.is_multiple_of(nh), "hidden_size {c} is not a multiple of {nh} heads");
        ensure!(self.type_vocab_size > 0 && self.type_vocab_size < 1 << 16, "type_vocab_size is 0 or absurd");
        ensure!(
            self.max_position_embeddings < 1 << 24 && self.max_tokens() > 0,
            "max_position_embeddings is {}, but positions start at {}",
            self.max_position_embeddings,
            self.first_position()
        );
        ensure!(self.hidden_act == "gelu", "hidden_act {} is not supported, only gelu", self.hidden_act);
        ensure!(
            self.position_embedding_type == "absolute",
            "position_embedding_type {} is not supported, only absolute",
            self.position_embedding_type
        );
        for (name, id) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            ensure!(
                (id as usize) < self.vocab_size,
                "{name} {id} is not below vocab_size {}",
                self.vocab_size
            );
        }
        Ok(())
    }

    /// The longest sentence, tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position() as usize)
    }

    /// The row of the position table of a sentence's first token: behind that of padding, in BERT the first.
    pub fn first_position(&self) -> u32 {
        if self.model_type == "bert" { 0 } else { self.pad_token_id.saturating_add(1) }
    }

    /// Parameters of the encoder.
    pub fn parameters(&self) -> usize {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2;
        tables * c + self.num_hidden_layers * (4 * c * (c + 1) + 2 * c * f + f + 5 * c)
    }
}

/// Weight and bias of a LayerNorm, (C), F32.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

/// An encoder: configuration and weights. Norms and biases are F32; the rest F32 or Bf16.
#[derive(Debug)]
pub struct XlmRoberta {
    /// `config.json`.
    pub config: XlmRobertaConfig,
    /// (V, C)
    word_embeddings: Tensor,
    /// (max positions, C): position embeddings, the only token type's added; of the activations' type.
    positions: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

/// What stands before `embeddings...` in the names of published checkpoints: the bare model, a model with a head, COMET.
const PREFIXES: [&str; 5] = ["", "roberta.", "bert.", "encoder.model.", "encoder."];

/// Makes a tensor: (name, dims, whether it is a matrix, which may be narrower than F32).
pub type MakeTensor<'a> = dyn FnMut(&str, &[usize], bool) -> Result<Tensor> + 'a;

impl XlmRoberta {
    /// Loads a Hugging Face directory; matrices as `dtype`, in place in the mapped file where possible.
    pub fn load(dir: &Path, dtype: DType) -> Result<XlmRoberta> {
        let config = XlmRobertaConfig::from_dir(dir)?;
        XlmRoberta::from_checkpoint(config, &Checkpoint::open(dir)?, dtype)
            .with_context(|| format!("load encoder {}", dir.display()))
    }

    /// From a checkpoint's tensors, under any of the prefixes in use.
    pub fn from_checkpoint(
        config: XlmRobertaConfig,
        checkpoint: &Checkpoint,
        dtype: DType,
    ) -> Result<XlmRoberta> {
        check_memory("the encoder", config.parameters() * dtype.bytes())?;
        let found =
            PREFIXES.iter().find(|p| checkpoint.has(&format!("{p}embeddings.word_embeddings.weight")));
        let prefix =
            found.context("the checkpoint has no embeddings.word_embeddings.weight: it is no XLM-R")?;
        XlmRoberta::build(config, &mut |name, dims, matrix| {
            checkpoint.tensor(&format!("{prefix}{name}"), dims, if matrix { dtype } else { DType::F32 })
        })
    }

    /// Builds the encoder from `make`, which gets the names without a prefix.
    pub fn build(config: XlmRobertaConfig, make: &mut MakeTensor) -> Result<XlmRoberta> {
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let word_embeddings = make("embeddings.word_embeddings.weight", &[config.vocab_size, c], true)?;
        let table =
            make("embeddings.position_embeddings.weight", &[config.max_position_embeddings, c], false)?;
        let types = make("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, c], false)?;
        let mut positions = table.to_f32_vec()?;
        let kind = types.to_f32_vec()?;
        for row in positions.chunks_exact_mut(c) {
            row.iter_mut().zip(&kind).for_each(|(p, t)| *p += t);
        }
        let positions = Tensor::from_f32("positions", table.shape(), &positions)?;
        let norm = |make: &mut MakeTensor, name: &str| -> Result<Norm> {
            let [weight, bias] = ["weight", "bias"].map(|kind| make(&format!("{name}.{kind}"), &[c], false));
            Ok(Norm { weight: weight?, bias: bias? })
        };
        let embedding_norm = norm(make, "embeddings.LayerNorm")?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers.min(1 << 10));
        for i in 0..config.num_hidden_layers {
            let name = |module: &str| format!("encoder.layer.{i}.{module}");
            let linear = |make: &mut MakeTensor, module: &str, out: usize, inp: usize| -> Result<Linear> {
                let weight = make(&format!("{}.weight", name(module)), &[out, inp], true)?;
                let bias = Some(make(&format!("{}.bias", name(module)), &[out], false)?);
                Ok(Linear { weight, bias })
            };
            layers.push(Layer {
                query: linear(make, "attention.self.query", c, c)?,
                key: linear(make, "attention.self.key", c, c)?,
                value: linear(make, "attention.self.value", c, c)?,
                attention_output: linear(make, "attention.output.dense", c, c)?,
                attention_norm: norm(make, &name("attention.output.LayerNorm"))?,
                intermediate: linear(make, "intermediate.dense", f, c)?,
                output: linear(make, "output.dense", c, f)?,
                output_norm: norm(make, &name("output.LayerNorm"))?,
            });
        }
        Ok(XlmRoberta { config, word_embeddings, positions, embedding_norm, layers })
    }

    /// A copy on `device`, every tensor with its dtype.
    pub fn to_device(&self, device: &Device) -> Result<XlmRoberta> {
        let put = |t: &Tensor| t.to_device(device);
        let norm = |n: &Norm| -> Result<Norm> { Ok(Norm { weight: put(&n.weight)?, bias: put(&n.bias)? }) };
        let linear = |l: &Linear| -> Result<Linear> {
            Ok(Linear { weight: put(&l.weight)?, bias: l.bias.as_ref().map(put).transpose()? })
        };
        let layer = |l: &Layer| -> Result<Layer> {
            Ok(Layer {
                query: linear(&l.query)?,
                key: linear(&l.key)?,
                value: linear(&l.value)?,
                attention_output: linear(&l.attention_output)?,
                attention_norm: norm(&l.attention_norm)?,
                intermediate: linear(&l.intermediate)?,
                output: linear(&l.output)?,
                output_norm: norm(&l.output_norm)?,
            })
        };
        let on_gpu = device.gpu().is_some();
        let acts = if on_gpu { self.word_embeddings.dtype() } else { DType::F32 };
        let mut positions = Tensor::zeros_on(device, "positions", acts, self.positions.shape())?;
        positions.write_f32(&self.positions.to_f32_vec()?)?;
        Ok(XlmRoberta {
            config: self.config.clone(),
            word_embeddings: put(&self.word_embeddings)?,
            positions,
            embedding_norm: norm(&self.embedding_norm)?,
            layers: self.layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.word_embeddings.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_that_are_no_xlm_r_are_refused_by_name() {
        let good = serde_json::json!({"model_type": "xlm-roberta", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 20});
        assert_eq!(XlmRobertaConfig::from_value(good.clone()).unwrap().max_tokens(), 18);
        for (key, value, named) in [
            ("model_type", "xlm-roberta-xl".into(), "xlm-roberta-xl"),
            ("num_attention_heads", 5.into(), "5 heads"),
            ("hidden_act", "gelu_new".into(), "gelu_new"),
            ("max_position_embeddings", 2.into(), "max_position_embeddings"),
            ("position_embedding_type", "relative_key".into(), "relative_key"),
            ("vocab_size", 0.into(), "size is 0"),
            ("eos_token_id", 100.into(), "eos_token_id"),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let error = format!("{:#}", XlmRobertaConfig::from_value(bad).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
