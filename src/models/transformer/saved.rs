//! The memory of a training step: activations, gradients, and the list of what is trained.
use anyhow::Result;

use super::{
    config::Config,
    linear::{AdapterGrads, LinearGrads, Trained},
    lora::{Adapter, Lora},
    weights::{LINEARS, Llama},
};
use crate::{
    device::Device,
    ops::cross_entropy,
    tensor::{Arena, DType, Laid, Tensor},
};

/// What kind of parameter a tensor is: decides decay and learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// A of an adapter.
    LoraA,
    /// B of an adapter.
    LoraB,
    /// DoRA's magnitudes.
    DoraMagnitude,
    /// A weight matrix.
    Matrix,
    /// A norm's gain or a bias.
    Vector,
    /// The embedding or the head.
    Embedding,
}

/// A trained tensor and its gradient: handles on the real memory.
#[derive(Debug)]
pub struct Param {
    /// Unique; PEFT's or Hugging Face's.
    pub name: String,
    /// The parameter.
    pub(crate) value: Tensor,
    /// Its gradient.
    pub(crate) grad: Tensor,
    /// Its kind.
    pub kind: ParamKind,
}

impl Param {
    /// The parameter, for reading.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
    /// Its gradient, for reading.
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }
    /// Sets the parameter. Errors unless there are as many values as elements.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.value.write_f32(values)
    }
}

pub(super) struct LayerActs {
    pub resid_in: Tensor,
    pub rstd_in: Tensor,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub att: Tensor,
    pub lse: Tensor,
    pub resid_mid: Tensor,
    pub rstd_mid: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
    /// (N, R) of each adapted linear.
    pub u: [Option<Tensor>; 7],
}

pub(super) struct Acts {
    pub layers: Vec<LayerActs>,
    pub resid_out: Tensor,
    pub rstd_out: Tensor,
    pub hidden: Tensor,
    pub losses: Tensor,
    pub loss: cross_entropy::Scratch,
    pub tokens: Tensor,
    pub positions: Tensor,
    pub targets: Tensor,
    pub weights: Tensor,
    /// Scratch that all layers share: (N, C) three times, the attention's gradients, (N, F) three times.
    pub norm: Tensor,
    pub dresid: Tensor,
    pub dnorm: Tensor,
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
    pub datt: Tensor,
    pub act: Tensor,
    pub dact: Tensor,
    pub dgate: Tensor,
    pub dup: Tensor,
    /// (N * widest output), DoRA only.
    pub spare: Option<Tensor>,
    pub du: Option<Tensor>,
}

pub(super) enum Grads {
    Lora { lora: Lora, grads: Vec<[Option<AdapterGrads>; 7]> },
    Full(FullGrads),
}

pub(super) struct FullGrads {
    pub embed_tokens: Tensor,
    pub lm_head: Option<Tensor>,
    pub norm: Tensor,
    pub layers: Vec<FullLayerGrads>,
}

pub(super) struct FullLayerGrads {
    pub linears: [LinearGrads; 7],
    pub input_layernorm: Tensor,
    pub post_attention_layernorm: Tensor,
}

/// Bytes for one chunk of logits.
const LOGITS_BYTES: usize = 48 << 20;

impl Acts {
    /// On `device`, of type `dtype`.
    pub(super) fn new(
        config: &Config,
        n: usize,
        lora: Option<&Lora>,
        device: &Device,
        dtype: DType,
    ) -> Result<(Acts, usize)> {
        Arena::build("activations", device, |a| Acts::lay_out(a, config, n, lora, dtype))
    }

    /// What [`Acts::new`] would allocate, bytes.
    pub(super) fn bytes(config: &Config, n: usize, lora: Option<&Lora>, dtype: DType) -> usize {
        Arena::measure(|a| {
            Acts::lay_out(a, config, n, lora, dtype);
        })
    }

