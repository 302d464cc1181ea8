//! The weights of a Llama or Mistral decoder.
use std::path::Path;

use anyhow::{Context, Result};

use super::{
    super::weights::{Source, check_memory},
    config::Config,
};
use crate::{
    data::random::RowRandom,
    device::{Device, DeviceChoice},
    tensor::{DType, Tensor},
};

/// A linear layer: y = x weightᵀ + bias.
#[derive(Debug)]
pub struct Linear {
    /// (out, in)
    pub weight: Tensor,
    /// (out), F32
    pub bias: Option<Tensor>,
}

/// The names of a layer's linears, in the order of [`LayerWeights::linears`].
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// One decoder layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// (C), F32
    pub input_layernorm: Tensor,
    /// (NH * HS, C)
    pub q_proj: Linear,
    /// (NKV * HS, C)
    pub k_proj: Linear,
    /// (NKV * HS, C)
    pub v_proj: Linear,
    /// (C, NH * HS)
    pub o_proj: Linear,
    /// (C), F32
    pub post_attention_layernorm: Tensor,
    /// (F, C)
    pub gate_proj: Linear,
    /// (F, C)
    pub up_proj: Linear,
    /// (C, F)
    pub down_proj: Linear,
}

impl LayerWeights {
    /// The seven linears, in the order of [`LINEARS`].
    pub fn linears(&self) -> [&Linear; 7] {
        [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]
    }
    /// The same for writing.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let l = self;
        [
            &mut l.q_proj,
            &mut l.k_proj,
            &mut l.v_proj,
            &mut l.o_proj,
            &mut l.gate_proj,
            &mut l.up_proj,
            &mut l.down_proj,
        ]
    }
}

/// All weights. Norms and biases are F32; the rest F32 or Bf16.
#[derive(Debug)]
pub struct LlamaWeights {
    /// (V, C)
    pub embed_tokens: Tensor,
    /// One for each layer.
    pub layers: Vec<LayerWeights>,
    /// (C), F32
    pub norm: Tensor,
    /// (V, C); the same memory as `embed_tokens` if tied.
    pub lm_head: Tensor,
}

/// A model: configuration and weights.
#[derive(Debug)]
pub struct Llama {
    /// `config.json`.
    pub config: Config,
    /// The tensors.
    pub weights: LlamaWeights,
}

impl Llama {
    /// Loads a Hugging Face directory or a `.gguf` file; matrices as `dtype`, in place in the mapped file where possible.
    pub fn load(path: &Path, dtype: DType) -> Result<Llama> {
        let (config, source) = Source::open(path)?;
        check_memory(&format!("model {}", path.display()), config.parameters() * dtype.bytes())?;
        let weights = LlamaWeights::build(&config, &mut |name, dims, matrix| {
            source.tensor(name, dims, if matrix { dtype } else { DType::F32 })
        })
        .with_context(|| format!("load model {}", path.display()))?;
        Ok(Llama { config, weights })
    }

    /// Freshly initialised in F32: matrices normal with standard deviation 0.02 (by a sum of twelve uniforms), norms 1, biases 0.
    pub fn random(config: Config, seed: u64) -> Result<Llama> {
        check_memory("the model", config.parameters() * 4)?;
        let std = config.extra.get("initializer_range").and_then(|x| x.as_f64()).unwrap_or(0.02);
        let weights = LlamaWeights::build(&config, &mut |name, dims, matrix| {
            let mut t = Tensor::zeros(name, DType::F32, dims)?;
            let values = t.f32_mut()?;
            if matrix {
                let mut random = RowRandom::new(seed, "init", name);
                for x in values {
                    let sum: f64 = (0..12).map(|_| random.uniform()).sum();
                    *x = ((sum - 6.0) * std) as f32;
                }
            } else if !name.ends_with("bias") {
                values.fill(1.0);
            }
            Ok(t)
        })?;
        Ok(Llama { config, weights })
    }

    /// Copies every tensor into writable F32 memory, so that all of them can be trained.
    pub fn make_trainable(&mut self) -> Result<()> {
        check_memory("a trainable copy of the model", self.config.parameters() * 4)?;
        let old = self.weights.named(&self.config);
        let mut old = old.into_iter();
        self.weights = LlamaWeights::build(&self.config, &mut |name, dims, _| {
            let (_, source) = old.next().context("the model changed while it was copied")?;
            Tensor::from_f32(name, dims, &source.to_f32_vec()?)
        })?;
        Ok(())
    }

