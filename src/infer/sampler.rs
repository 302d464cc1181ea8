//! From logits to the next token: greedy, or sampled after temperature, top-k and top-p in transformers' order.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::random::RowRandom;

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
        ensure!(self.max_new_tokens > 0, "max-new-tokens must be at least 1");
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature {} is negative",
            self.temperature
        );
        ensure!(self.top_p > 0.0 && self.top_p <= 1.0, "top-p {} is not in (0, 1]", self.top_p);
        ensure!(
            self.repetition_penalty > 0.0,
            "repetition-penalty {} is not positive",
            self.repetition_penalty
        );
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
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
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

/// The next token of a row: `logits` (V) are consumed; `seen` is the prompt with all that was generated, `generated` of them new.
pub fn choose(
    logits: &mut [f32],
    seen: &[u32],
    generated: usize,
    params: &SamplingParams,
    random: &mut RowRandom,
) -> u32 {
    if params.repetition_penalty != 1.0 {
        penalize(logits, seen, params.repetition_penalty);
    }
    if params.no_repeat_ngram_size > 0 {
        ban_ngrams(logits, seen, params.no_repeat_ngram_size);
    }
    if generated < params.min_new_tokens {
        ban(logits, &params.eos);
    }
    if params.temperature == 0.0 {
        return argmax(logits);
    }
    sample(logits, params, random)
}

/// The first of the largest.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] || logits[best].is_nan() {
            best = i;
        }
    }
    best as u32
}

fn ban(logits: &mut [f32], tokens: &[u32]) {
    for &t in tokens {
        if let Some(x) = logits.get_mut(t as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
}

fn penalize(logits: &mut [f32], seen: &[u32], penalty: f32) {
    let mut unique = seen.to_vec();
    unique.sort_unstable();
    unique.dedup();
    for t in unique {
        if let Some(x) = logits.get_mut(t as usize) {
            *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
        }
    }
}

fn ban_ngrams(logits: &mut [f32], seen: &[u32], n: usize) {
    if seen.len() + 1 < n {
        return;
    }
    let tail = &seen[seen.len() + 1 - n..];
    let banned: Vec<u32> = seen.windows(n).filter(|w| w[..n - 1] == *tail).map(|w| w[n - 1]).collect();
    ban(logits, &banned);
}

fn sample(logits: &[f32], params: &SamplingParams, random: &mut RowRandom) -> u32 {
    let mut order: Vec<u32> =
        (0..logits.len() as u32).filter(|&i| logits[i as usize] > f32::NEG_INFINITY).collect();
    let by_logit = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let keep = if params.top_k > 0 { params.top_k.min(order.len()) } else { order.len() };
    if keep == 0 {
        return argmax(logits);
    }
    if keep < order.len() {
        order.select_nth_unstable_by(keep - 1, by_logit);
        order.truncate(keep);
    }
    order.sort_unstable_by(by_logit);
    let scaled = |i: u32| logits[i as usize] as f64 / params.temperature as f64;
    let top = scaled(order[0]);
    let mut weights: Vec<f64> = order.iter().map(|&i| (scaled(i) - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    if params.top_p < 1.0 {
        // A token stays if those before it have not reached the sum.
        let mut reached = 0.0;
        let last = weights.iter().position(|w| {
            reached += w / total;
            reached >= params.top_p as f64
        });
        weights.truncate(last.map_or(weights.len(), |i| i + 1));
    }
    let mut left = random.uniform() * weights.iter().sum::<f64>();
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return order[i];
        }
    }
    order[weights.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(logits: &[f32], params: &SamplingParams, n: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for i in 0..n {
            let mut random = RowRandom::new(1, "test", &i.to_string());
            counts[choose(&mut logits.to_vec(), &[], 0, params, &mut random) as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let params = SamplingParams { temperature: 1.0, ..Default::default() };
        let counts = draw(&logits, &params, 20_000);
        let total: f64 = logits.iter().map(|x| (*x as f64).exp()).sum();
        for (x, n) in logits.iter().zip(counts) {
            assert!((n as f64 / 20_000.0 - (*x as f64).exp() / total).abs() < 0.01, "{x} {n}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let params = SamplingParams { temperature: 1.0, top_k: 2, ..Default::default() };
        assert_eq!(draw(&logits, &params, 2000)[2..], [0, 0]);
        // Probabilities .644 .237 .087 .032: .644 < .7, so the second stays as well.
        let params = SamplingParams { temperature: 1.0, top_p: 0.7, ..Default::default() };
        let counts = draw(&logits, &params, 2000);
        assert!(counts[1] > 0 && counts[2..] == [0, 0], "{counts:?}");
    }

    #[test]
    fn penalties_and_bans() {
        let mut random = RowRandom::new(1, "test", "row");
        let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        assert_eq!(choose(&mut [3.0, 2.0, -1.0], &[0], 0, &params, &mut random), 1);
        let params = SamplingParams { no_repeat_ngram_size: 2, ..Default::default() };
        assert_eq!(choose(&mut [0.0, 5.0, 1.0], &[0, 1, 0], 3, &params, &mut random), 2);
        let params = SamplingParams { min_new_tokens: 2, eos: vec![1], ..Default::default() };
        assert_eq!(choose(&mut [0.0, 5.0, 1.0], &[], 1, &params, &mut random), 2);
        assert_eq!(choose(&mut [0.0, 5.0, 1.0], &[], 2, &params, &mut random), 1);
    }
}
