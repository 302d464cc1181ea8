//! M2M100 (Fan et al. 2020), the architecture of NLLB-200: a Transformer encoder and decoder with norms before each block, sinusoidal
//! positions, biases everywhere and one matrix for both embeddings and the head.
mod beam;
pub mod config;
mod forward;
mod generate;

use std::path::Path;

use anyhow::{Context, Result};

pub use self::{
    config::{BeamParams, BeamStopping, M2m100Config},
    forward::{Runner, StepRow, runner_bytes},
    generate::{GenerateOptions, Translated, TranslationRequest, generate},
};
use super::{
    transformer::weights::DenseLinear as Linear,
    weights::{check_memory, safetensors::Checkpoint},
};
use crate::{
    device::Device,
    tensor::{DType, Tensor},
};

/// Weight and bias of a LayerNorm, (C) each, F32.
#[derive(Debug)]
pub struct Norm {
    /// Factor.
    pub weight: Tensor,
    /// Summand.
    pub bias: Tensor,
}

/// One attention block, all matrices (C, C).
#[derive(Debug)]
pub struct AttentionWeights {
    /// Before the attention.
    pub norm: Norm,
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Of the joined heads.
    pub out_proj: Linear,
}

/// Norm, (F, C), function, (C, F).
#[derive(Debug)]
pub struct FeedForward {
    /// Before the first linear.
    pub norm: Norm,
    /// (F, C)
    pub fc1: Linear,
    /// (C, F)
    pub fc2: Linear,
}

/// A layer of either side; the decoder's have cross attention.
#[derive(Debug)]
pub struct Layer {
    /// Full in the encoder, causal in the decoder.
    pub self_attn: AttentionWeights,
    /// Over the encoder's states.
    pub encoder_attn: Option<AttentionWeights>,
    /// Of each token.
    pub feed_forward: FeedForward,
}

/// A model: configuration and weights. Norms and biases are F32; the rest F32 or Bf16.
#[derive(Debug)]
pub struct M2m100 {
    /// `config.json`.
    pub config: M2m100Config,
    /// (V, C): embeddings of both sides, and the head.
    pub shared: Tensor,
    /// The encoder's layers.
    pub encoder: Vec<Layer>,
    /// After the encoder's last layer.
    pub encoder_norm: Norm,
    /// The decoder's layers.
    pub decoder: Vec<Layer>,
    /// After the decoder's last layer.
    pub decoder_norm: Norm,
    /// (P + pad + 1, C): row i belongs to position i - pad - 1; of the embeddings' type.
    pub positions: Tensor,
}

type Make<'a> = &'a mut dyn FnMut(&str, &[usize], bool) -> Result<Tensor>;

