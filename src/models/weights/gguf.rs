//! Tensors of a GGUF file under Hugging Face's names, dequantised or as the blocks that they are; q and k rows return to the rotate-half layout.
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use crate::{
    data::gguf::{Gguf, GgufTensor},
    models::transformer::{
        config::Config,
        weight::{ComputeType, Weight},
    },
    ops::quantize::{BlockFormat, Blocks, GgmlType, RowOrder},
    tensor::{DType, Tensor},
};

/// An open file and where each tensor is.
pub struct Checkpoint {
    file: Gguf,
    by_name: HashMap<String, usize>,
    head_size: usize,
}

impl Checkpoint {
    /// Of a file whose configuration is `config`.
    pub fn new(file: Gguf, config: &Config) -> Checkpoint {
        let by_name = file.tensors.iter().enumerate().map(|(i, t)| (hugging_face_name(&t.name), i)).collect();
        Checkpoint { file, by_name, head_size: config.head_size() }
    }

    /// True if there is a tensor of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// See [`super::Source::tensor`].
    pub fn tensor(&self, name: &str, dims: &[usize], dtype: DType) -> Result<Tensor> {
        self.blocks(name, dims, dtype)?.to_dense(dtype)?.view(dims)
    }

    /// See [`super::Source::weight`].
    pub fn weight(&self, name: &str, dims: &[usize], compute: ComputeType) -> Result<Weight> {
        let blocks = self.blocks(name, dims, compute.dtype())?;
        let format = blocks.format();
        let as_it_is = match format.kind {
            GgmlType::F32 => compute == ComputeType::F32,
            GgmlType::Bf16 => compute == ComputeType::Bf16,
            _ => false,
        };
        if as_it_is && format.order == RowOrder::Straight {
            let (map, offset) = (self.file.map.clone(), self.entry(name)?.offset);
            // Where it is misaligned, which no writer of today does, it is read as blocks of one value.
            if let Ok(t) = Tensor::mapped(name, map, offset, compute.dtype(), dims) {
                return Ok(Weight::Dense(t));
            }
        }
        Ok(Weight::Blocks(blocks))
    }

    fn entry(&self, name: &str) -> Result<&GgufTensor> {
        let path = self.file.path.display();
        let index = *self.by_name.get(name).with_context(|| format!("{path} has no tensor for {name}"))?;
        Ok(&self.file.tensors[index])
    }

    /// A tensor of any rank as blocks in the mapped file; nothing is read yet.
    fn blocks(&self, name: &str, dims: &[usize], compute: DType) -> Result<Blocks> {
        let (path, entry) = (self.file.path.display(), self.entry(name)?);
        let kind =
            GgmlType::readable(entry.ggml_type).with_context(|| format!("{path}: tensor {}", entry.name))?;
        let shape: Vec<usize> = entry.dims.iter().rev().copied().collect();
        ensure!(shape == dims, "{path}: tensor {} has shape {shape:?}, expected {dims:?}", entry.name);
        let (&cols, rows) = dims.split_last().with_context(|| format!("{name} has no dimension"))?;
        let mut format =
            BlockFormat { kind, shape: [rows.iter().product(), cols], order: RowOrder::Straight, compute };
        if is_permuted(name) {
            format.order = RowOrder::Interleaved(self.head_size);
            // A bias has a row for each row of its matrix.
            if rows.is_empty() {
                format.shape = [cols, 1];
            }
        }
        Blocks::mapped(name, self.file.map.clone(), entry.offset, format)
            .with_context(|| format!("{path}: tensor {}", entry.name))
    }
}

fn is_permuted(name: &str) -> bool {
    ["q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"].iter().any(|s| name.ends_with(s))
}

fn hugging_face_name(ggml: &str) -> String {
    match ggml {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let Some((layer, rest)) = ggml.strip_prefix("blk.").and_then(|s| s.split_once('.')) else {
        return ggml.into();
    };
    let (stem, kind) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let module = match stem {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{layer}.{module}.{kind}")
}
