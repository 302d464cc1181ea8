//! The cosine of two sentences' embeddings by any XLM-R sentence encoder (multilingual E5 and the like): the mean of the last
//! layer's states, normalised. It sees wrong, garbled and off-target lines, not fluency.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::Scorer;
use crate::{
    data::tokenizer::Tokenizer,
    device::Device,
    models::xlm_roberta::{Encoder, LastLayer, XlmRoberta, batches},
    tensor::DType,
};

/// The scorer.
pub struct Similarity {
    name: String,
    model: XlmRoberta,
    encoder: Encoder,
    tokenizer: Tokenizer,
    prefix: String,
    batch_tokens: usize,
    cut: usize,
}

impl Similarity {
    /// Loads the encoder of a Hugging Face directory; `prefix` is put before every sentence (`query: ` for E5).
    pub fn load(
        dir: &Path,
        prefix: &str,
        dtype: DType,
        device: &Device,
        batch_tokens: usize,
    ) -> Result<Similarity> {
        let model = XlmRoberta::load(dir, dtype)?;
        let model = if device.gpu().is_some() { model.to_device(device)? } else { model };
        let tokenizer = Tokenizer::load(dir)?;
        ensure!(
            tokenizer.vocab_size() <= model.config.vocab_size,
            "the tokenizer of {} has {} tokens, the encoder {}: do they belong together?",
            dir.display(),
            tokenizer.vocab_size(),
            model.config.vocab_size
        );
        let batch_tokens = batch_tokens.max(model.config.max_tokens());
        let encoder = Encoder::new(&model, batch_tokens, LastLayer::All)?;
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = format!("similarity {name}{}{prefix}", if prefix.is_empty() { "" } else { " " });
        Ok(Similarity { name, model, encoder, tokenizer, prefix: prefix.into(), batch_tokens, cut: 0 })
    }

    /// The embedding of each sentence, of length 1. A sentence longer than the encoder's positions is cut.
    pub fn embed(&mut self, sentences: &[&str]) -> Result<Vec<Vec<f32>>> {
        let c = &self.model.config;
        let longest = c.max_tokens();
        let (bos, eos) = (c.bos_token_id, c.eos_token_id);
        let encode = |text: &&str| -> Result<(Vec<u32>, bool)> {
            let mut ids = self.tokenizer.encode(&format!("{}{text}", self.prefix), false)?;
            let cut = ids.len() > longest.saturating_sub(2);
            ids.truncate(longest.saturating_sub(2));
            Ok(([&[bos], &ids[..], &[eos]].concat(), cut))
        };
        let encoded: Vec<(Vec<u32>, bool)> = sentences.par_iter().map(encode).collect::<Result<_>>()?;
        self.cut += encoded.iter().filter(|e| e.1).count();
        let ids: Vec<Vec<u32>> = encoded.into_iter().map(|e| e.0).collect();
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let mut out = vec![vec![]; sentences.len()];
        for batch in batches(&lengths, self.batch_tokens) {
            let chosen: Vec<&[u32]> = batch.iter().map(|&i| ids[i].as_slice()).collect();
            let last = self.model.config.num_hidden_layers;
            self.encoder.forward(&self.model, &chosen, &mut |s| {
                if s.layer < last {
                    return Ok(());
                }
                let (states, width) = (s.states.to_f32_vec()?, s.states.rows_cols().1);
                let mut at = 0;
                for &i in &batch {
                    out[i] = pooled(&states[at * width..(at + lengths[i]) * width], width);
                    at += lengths[i];
                }
                Ok(())
            })?;
        }
        Ok(out)
    }
}

/// The rows' mean, of length 1.
fn pooled(states: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; width];
    for row in states.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(s, &x)| *s += x as f64);
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    sum.into_iter().map(|x| (x / length) as f32).collect()
}

impl Scorer for Similarity {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        let sentences: Vec<&str> = pairs.iter().flat_map(|(a, b)| [a.as_str(), b.as_str()]).collect();
        let embedded = self.embed(&sentences)?;
        let cosine = |pair: &[Vec<f32>]| -> Result<f64> {
            let dot: f64 = pair[0].iter().zip(&pair[1]).map(|(&a, &b)| a as f64 * b as f64).sum();
            ensure!(dot.is_finite(), "{}: a cosine is {dot}: are the weights damaged?", self.name);
            Ok(dot.clamp(-1.0, 1.0))
        };
        embedded.chunks_exact(2).map(cosine).collect::<Result<_>>().context("similarity")
    }

    fn cut(&self) -> usize {
        self.cut
    }
}
