//! A vector a sentence and layer, from the model's hidden states.
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::models::{transformer::decode::Decoder, transformer::weights::Transformer};

/// How a sentence's tokens become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Their mean
    #[default]
    Mean,
    /// The last of them
    Last,
}

/// `vectors[layer][sentence]`: layer 0 are the embeddings, the last layer stands behind the final norm (transformers'
/// `output_hidden_states`). Sentences beyond the model's context are cut. A vector does not depend on what runs beside it.
pub fn sentence_vectors(
    model: &Transformer,
    sentences: &[Vec<u32>],
    pooling: Pooling,
    batch_tokens: usize,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Vec<f32>>>> {
    let config = &model.config;
    let (context, width, vocab) = (config.max_position_embeddings, config.hidden_size, config.vocab_size);
    for (i, tokens) in sentences.iter().enumerate() {
        ensure!(!tokens.is_empty(), "sentence {i} has no tokens");
        ensure!(
            tokens.iter().all(|&t| (t as usize) < vocab),
            "sentence {i}: a token is beyond the vocabulary of {vocab}"
        );
    }
    let cut: Vec<&[u32]> = sentences.iter().map(|t| &t[..t.len().min(context)]).collect();
    let longest = cut.iter().map(|t| t.len()).max().unwrap_or(0);
    let mut out = vec![vec![vec![]; sentences.len()]; config.num_hidden_layers + 1];
    if longest == 0 {
        return Ok(out);
    }
    let budget = batch_tokens.max(longest);
    let mut decoder = Decoder::new(model, budget, longest)?;
    let mut from = 0;
    while from < cut.len() {
        let (mut to, mut tokens) = (from, 0);
        while to < cut.len() && tokens + cut[to].len() <= budget {
            tokens += cut[to].len();
            to += 1;
        }
        decoder.hidden_states(model, &cut[from..to], &mut |layer, states| {
            let values = states.to_f32_vec()?;
            let mut at = 0;
            for (i, sentence) in cut[from..to].iter().enumerate() {
                let own = &values[at * width..(at + sentence.len()) * width];
                out[layer][from + i] = pooled(own, width, pooling);
                at += sentence.len();
            }
            Ok(())
        })?;
        on_done(to - from);
        from = to;
    }
    Ok(out)
}

/// rows (tokens, width) to one vector.
fn pooled(rows: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    match pooling {
        Pooling::Last => rows[rows.len() - width..].to_vec(),
        Pooling::Mean => {
            let n = (rows.len() / width) as f64;
            (0..width)
                .map(|c| (rows.iter().skip(c).step_by(width).map(|&x| f64::from(x)).sum::<f64>() / n) as f32)
                .collect()
        }
    }
}
