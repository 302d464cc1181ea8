//! Tensors of a GGUF file under Hugging Face's names, dequantised; q and k rows return to the rotate-half layout.
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::{
    data::gguf::Gguf,
    models::transformer::config::Config,
    ops::quantize::GgmlType,
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
        let path = self.file.path.display();
        let index = *self.by_name.get(name).with_context(|| format!("{path} has no tensor for {name}"))?;
        let entry = &self.file.tensors[index];
        let kind =
            GgmlType::readable(entry.ggml_type).with_context(|| format!("{path}: tensor {}", entry.name))?;
        let shape: Vec<usize> = entry.dims.iter().rev().copied().collect();
        ensure!(shape == dims, "{path}: tensor {} has shape {shape:?}, expected {dims:?}", entry.name);
        let (values, block) = kind.block();
        let cols = dims[dims.len() - 1];
        let rows: usize = dims[..dims.len() - 1].iter().product();
        ensure!(
            cols.is_multiple_of(values),
            "{path}: rows of {} are not whole blocks of {values}",
            entry.name
        );
        let row_bytes = cols / values * block;
        let end = entry.offset + rows * row_bytes;
        ensure!(
            end <= self.file.map.len(),
            "{path}: tensor {} ends at byte {end}, but the file has {}: it is truncated",
            entry.name,
            self.file.map.len()
        );
        let bytes = &self.file.map[entry.offset..end];
        let source = |row: usize| -> &[u8] {
            let row = if is_permuted(name) { interleaved_row(row, self.head_size) } else { row };
            &bytes[row * row_bytes..][..row_bytes]
        };
        let mut out = Tensor::zeros(name, dtype, dims)?;
        match dtype {
            DType::F32 => out
                .f32_mut()?
                .par_chunks_mut(cols)
                .enumerate()
                .for_each(|(row, o)| kind.dequantize(source(row), o)),
            _ => out
                .bf16_mut()?
                .par_chunks_mut(cols)
                .enumerate()
                .for_each(|(row, o)| kind.dequantize_bf16(source(row), o)),
        }
        Ok(out)
    }
}

fn is_permuted(name: &str) -> bool {
    ["q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"].iter().any(|s| name.ends_with(s))
}

/// GGUF keeps the two halves of each head interleaved (x0 y0 x1 y1 ...); Hugging Face has all x, then all y.
fn interleaved_row(row: usize, head_size: usize) -> usize {
    let (head, i) = (row / head_size, row % head_size);
    let half = head_size / 2;
    head * head_size + (i % half) * 2 + i / half
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