    fn lay_out(a: &mut Arena, config: &Config, n: usize, lora: Option<&Lora>, dtype: DType) -> Acts {
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let (qs, kvs, nh) = (config.query_size(), config.kv_size(), config.num_attention_heads);
        // Sums over rows stay in F32 whatever the activations' type.
        let of = |name: &str| match name {
            "rstd_in" | "rstd_mid" | "rstd_out" | "lse" | "losses" | "weights" => DType::F32,
            _ => dtype,
        };
        let mut t = |name: &str, dims: &[usize]| a.tensor(name, of(name), dims);
        let mut layers = vec![];
        for l in 0..config.num_hidden_layers {
            let rank = |j: usize| {
                lora.and_then(|lora| lora.layers[l][j].as_ref()).map(|adapter| adapter.a.shape()[0])
            };
            layers.push(LayerActs {
                resid_in: t("resid_in", &[n, c]),
                rstd_in: t("rstd_in", &[n]),
                q: t("q", &[n, qs]),
                k: t("k", &[n, kvs]),
                v: t("v", &[n, kvs]),
                att: t("att", &[n, qs]),
                lse: t("lse", &[nh * n]),
                resid_mid: t("resid_mid", &[n, c]),
                rstd_mid: t("rstd_mid", &[n]),
                gate: t("gate", &[n, f]),
                up: t("up", &[n, f]),
                u: std::array::from_fn(|j| rank(j).map(|r| t("u", &[n, r]))),
            });
        }
        let adapters = || lora.into_iter().flat_map(|lora| lora.layers.iter().flatten().flatten());
        let rank = adapters().map(|adapter| adapter.a.shape()[0]).max();
        let dora = adapters().any(|adapter| adapter.magnitude.is_some());
        let wide = c.max(f).max(qs);
        Acts {
            layers,
            resid_out: t("resid_out", &[n, c]),
            rstd_out: t("rstd_out", &[n]),
            hidden: t("hidden", &[n, c]),
            losses: t("losses", &[n]),
            weights: t("weights", &[n]),
            norm: t("norm", &[n, c]),
            dresid: t("dresid", &[n, c]),
            dnorm: t("dnorm", &[n, c]),
            dq: t("dq", &[n, qs]),
            dk: t("dk", &[n, kvs]),
            dv: t("dv", &[n, kvs]),
            datt: t("datt", &[n, qs]),
            act: t("act", &[n, f]),
            dact: t("dact", &[n, f]),
            dgate: t("dgate", &[n, f]),
            dup: t("dup", &[n, f]),
            spare: dora.then(|| t("spare", &[n * wide])),
            // Narrower adapters use the front of it.
            du: rank.map(|r| t("du", &[n * r])),
            tokens: a.tensor("tokens", DType::U32, &[n]),
            positions: a.tensor("positions", DType::U32, &[n]),
            targets: a.tensor("targets", DType::U32, &[n]),
            loss: cross_entropy::Scratch::lay_out(a, dtype, n, config.vocab_size, c, LOGITS_BYTES),
        }
    }
}

/// The first `n` rows of each.
pub(super) fn head_rows(u: &[Option<Tensor>; 7], n: usize) -> Result<[Option<Tensor>; 7]> {
    let mut out = [const { None }; 7];
    for (out, t) in out.iter_mut().zip(u) {
        *out = t.as_ref().map(|t| t.rows(0..n)).transpose()?;
    }
    Ok(out)
}

/// (NH, n) at the front of the log-sum-exp's memory.
pub(super) fn lse_rows(lse: &Tensor, heads: usize, n: usize) -> Result<Tensor> {
    lse.rows(0..heads * n)?.view(&[heads, n])
}

impl Grads {
    pub(super) fn for_lora(lora: Lora, device: &Device) -> Result<Laid<Grads>> {
        let Laid { parts: grads, flat, bytes } = Arena::lay("gradients", device, |arena| {
            let mut like = |t: &Tensor| arena.tensor(&format!("{}.grad", t.name()), DType::F32, t.shape());
            let mut one = |adapter: &Adapter| AdapterGrads {
                a: like(&adapter.a),
                b: like(&adapter.b),
                magnitude: adapter.magnitude.as_ref().map(&mut like),
            };
            lora.layers
                .iter()
                .map(|l| std::array::from_fn(|j| l[j].as_ref().map(&mut one)))
                .collect::<Vec<_>>()
        })?;
        Ok(Laid { parts: Grads::Lora { lora, grads }, flat, bytes })
    }

