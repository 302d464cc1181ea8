//! How tokens are chosen: settings, what a model asks for, and what a row must not choose. The choice itself is `ops::sampling`.
use std::path::Path;

use crate::data::files::FileContext;
use crate::error::Error;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ops::sampling::Sampling;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Tokens generated at most.
    pub max_new_tokens: usize,
    /// End tokens are not chosen before this many.
    pub min_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Divides positive and multiplies negative logits of every token seen (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// No n-gram of this length occurs twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Any of these ends a row.
    pub eos: Vec<u32>,
    /// Of every draw, together with the row's id.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            max_new_tokens: 256,
            min_new_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            eos: vec![],
            seed: 42,
        }
    }
}

impl SamplingParams {
    /// Errors on values that mean nothing.
    pub fn check(&self) -> Result<()> {
        let (t, p, r) = (self.temperature, self.top_p, self.repetition_penalty);
        let wrong = |name: &str, message: String| Error::setting(name, message);
        ensure!(self.max_new_tokens > 0, wrong("max-new-tokens", "max-new-tokens must be at least 1".into()));
        ensure!(t >= 0.0 && t.is_finite(), wrong("temperature", format!("temperature {t} is negative")));
        ensure!(p > 0.0 && p <= 1.0, wrong("top-p", format!("top-p {p} is not in (0, 1]")));
        let positive = || format!("repetition-penalty {r} is not positive");
        ensure!(r > 0.0, wrong("repetition-penalty", positive()));
        Ok(())
    }
}

/// What a model's generation_config.json asks for; absent fields stay `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// `top_k`.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f32>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f32>,
    /// `no_repeat_ngram_size`.
    pub no_repeat_ngram_size: Option<usize>,
    /// `max_new_tokens`.
    pub max_new_tokens: Option<usize>,
    /// `min_new_tokens`.
    pub min_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads `DIR/generation_config.json`; a model without one asks for nothing.
    pub fn from_model(model: &Path) -> Result<GenerationConfig> {
        let path = model.join("generation_config.json");
        if !path.is_file() {
            return Ok(GenerationConfig::default());
        }
        let text = std::fs::read_to_string(&path).reading(&path)?;
        let json: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let number = |key: &str| json[key].as_f64();
        let count = |key: &str| json[key].as_u64().map(|x| x as usize);
        let sample = json["do_sample"].as_bool().unwrap_or(false);
        Ok(GenerationConfig {
            temperature: Some(if sample { number("temperature").unwrap_or(1.0) as f32 } else { 0.0 }),
            // transformers' default when sampling.
            top_k: if sample { count("top_k").or(Some(50)) } else { None },
            top_p: number("top_p").map(|x| x as f32).filter(|_| sample),
            repetition_penalty: number("repetition_penalty").map(|x| x as f32),
            no_repeat_ngram_size: count("no_repeat_ngram_size"),
            max_new_tokens: count("max_new_tokens"),
            min_new_tokens: count("min_new_tokens"),
        })
    }
}

impl SamplingParams {
    /// What the op needs of these.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    /// The tokens that a row must not choose next, rising: `seen` is the prompt with all that was generated, `generated` of them new.
    pub fn banned(&self, seen: &[u32], generated: usize, vocab: usize) -> Vec<u32> {
        let mut banned = vec![];
        let n = self.no_repeat_ngram_size;
        if n > 0 && seen.len() + 1 >= n {
            let tail = &seen[seen.len() + 1 - n..];
            banned.extend(seen.windows(n).filter(|w| w[..n - 1] == *tail).map(|w| w[n - 1]));
        }
        if generated < self.min_new_tokens {
            banned.extend(self.eos.iter().filter(|&&t| (t as usize) < vocab));
        }
        banned.sort_unstable();
        banned.dedup();
        banned
    }

    /// Tokens that the op's lists may hold for a row of up to `length` tokens.
    pub fn listed(&self, length: usize) -> usize {
        let lists = (self.repetition_penalty != 1.0) as usize + (self.no_repeat_ngram_size > 0) as usize;
        lists * length + self.eos.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_ngrams_and_early_ends_are_banned() {
        let params = SamplingParams { no_repeat_ngram_size: 2, ..Default::default() };
        assert_eq!(params.banned(&[0, 1, 0, 3, 0], 3, 9), [1, 3]);
        assert!(params.banned(&[0], 0, 9).is_empty());
        let params = SamplingParams { min_new_tokens: 2, eos: vec![7, 1, 99], ..Default::default() };
        assert_eq!(params.banned(&[1], 1, 9), [1, 7]);
        assert!(params.banned(&[1], 2, 9).is_empty());
        let params = SamplingParams { no_repeat_ngram_size: 1, ..Default::default() };
        assert_eq!(params.banned(&[4, 2, 4], 0, 9), [2, 4]);
    }
}
