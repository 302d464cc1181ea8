//! The cosine of two sentences' embeddings by any XLM-R sentence encoder (multilingual E5 and the like): the mean of the last
//! layer's states, normalised. It sees wrong, garbled and off-target lines, not fluency.
use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};

use super::{EncodedPair, PairEncoder, Scorer, encode_all};
use crate::{
    data::tokenizer::Tokenizer,
    device::Device,
    models::xlm_roberta::{Encoder, LastLayer, XlmRoberta, XlmRobertaConfig, batches},
    tensor::DType,
};

/// Tokenizer and limits of an encoder, and what is put before every sentence.
pub struct SimilarityText {
    tokenizer: Tokenizer,
    prefix: String,
    /// Tokens of a sentence at most.
    longest: usize,
    bos: u32,
    eos: u32,
}

impl SimilarityText {
    /// Reads the tokenizer of a Hugging Face directory; `prefix` is put before every sentence (`query: ` for E5).
    pub fn load(dir: &Path, prefix: &str) -> Result<SimilarityText> {
        let config = XlmRobertaConfig::from_dir(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        ensure!(
            tokenizer.vocab_size() <= config.vocab_size,
            "the tokenizer of {} has {} tokens, the encoder {}: do they belong together?",
            dir.display(),
            tokenizer.vocab_size(),
            config.vocab_size
        );
        let (mut bos, mut eos, longest) = (config.bos_token_id, config.eos_token_id, config.max_tokens());
        if config.model_type == "bert" {
            // Its config does not say; the tokenizer is XLM-R's or WordPiece's.
            let pair = |a, b| tokenizer.id(a).zip(tokenizer.id(b));
            let found = pair("<s>", "</s>").or_else(|| pair("[CLS]", "[SEP]"));
            (bos, eos) = found.with_context(|| {
                format!("the tokenizer of {} has neither <s> and </s> nor [CLS] and [SEP]", dir.display())
            })?;
        }
        Ok(SimilarityText { tokenizer, prefix: prefix.into(), longest, bos, eos })
    }
}

impl PairEncoder for SimilarityText {
    fn encode(&self, source: &str, translation: &str) -> Result<EncodedPair> {
        let mut encoded = EncodedPair::default();
        for text in [source, translation] {
            let mut ids = self.tokenizer.encode(&format!("{}{text}", self.prefix), false)?;
            encoded.cut |= ids.len() > self.longest.saturating_sub(2);
            ids.truncate(self.longest.saturating_sub(2));
            encoded.ids.push([&[self.bos], &ids[..], &[self.eos]].concat());
        }
        Ok(encoded)
    }
}

/// The scorer.
pub struct Similarity {
    name: String,
    model: XlmRoberta,
    encoder: Encoder,
    text: Arc<SimilarityText>,
    batch_tokens: usize,
    cut: usize,
}

impl Similarity {
    /// Loads the encoder of a Hugging Face directory; see [`SimilarityText::load`].
    pub fn load(
        dir: &Path,
        prefix: &str,
        dtype: DType,
        device: &Device,
        batch_tokens: usize,
    ) -> Result<Similarity> {
        let text = SimilarityText::load(dir, prefix)?;
        Similarity::with_text(dir, Arc::new(text), dtype, device, batch_tokens)
    }

    /// As [`Similarity::load`], where the texts' part is loaded already.
    pub fn with_text(
        dir: &Path,
        text: Arc<SimilarityText>,
        dtype: DType,
        device: &Device,
        batch_tokens: usize,
    ) -> Result<Similarity> {
        let model = XlmRoberta::load(dir, dtype)?;
        let model = if device.gpu().is_some() { model.to_device(device)? } else { model };
        let batch_tokens = batch_tokens.max(model.config.max_tokens());
        let encoder = Encoder::new(&model, batch_tokens, LastLayer::All)?;
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let prefix = &text.prefix;
        let name = format!("similarity {name}{}{prefix}", if prefix.is_empty() { "" } else { " " });
        Ok(Similarity { name, model, encoder, text, batch_tokens, cut: 0 })
    }

    /// The embedding of each sentence, given as ids, of length 1.
    fn embed(&mut self, ids: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = ids.iter().map(|s| s.len()).collect();
        let mut out = vec![vec![]; ids.len()];
        for batch in batches(&lengths, self.batch_tokens) {
            let chosen: Vec<&[u32]> = batch.iter().map(|&i| ids[i]).collect();
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
        let encoded = encode_all(&*self.text, pairs)?;
        self.score_encoded(pairs, &encoded)
    }

    fn score_encoded(&mut self, _pairs: &[(String, String)], encoded: &[EncodedPair]) -> Result<Vec<f64>> {
        self.cut += encoded.iter().filter(|e| e.cut).count();
        let ids: Vec<&[u32]> = encoded.iter().flat_map(|e| &e.ids).map(Vec::as_slice).collect();
        let embedded = self.embed(&ids)?;
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