    pub(super) fn for_all(model: &Llama) -> Result<Laid<Grads>> {
        let Laid { parts: grads, flat, bytes } = Arena::lay("gradients", &model.device(), |arena| {
            let mut like = |t: &Tensor| arena.tensor(&format!("{}.grad", t.name()), DType::F32, t.shape());
            let w = &model.weights;
            let mut layers = vec![];
            for layer in &w.layers {
                let linears = layer.linears();
                layers.push(FullLayerGrads {
                    linears: std::array::from_fn(|j| LinearGrads {
                        weight: like(&linears[j].weight),
                        bias: linears[j].bias.as_ref().map(&mut like),
                    }),
                    input_layernorm: like(&layer.input_layernorm),
                    post_attention_layernorm: like(&layer.post_attention_layernorm),
                });
            }
            FullGrads {
                embed_tokens: like(&w.embed_tokens),
                lm_head: (!model.config.tie_word_embeddings).then(|| like(&w.lm_head)),
                norm: like(&w.norm),
                layers,
            }
        })?;
        Ok(Laid { parts: Grads::Full(grads), flat, bytes })
    }

    /// The lowest layer with anything to train.
    pub(super) fn lowest_layer(&self) -> usize {
        match self {
            Grads::Full(_) => 0,
            Grads::Lora { lora, .. } => {
                lora.layers.iter().position(|l| l.iter().any(Option::is_some)).unwrap_or(lora.layers.len())
            }
        }
    }

    /// The adapters of layer `l`.
    pub(super) fn adapters(&self, l: usize) -> &[Option<Adapter>; 7] {
        const NONE: &[Option<Adapter>; 7] = &[const { None }; 7];
        match self {
            Grads::Lora { lora, .. } => &lora.layers[l],
            Grads::Full(_) => NONE,
        }
    }

    /// What is trained of linear `j` of layer `l`.
    pub(super) fn trained(&mut self, l: usize, j: usize) -> Trained<'_> {
        match self {
            Grads::Lora { lora, grads } => {
                Trained { adapter: lora.layers[l][j].as_ref().zip(grads[l][j].as_mut()), full: None }
            }
            Grads::Full(g) => Trained { adapter: None, full: Some(&mut g.layers[l].linears[j]) },
        }
    }

    /// Every trained tensor with its gradient, in a fixed order.
    pub(super) fn params(&self, model: &Llama) -> Vec<Param> {
        match self {
            Grads::Lora { lora, grads } => lora_params(lora, grads),
            Grads::Full(grads) => full_params(model, grads),
        }
    }
}

fn param(value: &Tensor, grad: &Tensor, kind: ParamKind) -> Param {
    Param { name: value.name().to_string(), value: value.alias(), grad: grad.alias(), kind }
}

fn lora_params(lora: &Lora, grads: &[[Option<AdapterGrads>; 7]]) -> Vec<Param> {
    let mut out = vec![];
    for (adapter, grad) in lora.layers.iter().flatten().zip(grads.iter().flatten()) {
        let (Some(adapter), Some(grad)) = (adapter, grad) else { continue };
        out.push(param(&adapter.a, &grad.a, ParamKind::LoraA));
        out.push(param(&adapter.b, &grad.b, ParamKind::LoraB));
        if let (Some(m), Some(g)) = (&adapter.magnitude, &grad.magnitude) {
            out.push(param(m, g, ParamKind::DoraMagnitude));
        }
    }
    out
}

fn full_params(model: &Llama, grads: &FullGrads) -> Vec<Param> {
    let w = &model.weights;
    let mut out = vec![param(&w.embed_tokens, &grads.embed_tokens, ParamKind::Embedding)];
    for (layer, g) in w.layers.iter().zip(&grads.layers) {
        for j in 0..LINEARS.len() {
            let linear = layer.linears()[j];
            out.push(param(&linear.weight, &g.linears[j].weight, ParamKind::Matrix));
            if let (Some(bias), Some(grad)) = (&linear.bias, &g.linears[j].bias) {
                out.push(param(bias, grad, ParamKind::Vector));
            }
        }
        out.push(param(&layer.input_layernorm, &g.input_layernorm, ParamKind::Vector));
        out.push(param(&layer.post_attention_layernorm, &g.post_attention_layernorm, ParamKind::Vector));
    }
    out.push(param(&w.norm, &grads.norm, ParamKind::Vector));
    if let Some(head) = &grads.lm_head {
        out.push(param(&w.lm_head, head, ParamKind::Embedding));
    }
    out
}
