//! The XLM-RoBERTa encoder (Conneau et al. 2020; also InfoXLM, multilingual E5): post-norm, biases everywhere, learned positions.
//!
//! Sentences run packed, each confined to itself, so there is no padding to compute; a sentence's states do not depend on the
//! sentences beside it.
use std::{ops::Range, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{
    llama::Linear,
    weights::{check_memory, safetensors::Checkpoint},
};
use crate::{
    device::Device,
    ops::{
        activation::{Activation, activation_forward},
        attention::{AttentionShape, cross_attention_forward},
        embedding::embedding_forward,
        gemm::linear_forward_many_rows,
        layernorm::layernorm_forward,
        rows::{add, copy, gather_rows},
    },
    tensor::{Arena, DType, Tensor},
};

/// `config.json`, with Hugging Face's names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Config {
    /// `xlm-roberta`; `roberta` and `camembert` are the same encoder.
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
    /// Rows of the position table; the first `pad_token_id + 1` are never used.
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

impl Config {
    /// Reads `DIR/config.json`.
    pub fn from_dir(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Config::from_json(&text).with_context(|| format!("{}", path.display()))
    }

    /// Parses and checks a `config.json`.
    pub fn from_json(text: &str) -> Result<Config> {
        Config::from_value(serde_json::from_str(text).context("not valid JSON")?)
    }

    /// The same, parsed.
    pub fn from_value(value: Value) -> Result<Config> {
        let kind = value["model_type"].as_str().unwrap_or("absent").to_string();
        ensure!(
            ["xlm-roberta", "roberta", "camembert"].contains(&kind.as_str()),
            "model_type is {kind}; an encoder of type `xlm-roberta` was expected"
        );
        let config: Config = serde_json::from_value(value)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let sizes = [self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.vocab_size];
        ensure!(sizes.iter().all(|&x| x > 0 && x < 1 << 24), "a size is 0 or absurd: {sizes:?}");
        let (c, nh) = (self.hidden_size, self.num_attention_heads);
        ensure!(nh > 0 && c.is_multiple_of(nh), "hidden_size {c} is not a multiple of {nh} heads");
        ensure!(self.type_vocab_size > 0 && self.type_vocab_size < 1 << 16, "type_vocab_size is 0 or absurd");
        ensure!(
            self.max_position_embeddings < 1 << 24 && self.max_tokens() > 0,
            "max_position_embeddings is {}, but positions start at pad_token_id + 1 = {}",
            self.max_position_embeddings,
            self.pad_token_id as u64 + 1
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
        self.max_position_embeddings.saturating_sub(self.pad_token_id as usize).saturating_sub(1)
    }

    /// Parameters of the encoder.
    pub fn parameters(&self) -> usize {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2;
        tables * c + self.num_hidden_layers * (4 * c * (c + 1) + 2 * c * f + f + 5 * c)
    }
}

/// Weight and bias of a LayerNorm, (C), F32.
#[derive(Clone, Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct XlmRoberta {
    /// `config.json`.
    pub config: Config,
    /// (V, C)
    word_embeddings: Tensor,
    /// (max positions, C): position embeddings, the only token type's added; of the activations' type.
    positions: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

/// What stands before `embeddings...` in the names of published checkpoints: the bare model, a model with a head, COMET.
const PREFIXES: [&str; 4] = ["", "roberta.", "encoder.model.", "encoder."];

/// Makes a tensor: (name, dims, whether it is a matrix, which may be narrower than F32).
pub type MakeTensor<'a> = dyn FnMut(&str, &[usize], bool) -> Result<Tensor> + 'a;

impl XlmRoberta {
    /// Loads a Hugging Face directory; matrices as `dtype`, in place in the mapped file where possible.
    pub fn load(dir: &Path, dtype: DType) -> Result<XlmRoberta> {
        let config = Config::from_dir(dir)?;
        XlmRoberta::from_checkpoint(config, &Checkpoint::open(dir)?, dtype)
            .with_context(|| format!("load encoder {}", dir.display()))
    }

    /// From a checkpoint's tensors, under any of the prefixes in use.
    pub fn from_checkpoint(config: Config, checkpoint: &Checkpoint, dtype: DType) -> Result<XlmRoberta> {
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
    pub fn build(config: Config, make: &mut MakeTensor) -> Result<XlmRoberta> {
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

/// How much of the last layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLayer {
    /// Every token's state.
    All,
    /// The state of each sentence's first token only: that is all a classifier reads.
    First,
}

/// Scratch of the forward, for up to a number of tokens at once.
pub struct Encoder {
    shape: AttentionShape,
    max_tokens: usize,
    last: LastLayer,
    a: Buffers,
}

struct Buffers {
    tokens: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    /// 0, 1, 2 ...: the offsets of one query a sentence.
    counting: Tensor,
    hidden: Tensor,
    /// Before the norm.
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att: Tensor,
    lse: Tensor,
    inner: Tensor,
    act: Tensor,
}

/// The states that a layer gave, as the callback of [`Encoder::forward`] sees them.
pub struct States<'a> {
    /// 0 for the embeddings, then the layers from 1 on.
    pub layer: usize,
    /// (rows, C) of the activations' type.
    pub states: &'a Tensor,
    /// The row of each sentence's first token, U32 on the device.
    pub first: &'a Tensor,
}

impl Encoder {
    /// Scratch for calls of up to `max_tokens` tokens.
    pub fn new(model: &XlmRoberta, max_tokens: usize, last: LastLayer) -> Result<Encoder> {
        let config = &model.config;
        let (n, c, nh) = (max_tokens, config.hidden_size, config.num_attention_heads);
        let acts = model.positions.dtype();
        let (a, _) = Arena::build("encoder scratch", &model.device(), |arena| {
            let mut t = |name: &str, dtype: DType, dims: &[usize]| arena.tensor(name, dtype, dims);
            Buffers {
                tokens: t("tokens", DType::U32, &[n]),
                positions: t("positions", DType::U32, &[n]),
                cu_seqlens: t("cu_seqlens", DType::U32, &[n + 1]),
                counting: t("counting", DType::U32, &[n + 1]),
                hidden: t("hidden", acts, &[n, c]),
                sum: t("sum", acts, &[n, c]),
                mean: t("mean", DType::F32, &[n]),
                rstd: t("rstd", DType::F32, &[n]),
                q: t("q", acts, &[n, c]),
                k: t("k", acts, &[n, c]),
                v: t("v", acts, &[n, c]),
                att: t("att", acts, &[n, c]),
                lse: t("lse", DType::F32, &[nh * n]),
                inner: t("inner", acts, &[n, config.intermediate_size]),
                act: t("act", acts, &[n, config.intermediate_size]),
            }
        })?;
        let head_size = c / nh;
        let scale = 1.0 / (head_size as f32).sqrt();
        let shape = AttentionShape { heads: nh, kv_heads: nh, head_size, scale, window: None };
        Ok(Encoder { shape, max_tokens, last, a })
    }

    /// Runs `sentences` (token ids, none empty) and calls `each` with the states of the embeddings and of every layer in turn.
    pub fn forward(
        &mut self,
        model: &XlmRoberta,
        sentences: &[&[u32]],
        each: &mut dyn FnMut(States) -> Result<()>,
    ) -> Result<()> {
        let (n, cu) = self.check(model, sentences)?;
        if n == 0 {
            return Ok(());
        }
        let d = sentences.len();
        let set = |t: &Tensor, values: &[u32]| -> Result<Tensor> {
            let mut t = t.rows(0..values.len())?;
            t.write_u32(values)?;
            Ok(t)
        };
        let first_position = model.config.pad_token_id + 1;
        let positions: Vec<u32> =
            sentences.iter().flat_map(|s| (0..s.len() as u32).map(|i| first_position + i)).collect();
        let tokens = set(&self.a.tokens, &sentences.concat())?;
        let positions = set(&self.a.positions, &positions)?;
        let cu_seqlens = set(&self.a.cu_seqlens, &cu)?;
        let counting = set(&self.a.counting, &(0..=d as u32).collect::<Vec<_>>())?;
        let first = cu_seqlens.rows(0..d)?;
        let mut hidden = self.a.hidden.rows(0..n)?;
        let mut sum = self.a.sum.rows(0..n)?;
        embedding_forward(&mut sum, &tokens, &model.word_embeddings)?;
        embedding_forward(&mut hidden, &positions, &model.positions)?;
        add(&mut sum, &hidden)?;
        self.norm(&mut hidden, &sum, &model.embedding_norm, model)?;
        each(States { layer: 0, states: &hidden, first: &first })?;
        for (i, layer) in model.layers.iter().enumerate() {
            let one = self.last == LastLayer::First && i + 1 == model.layers.len();
            let documents = Documents { cu_q: if one { &counting } else { &cu_seqlens }, cu_k: &cu_seqlens };
            let states = self.layer(model, layer, n, documents, one.then_some(&first))?;
            let first = if one { counting.rows(0..d)? } else { first.clone() };
            each(States { layer: i + 1, states: &states, first: &first })?;
        }
        Ok(())
    }

    /// (tokens, offsets of the sentences)
    fn check(&self, model: &XlmRoberta, sentences: &[&[u32]]) -> Result<(usize, Vec<u32>)> {
        let (longest, vocab) = (model.config.max_tokens(), model.config.vocab_size);
        let mut cu = vec![0u32];
        let mut n = 0;
        for (i, s) in sentences.iter().enumerate() {
            ensure!(!s.is_empty(), "sentence {i} has no tokens");
            ensure!(s.len() <= longest, "sentence {i} has {} tokens; the encoder takes {longest}", s.len());
            if let Some(id) = s.iter().find(|&&id| id as usize >= vocab) {
                anyhow::bail!("sentence {i} has token {id}, but the encoder's vocabulary has {vocab}");
            }
            n += s.len();
            cu.push(n as u32);
        }
        ensure!(n <= self.max_tokens, "{n} tokens at once; there is room for {}", self.max_tokens);
        Ok((n, cu))
    }

    /// One layer, in place in the hidden states; with `first` only these rows of it, which then are the rows of the result.
    fn layer(
        &mut self,
        model: &XlmRoberta,
        layer: &Layer,
        n: usize,
        documents: Documents,
        first: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut hidden = self.a.hidden.rows(0..n)?;
        let (mut k, mut v) = (self.a.k.rows(0..n)?, self.a.v.rows(0..n)?);
        linear(&mut k, &hidden, &layer.key)?;
        linear(&mut v, &hidden, &layer.value)?;
        let rows = first.map_or(n, Tensor::len);
        let range: Range<usize> = 0..rows;
        let mut sum = self.a.sum.rows(range.clone())?;
        if let Some(first) = first {
            gather_rows(&mut sum, &hidden, first)?;
            hidden = self.a.hidden.rows(range.clone())?;
            copy(&mut hidden, &sum)?;
        }
        let (mut q, mut att) = (self.a.q.rows(range.clone())?, self.a.att.rows(range.clone())?);
        let mut lse = self.a.lse.rows(0..self.shape.heads * rows)?.view(&[self.shape.heads, rows])?;
        linear(&mut q, &hidden, &layer.query)?;
        cross_attention_forward(&mut att, &mut lse, &q, &k, &v, documents.cu_q, documents.cu_k, self.shape)?;
        linear(&mut sum, &att, &layer.attention_output)?;
        add(&mut sum, &hidden)?;
        self.norm(&mut hidden, &sum, &layer.attention_norm, model)?;
        let (mut inner, mut act) = (self.a.inner.rows(range.clone())?, self.a.act.rows(range)?);
        linear(&mut inner, &hidden, &layer.intermediate)?;
        activation_forward(&mut act, &inner, Activation::Gelu)?;
        linear(&mut sum, &act, &layer.output)?;
        add(&mut sum, &hidden)?;
        self.norm(&mut hidden, &sum, &layer.output_norm, model)?;
        Ok(hidden)
    }

    fn norm(&self, out: &mut Tensor, inp: &Tensor, norm: &Norm, model: &XlmRoberta) -> Result<()> {
        let n = inp.rows_cols().0;
        let (mut mean, mut rstd) = (self.a.mean.rows(0..n)?, self.a.rstd.rows(0..n)?);
        layernorm_forward(
            out,
            &mut mean,
            &mut rstd,
            inp,
            &norm.weight,
            &norm.bias,
            model.config.layer_norm_eps,
        )
    }
}

/// The offsets of the queries and of the keys.
#[derive(Clone, Copy)]
struct Documents<'a> {
    cu_q: &'a Tensor,
    cu_k: &'a Tensor,
}

fn linear(out: &mut Tensor, inp: &Tensor, l: &Linear) -> Result<()> {
    linear_forward_many_rows(out, inp, &l.weight, l.bias.as_ref())
}

/// Batches of up to `budget` tokens over sentences of these lengths, the longest first, so that a batch holds similar ones. A sentence longer
/// than the budget is a batch of its own.
pub fn batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut out: Vec<Vec<usize>> = vec![];
    let mut filled = usize::MAX;
    for i in order {
        filled = filled.saturating_add(lengths[i]);
        if filled > budget {
            out.push(vec![]);
            filled = lengths[i];
        }
        if let Some(last) = out.last_mut() {
            last.push(i);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_sentence_once_within_the_budget() {
        assert_eq!(batches(&[3, 9, 2, 5, 12], 10), [vec![4], vec![1], vec![3, 0, 2]]);
        assert_eq!(batches(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(batches(&[4, 4, 4], 8), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn configs_that_are_no_xlm_r_are_refused_by_name() {
        let good = serde_json::json!({"model_type": "xlm-roberta", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 20});
        assert_eq!(Config::from_value(good.clone()).unwrap().max_tokens(), 18);
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
            let error = format!("{:#}", Config::from_value(bad).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
