//! What is measured: models that are there, or the shapes of well-known ones with random weights.
use anyhow::{Context, Result, bail};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::{
    data::random::RowRandom,
    device::Device,
    error::Error,
    models::{
        m2m100::{M2m100, config::M2m100Config},
        transformer::{config::Config, tree::Place, weights::Transformer},
        xlm_roberta::{XlmRoberta, XlmRobertaConfig},
    },
    tensor::{DType, Tensor},
};

/// Shapes of decoders, by name.
const SHAPES: &str = include_str!("../../benches/shapes.json");

/// The names of the decoders' shapes.
pub fn shapes() -> Vec<String> {
    serde_json::from_str(SHAPES).map_or(vec![], |all: Map<String, Value>| all.keys().cloned().collect())
}

/// The configuration of a shape.
///
/// # Errors
/// An unknown name.
pub fn config(shape: &str) -> Result<Config> {
    let all: Map<String, Value> = serde_json::from_str(SHAPES)?;
    let Some(found) = all.get(shape) else { return unknown(shape, &shapes().join(", ")) };
    serde_json::from_value(found.clone()).with_context(|| format!("shape {shape}"))
}

fn unknown<T>(shape: &str, known: &str) -> Result<T> {
    bail!(Error::setting("shape", format!("--shape {shape}: there is no such shape; there are {known}")))
}

/// Parameters of a model's products: of a layer's seven linears, of the head.
pub fn product_parameters(c: &Config) -> (f64, f64) {
    let [hidden, query, kv, mlp, vocab] =
        [c.hidden_size, c.query_size(), c.kv_size(), c.intermediate_size, c.vocab_size].map(|x| x as f64);
    (2.0 * hidden * (query + kv) + 3.0 * hidden * mlp, hidden * vocab)
}

/// Normal numbers of standard deviation 0.02 (sums of four uniform ones), read on and on from a table: billions of draws would take minutes.
struct Draws {
    table: Vec<f32>,
    narrow: Vec<bf16>,
    next: usize,
}

impl Draws {
    fn new() -> Draws {
        let mut random = RowRandom::new(1, "bench", "weights");
        let scale = 0.02 * 3f64.sqrt();
        let draw = |_| (((0..4).map(|_| random.uniform()).sum::<f64>() - 2.0) * scale) as f32;
        let table: Vec<f32> = (0..1_000_003).map(draw).collect();
        Draws { narrow: table.iter().map(|&x| bf16::from_f32(x)).collect(), table, next: 0 }
    }

    fn fill(&mut self, t: &mut Tensor) -> Result<()> {
        let from = self.next;
        self.next = (from + t.len()) % self.table.len();
        match t.dtype() {
            DType::Bf16 => t.write_bf16(&repeat(t.len(), &self.narrow, from)),
            _ => t.write_f32(&repeat(t.len(), &self.table, from)),
        }
    }
}

/// `len` elements: `table`, over and over, beginning at `from`.
fn repeat<T: Copy + Default + Send + Sync>(len: usize, table: &[T], from: usize) -> Vec<T> {
    let mut out = vec![T::default(); len];
    out.par_chunks_mut(table.len()).for_each(|chunk| {
        let first = chunk.len().min(table.len() - from);
        chunk[..first].copy_from_slice(&table[from..from + first]);
        let rest = chunk.len() - first;
        chunk[first..].copy_from_slice(&table[..rest]);
    });
    out
}

/// A decoder of random weights; norms are 1, biases 0. One tensor at a time is in main memory if the device is a GPU.
///
/// # Errors
/// Too little memory.
pub fn random_decoder(config: Config, dtype: DType, device: &Device) -> Result<Transformer> {
    let mut draws = Draws::new();
    Transformer::build(config, &mut |leaf| {
        let matrix = leaf.place.is_matrix();
        let mut t = Tensor::zeros(&leaf.name, if matrix { dtype } else { DType::F32 }, &leaf.dims)?;
        if matrix {
            draws.fill(&mut t)?;
        } else if !matches!(leaf.place, Place::Bias(..)) {
            t.write_f32(&vec![1.0; t.len()])?;
        }
        if *device == Device::Cpu { Ok(t) } else { t.to_device(device) }
    })
}

/// A tensor of an encoder or a translator by its name: norms 1, biases 0, the rest random.
fn tensor(draws: &mut Draws, dtype: DType, name: &str, dims: &[usize], matrix: bool) -> Result<Tensor> {
    let mut t = Tensor::zeros(name, if matrix { dtype } else { DType::F32 }, dims)?;
    let norm = name.to_ascii_lowercase().contains("norm") && name.ends_with("weight");
    if norm {
        t.write_f32(&vec![1.0; t.len()])?;
    } else if !name.ends_with("bias") {
        draws.fill(&mut t)?;
    }
    Ok(t)
}

/// Names of the translators' shapes.
pub const TRANSLATORS: &str = "nllb-600m, tiny";

/// A translator of random weights, of NLLB-200-distilled-600M's shape or a tiny one.
///
/// # Errors
/// An unknown name, too little memory.
pub fn random_translator(shape: &str, dtype: DType) -> Result<M2m100> {
    let (vocabulary, c, layers, f) = match shape {
        "nllb-600m" => (256_206, 1024, 12, 4096),
        "tiny" => (2000, 64, 2, 128),
        other => return unknown(other, TRANSLATORS),
    };
    let config = json!({"model_type": "m2m_100", "vocab_size": vocabulary, "d_model": c, "encoder_layers": layers, "decoder_layers": layers,
        "encoder_ffn_dim": f, "decoder_ffn_dim": f, "encoder_attention_heads": 16, "decoder_attention_heads": 16, "max_position_embeddings": 1024,
        "scale_embedding": true, "activation_function": "relu", "decoder_start_token_id": 2});
    let mut draws = Draws::new();
    let config = M2m100Config::from_json(&config.to_string())?;
    M2m100::build(config, &mut |name, dims, matrix| tensor(&mut draws, dtype, name, dims, matrix))
}

/// Names of the encoders' shapes.
pub const ENCODERS: &str = "xlm-r-large, tiny";

/// An encoder of random weights, of XLM-R large's shape (CometKiwi's) or a tiny one.
///
/// # Errors
/// An unknown name, too little memory.
pub fn random_encoder(shape: &str, dtype: DType) -> Result<XlmRoberta> {
    let (c, f, layers, heads, vocabulary) = match shape {
        "xlm-r-large" => (1024, 4096, 24, 16, 250_002),
        "tiny" => (64, 256, 3, 4, 1000),
        other => return unknown(other, ENCODERS),
    };
    let config = json!({"model_type": "xlm-roberta", "hidden_size": c, "intermediate_size": f, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocabulary, "max_position_embeddings": 514, "layer_norm_eps": 1e-5});
    let mut draws = Draws::new();
    let config = XlmRobertaConfig::from_value(config)?;
    XlmRoberta::build(config, &mut |name, dims, matrix| tensor(&mut draws, dtype, name, dims, matrix))
}