    /// A copy on `device`, every tensor with its dtype; tied ones stay tied.
    pub fn to_device(&self, device: &Device) -> Result<Llama> {
        let mut source = self.weights.named(&self.config).into_iter();
        let weights = LlamaWeights::build(&self.config, &mut |_, _, _| {
            let (_, t) = source.next().context("the model changed while it was copied")?;
            t.to_device(device)
        })
        .with_context(|| format!("copy the model to {device:?}"))?;
        Ok(Llama { config: self.config.clone(), weights })
    }

    /// The model on the chosen device; on the CPU itself.
    pub fn place(self, device: DeviceChoice) -> Result<Llama> {
        if device == DeviceChoice::Cpu { Ok(self) } else { self.to_device(&device.open()?) }
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.weights.embed_tokens.device()
    }

    /// The type of activations: F32 on the CPU, that of the matrices on a GPU.
    pub fn activation_dtype(&self) -> DType {
        match self.device() {
            Device::Cpu => DType::F32,
            Device::Cuda(_) => self.weights.embed_tokens.dtype(),
        }
    }

    /// Bytes of the weights (tied ones once).
    pub fn bytes(&self) -> usize {
        self.weights.named(&self.config).iter().map(|(_, t)| t.bytes()).sum()
    }
}

impl LlamaWeights {
    /// Builds the weights from `make(name, dims, is_matrix)`, called once for each tensor in [`LlamaWeights::named`]'s order.
    pub fn build(
        config: &Config,
        make: &mut dyn FnMut(&str, &[usize], bool) -> Result<Tensor>,
    ) -> Result<LlamaWeights> {
        let (c, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (q, kv) = (config.query_size(), config.kv_size());
        let embed_tokens = make("model.embed_tokens.weight", &[v, c], true)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let name = |module: &str, kind: &str| format!("model.layers.{i}.{module}.{kind}");
            let mut linear = |module: &str, out: usize, inp: usize, bias: bool| -> Result<Linear> {
                let weight = make(&name(module, "weight"), &[out, inp], true)?;
                let bias = if bias { Some(make(&name(module, "bias"), &[out], false)?) } else { None };
                Ok(Linear { weight, bias })
            };
            let (ab, mb) = (config.attention_bias, config.mlp_bias);
            let [q_proj, k_proj, v_proj] = [
                linear(LINEARS[0], q, c, ab)?,
                linear(LINEARS[1], kv, c, ab)?,
                linear(LINEARS[2], kv, c, ab)?,
            ];
            let o_proj = linear(LINEARS[3], c, q, ab)?;
            let (gate_proj, up_proj) = (linear(LINEARS[4], f, c, mb)?, linear(LINEARS[5], f, c, mb)?);
            let down_proj = linear(LINEARS[6], c, f, mb)?;
            let input_layernorm = make(&name("input_layernorm", "weight"), &[c], false)?;
            let post_attention_layernorm = make(&name("post_attention_layernorm", "weight"), &[c], false)?;
            layers.push(LayerWeights {
                input_layernorm,
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                post_attention_layernorm,
                gate_proj,
                up_proj,
                down_proj,
            });
        }
        let norm = make("model.norm.weight", &[c], false)?;
        let lm_head = if config.tie_word_embeddings {
            embed_tokens.alias()
        } else {
            make("lm_head.weight", &[v, c], true)?
        };
        Ok(LlamaWeights { embed_tokens, layers, norm, lm_head })
    }

    /// Every tensor once, by its Hugging Face name; a tied head is not listed.
    pub fn named(&self, config: &Config) -> Vec<(String, &Tensor)> {
        let mut out = vec![("model.embed_tokens.weight".to_string(), &self.embed_tokens)];
        for (i, layer) in self.layers.iter().enumerate() {
            for (module, linear) in LINEARS.iter().zip(layer.linears()) {
                out.push((format!("model.layers.{i}.{module}.weight"), &linear.weight));
                if let Some(bias) = &linear.bias {
                    out.push((format!("model.layers.{i}.{module}.bias"), bias));
                }
            }
            out.push((format!("model.layers.{i}.input_layernorm.weight"), &layer.input_layernorm));
            let post = &layer.post_attention_layernorm;
            out.push((format!("model.layers.{i}.post_attention_layernorm.weight"), post));
        }
        out.push(("model.norm.weight".into(), &self.norm));
        if !config.tie_word_embeddings {
            out.push(("lm_head.weight".into(), &self.lm_head));
        }
        out
    }
}