impl M2m100 {
    /// Loads a Hugging Face directory; matrices as `dtype`, in place in the mapped file where possible.
    pub fn load(dir: &Path, dtype: DType) -> Result<M2m100> {
        let config = M2m100Config::from_dir(dir)?;
        let file = Checkpoint::open(dir)?;
        check_memory(&format!("model {}", dir.display()), config.parameters() * dtype.bytes())?;
        // Which of the tied names a file has differs by who wrote it.
        let names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]
            .map(|n| format!("{n}.weight"));
        let shared = names.iter().find(|n| file.has(n)).unwrap_or(&names[0]);
        M2m100::build(config, &mut |name, dims, matrix| {
            let name = if name == "shared.weight" { shared } else { name };
            file.tensor(name, dims, if matrix { dtype } else { DType::F32 })
        })
        .with_context(|| format!("load model {}", dir.display()))
    }

    /// Builds the weights from `make(name, dims, is_matrix)`.
    pub fn build(config: M2m100Config, make: Make) -> Result<M2m100> {
        let c = config.d_model;
        let shared = make("shared.weight", &[config.vocab_size, c], true)?;
        let side =
            |make: Make, side: &str, layers: usize, f: usize, cross: bool| -> Result<(Vec<Layer>, Norm)> {
                let layers = (0..layers).map(|i| layer(make, &format!("{side}.layers.{i}"), c, f, cross));
                let layers = layers.collect::<Result<_>>()?;
                Ok((layers, norm(make, &format!("{side}.layer_norm"), c)?))
            };
        let (encoder, encoder_norm) =
            side(make, "encoder", config.encoder_layers, config.encoder_ffn_dim, false)?;
        let (decoder, decoder_norm) =
            side(make, "decoder", config.decoder_layers, config.decoder_ffn_dim, true)?;
        let rows = config.max_position_embeddings + config.pad_token_id as usize + 1;
        let mut positions = Tensor::zeros("positions", shared.dtype(), &[rows, c])?;
        positions.write_f32(&sinusoids(rows, c))?;
        Ok(M2m100 { config, shared, encoder, encoder_norm, decoder, decoder_norm, positions })
    }

    /// A copy on `device`, every tensor with its dtype.
    pub fn to_device(&self, device: &Device) -> Result<M2m100> {
        let put = |t: &Tensor| t.to_device(device);
        let norm = |n: &Norm| -> Result<Norm> { Ok(Norm { weight: put(&n.weight)?, bias: put(&n.bias)? }) };
        let linear = |l: &Linear| -> Result<Linear> {
            Ok(Linear { weight: put(&l.weight)?, bias: l.bias.as_ref().map(put).transpose()? })
        };
        let attention = |a: &AttentionWeights| -> Result<AttentionWeights> {
            Ok(AttentionWeights {
                norm: norm(&a.norm)?,
                q_proj: linear(&a.q_proj)?,
                k_proj: linear(&a.k_proj)?,
                v_proj: linear(&a.v_proj)?,
                out_proj: linear(&a.out_proj)?,
            })
        };
        let layers = |layers: &[Layer]| -> Result<Vec<Layer>> {
            let one = |l: &Layer| {
                let f = &l.feed_forward;
                Ok(Layer {
                    self_attn: attention(&l.self_attn)?,
                    encoder_attn: l.encoder_attn.as_ref().map(attention).transpose()?,
                    feed_forward: FeedForward {
                        norm: norm(&f.norm)?,
                        fc1: linear(&f.fc1)?,
                        fc2: linear(&f.fc2)?,
                    },
                })
            };
            layers.iter().map(one).collect()
        };
        Ok(M2m100 {
            config: self.config.clone(),
            shared: put(&self.shared)?,
            encoder: layers(&self.encoder)?,
            encoder_norm: norm(&self.encoder_norm)?,
            decoder: layers(&self.decoder)?,
            decoder_norm: norm(&self.decoder_norm)?,
            positions: put(&self.positions)?,
        })
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.shared.device()
    }

    /// The type of activations: F32 on the CPU, that of the matrices on a GPU.
    pub fn activation_dtype(&self) -> DType {
        if self.shared.gpu().is_some() { self.shared.dtype() } else { DType::F32 }
    }
}

fn norm(make: Make, name: &str, c: usize) -> Result<Norm> {
    let mut one = |kind: &str| make(&format!("{name}.{kind}"), &[c], false);
    Ok(Norm { weight: one("weight")?, bias: one("bias")? })
}

fn linear(make: Make, name: &str, out: usize, inp: usize) -> Result<Linear> {
    let weight = make(&format!("{name}.weight"), &[out, inp], true)?;
    Ok(Linear { weight, bias: Some(make(&format!("{name}.bias"), &[out], false)?) })
}

fn attention(make: Make, name: &str, c: usize) -> Result<AttentionWeights> {
    let mut one = |part: &str| linear(make, &format!("{name}.{part}"), c, c);
    let [q_proj, k_proj, v_proj, out_proj] =
        [one("q_proj")?, one("k_proj")?, one("v_proj")?, one("out_proj")?];
    Ok(AttentionWeights {
        norm: norm(make, &format!("{name}_layer_norm"), c)?,
        q_proj,
        k_proj,
        v_proj,
        out_proj,
    })
}

fn layer(make: Make, name: &str, c: usize, f: usize, cross: bool) -> Result<Layer> {
    let self_attn = attention(make, &format!("{name}.self_attn"), c)?;
    let encoder_attn = if cross { Some(attention(make, &format!("{name}.encoder_attn"), c)?) } else { None };
    let feed_forward = FeedForward {
        fc1: linear(make, &format!("{name}.fc1"), f, c)?,
        fc2: linear(make, &format!("{name}.fc2"), c, f)?,
        norm: norm(make, &format!("{name}.final_layer_norm"), c)?,
    };
    Ok(Layer { self_attn, encoder_attn, feed_forward })
}

/// Row p: [sin(p w_0) ... sin(p w_h-1) | cos(p w_0) ...], h = c / 2, w_i = 10000^(-i / (h - 1)), in f32 as PyTorch computes it: the table is
/// not in the checkpoints.
fn sinusoids(rows: usize, c: usize) -> Vec<f32> {
    let half = c / 2;
    let step = -((10000f64).ln() / (half - 1) as f64) as f32;
    let rates: Vec<f32> = (0..half).map(|i| (i as f32 * step).exp()).collect();
    let mut out = Vec::with_capacity(rows * c);
    for p in 0..rows {
        out.extend(rates.iter().map(|w| (p as f32 * w).sin()));
        out.extend(rates.iter().map(|w| (p as f32 * w).cos()));
    }
    out
}
