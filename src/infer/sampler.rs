//! How tokens are chosen: settings, what a model asks for, and what a row must not choose. The choice itself is `ops::sampling`.
use crate::error::Error;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::generation_config::Rules;
use crate::ops::sampling::Sampling;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Tokens generated at most.
    pub max_new_tokens: usize,
    /// Tokens of prompt and reply at most; it replaces `max_new_tokens`.
    pub max_length: Option<usize>,
    /// End tokens are not chosen before this many.
    pub min_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens that are at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token seen (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// No n-gram of this length occurs twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Any of these ends a row.
    pub eos: Vec<u32>,
    /// What the model asks for beside these.
    pub rules: Rules,
    /// Of every draw, together with the row's id.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            max_new_tokens: 256,
            max_length: None,
            min_new_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            eos: vec![],
            rules: Rules::default(),
            seed: 42,
        }
    }
}

impl SamplingParams {
    /// Errors on values that mean nothing.
    pub fn check(&self) -> Result<()> {
        let (t, p, m, r) = (self.temperature, self.top_p, self.min_p, self.repetition_penalty);
        let wrong = |name: &str, message: String| Error::setting(name, message);
        ensure!(self.max_new_tokens > 0, wrong("max-new-tokens", "max-new-tokens must be at least 1".into()));
        ensure!(t >= 0.0 && t.is_finite(), wrong("temperature", format!("temperature {t} is negative")));
        ensure!(p > 0.0 && p <= 1.0, wrong("top-p", format!("top-p {p} is not in (0, 1]")));
        ensure!((0.0..=1.0).contains(&m), wrong("min-p", format!("min-p {m} is not in 0..1")));
        let positive = || format!("repetition-penalty {r} is not positive");
        ensure!(r > 0.0, wrong("repetition-penalty", positive()));
        Ok(())
    }
}

impl SamplingParams {
    /// What the op needs of these.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    /// Tokens of prompt and reply at most, for a prompt of `prompt`.
    pub fn limit(&self, prompt: usize) -> usize {
        self.max_length.unwrap_or(prompt.saturating_add(self.max_new_tokens))
    }

    /// The tokens that a row must not choose next, rising: `seen` is the prompt with all that was generated, `generated` of them new.
    pub fn banned(&self, seen: &[u32], generated: usize, vocab: usize) -> Vec<u32> {
        let (mut banned, rules) = (vec![], &self.rules);
        let n = self.no_repeat_ngram_size;
        if n > 0 && seen.len() + 1 >= n {
            let tail = &seen[seen.len() + 1 - n..];
            banned.extend(seen.windows(n).filter(|w| w[..n - 1] == *tail).map(|w| w[n - 1]));
        }
        for (last, before) in rules.bad_words_ids.iter().filter_map(|word| word.split_last()) {
            // transformers keeps end tokens, whatever the list says.
            let kept = before.is_empty() && self.eos.contains(last);
            if !kept && seen.ends_with(before) {
                banned.push(*last);
            }
        }
        if generated < self.min_new_tokens || seen.len() < rules.min_length {
            banned.extend(&self.eos);
        }
        banned.extend(&rules.suppress_tokens);
        // Where the first token is forced, the next one counts as the first.
        let forced = rules.forced_bos_token_id.is_some() && seen.len() - generated == 1;
        if generated == forced as usize {
            banned.extend(&rules.begin_suppress_tokens);
        }
        banned.retain(|&t| (t as usize) < vocab);
        banned.sort_unstable();
        banned.dedup();
        banned
    }

    /// The token that has to come next, if one has: `seen` is the prompt of `prompt` tokens with all that was generated.
    pub fn forced(&self, seen: &[u32], prompt: usize) -> Option<u32> {
        // transformers gives all of them one score and takes the first.
        let last = self.rules.forced_eos_token_id.iter().min().copied();
        let last = last.filter(|_| seen.len() + 1 == self.limit(prompt));
        last.or(self.rules.forced_bos_token_id.filter(|_| seen.len() == 1))
    }

    /// Tokens that the op's lists may hold for a row of up to `length` tokens.
    pub fn listed(&self, length: usize) -> usize {
        let lists = (self.repetition_penalty != 1.0) as usize + (self.no_repeat_ngram_size > 0) as usize;
        let r = &self.rules;
        let of_rules = r.suppress_tokens.len() + r.begin_suppress_tokens.len() + r.bad_words_ids.len();
        lists * length + self.eos.len() + of_rules
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
    #[test]
    fn a_models_own_rules_ban_and_force() {
        let rules = Rules {
            min_length: 5,
            suppress_tokens: vec![8, 99],
            begin_suppress_tokens: vec![3],
            bad_words_ids: vec![vec![4], vec![1, 2, 6], vec![7], vec![5, 0]],
            forced_bos_token_id: Some(2),
            forced_eos_token_id: vec![7, 5],
            ..Default::default()
        };
        let params = SamplingParams { rules, eos: vec![7], max_new_tokens: 3, ..Default::default() };
        assert_eq!(params.banned(&[1, 2], 0, 9), [3, 4, 6, 7, 8]);
        assert_eq!(params.banned(&[9, 1, 2, 1, 2], 3, 9), [4, 6, 8]);
        assert_eq!(params.banned(&[9, 9, 9, 9, 5], 1, 9), [0, 4, 8]);
        // Behind a prompt of one the first token is forced, and the second is the first that is chosen.
        assert_eq!((params.forced(&[1], 1), params.forced(&[1, 2], 1)), (Some(2), None));
        assert_eq!(params.banned(&[2, 2, 2, 1, 2], 1, 9), [4, 6, 8]);
        assert_eq!(params.banned(&[0, 2], 1, 9), [3, 4, 7, 8]);
        assert_eq!((params.forced(&[1, 2, 3], 1), params.forced(&[1, 2, 3, 4], 2)), (Some(5), Some(5)));
        let long = SamplingParams { max_length: Some(9), ..params };
        assert_eq!((long.limit(4), long.forced(&[1; 8], 4), long.forced(&[1; 6], 4)), (9, Some(5), None));
    }
}
