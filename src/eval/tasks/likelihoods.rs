//! Log-likelihoods: of texts, and of continuations of a prompt, split into tokens as lm-eval splits them.
use anyhow::{Context, Result};

use super::{Ask, Item};
use crate::{
    eval::sample::Sample,
    infer::{
        answerer::Answerer,
        engine::{Engine, EngineOptions},
        scoring::{ScoreRequest, Scored},
    },
    metrics::catalog::letter,
};

/// What stands before a text that begins with nothing: the begin token, or else the end token.
fn prefix(answerer: &Answerer) -> Option<u32> {
    answerer.tokenizer.bos().or_else(|| answerer.tokenizer.eos().first().copied())
}

/// Scores each text in two ways. Ours: its tokens behind the first one (behind the begin token, if the model's tokenizer writes one); texts beyond the
/// context are cut. lm-eval's: all of its tokens behind a begin (or end) token that is put before them, in windows of the context's length.
pub(super) fn of_texts(answerer: &Answerer, batch: EngineOptions, items: &[Item]) -> Result<Vec<Sample>> {
    let mut engine = Engine::new(&answerer.model, batch)?;
    let prefix = prefix(answerer).context("the model has neither a begin nor an end token")?;
    let mut samples: Vec<Sample> = items.iter().map(|i| i.sample.clone()).collect();
    let (mut requests, mut of) = (vec![], vec![]);
    for (i, sample) in samples.iter_mut().enumerate() {
        let text = &sample.prompt;
        let tokens = answerer.tokenizer.encode(text, true)?;
        let scored = answerer.tokenizer.adds_bos() && answerer.tokenizer.bos().is_some();
        let kept = &tokens[..tokens.len().min(engine.context())];
        let bytes = match () {
            _ if kept.len() == tokens.len() => text.len(),
            _ => answerer.tokenizer.common_bytes(text, kept)?,
        };
        let begins = 1.min(kept.len());
        // A text of one token that nothing stands before says nothing.
        let bytes = if kept.len() > begins { bytes } else { 0 };
        sample.lengths = vec![bytes, kept.len() - begins, text.len(), usize::from(scored)];
        sample.log_likelihoods = vec![0.0, 0.0];
        if kept.len() > 1 {
            requests.push(ScoreRequest { tokens: kept.to_vec(), start: 1 });
            of.push((i, 0));
        }
        for window in windows(&tokens, prefix, engine.context()) {
            requests.push(window);
            of.push((i, 1));
        }
    }
    for ((i, kind), log_probs) in of.into_iter().zip(engine.log_probs(&requests, &mut |_| {})?) {
        samples[i].log_likelihoods[kind] += sum(&log_probs);
    }
    // Sums of windows have more decimals than their parts.
    samples.iter_mut().flat_map(|s| &mut s.log_likelihoods).for_each(|x| *x = rounded(*x));
    Ok(samples)
}

/// lm-eval's rolling windows: the first one behind `prefix`; each later one scores what is left, up to `context` tokens, behind as many of the
/// tokens before it as fit.
fn windows(tokens: &[u32], prefix: u32, context: usize) -> Vec<ScoreRequest> {
    let first = tokens.len().min(context);
    if first == 0 {
        return vec![];
    }
    let begin: Vec<u32> = [prefix].into_iter().chain(tokens[..first].iter().copied()).collect();
    let mut out = vec![ScoreRequest { tokens: begin, start: 1 }];
    let mut scored = first;
    while scored < tokens.len() {
        let new = (tokens.len() - scored).min(context);
        let end = scored + new;
        let tokens = tokens[end - context - 1..end].to_vec();
        out.push(ScoreRequest { start: tokens.len() - new, tokens });
        scored = end;
    }
    out
}

/// The log-likelihood of a text in nats, to six decimals: more than f32 sums mean.
fn sum(log_probs: &[f32]) -> f64 {
    rounded(log_probs.iter().map(|x| f64::from(*x)).sum())
}

fn rounded(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

/// The tokens of a prompt with its continuation, and the first that is scored, as lm-eval has them: spaces at the prompt's end belong to the
/// continuation, and behind nothing stands the begin (or end) token.
fn request(answerer: &Answerer, prompt: &str, continuation: &str, context: usize) -> Result<ScoreRequest> {
    let (mut tokens, mut start);
    if prompt.is_empty() {
        tokens = answerer.tokenizer.encode(continuation, false)?;
        let before = prefix(answerer).context("the model has neither a begin nor an end token")?;
        if tokens.first() != Some(&before) {
            tokens.insert(0, before);
        }
        start = 1;
    } else {
        // The whole is encoded at once and cut where the prompt ends.
        tokens = answerer.tokenizer.encode(&format!("{prompt}{continuation}"), true)?;
        let given = answerer.tokenizer.encode(prompt.trim_end(), true)?;
        start = given.len().min(tokens.len().saturating_sub(1)).max(1);
    }
    // Too long: the beginning goes. The last token is not run.
    let surplus = tokens.len().saturating_sub(context + 1);
    tokens.drain(..surplus);
    start = start.saturating_sub(surplus).max(1);
    Ok(ScoreRequest { tokens, start })
}

/// Scores every choice of each item.
pub(super) fn of_choices(answerer: &Answerer, batch: EngineOptions, items: &[Item]) -> Result<Vec<Sample>> {
    let mut engine = Engine::new(&answerer.model, batch)?;
    let mut requests = vec![];
    for item in items {
        let Ask::Choose(continuations) = &item.ask else { continue };
        for continuation in continuations {
            requests.push(request(answerer, &item.sample.prompt, continuation, engine.context())?);
        }
    }
    let scores: Vec<Scored> = engine.score(&requests, &mut |_| {})?;
    let mut rest = &scores[..];
    let mut samples = vec![];
    for item in items {
        let Ask::Choose(continuations) = &item.ask else { continue };
        let mut sample = item.sample.clone();
        let (own, others) = rest.split_at(continuations.len().min(rest.len()));
        rest = others;
        sample.log_likelihoods = own.iter().map(|s| sum(&s.log_probs)).collect();
        sample.greedy = own.iter().map(|s| s.greedy).collect();
        let of = &sample.log_likelihoods;
        let best = (0..of.len()).fold(0, |b, i| if of[i] > of[b] { i } else { b });
        sample.response = letter(best);
        samples.push(sample);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_are_lm_evals() {
        // utils.get_rolling_token_windows and make_disjoint_window, tokens 0..9, prefix 100, max_seq_len 4, context_len 1.
        let found = windows(&(0..10).collect::<Vec<_>>(), 100, 4);
        let expected = [(vec![100, 0, 1, 2, 3], 1), (vec![3, 4, 5, 6, 7], 1), (vec![5, 6, 7, 8, 9], 3)];
        assert_eq!(found.len(), expected.len());
        for (window, (tokens, start)) in found.iter().zip(expected) {
            assert_eq!((&window.tokens, window.start), (&tokens, start));
        }
        assert!(windows(&[], 1, 4).is_empty());
    }

    proptest! {
        #[test]
        fn every_token_is_scored_once(n in 0..60u32, context in 1..20usize) {
            let tokens: Vec<u32> = (0..n).collect();
            let all = windows(&tokens, 1000, context);
            let scored: Vec<u32> = all.iter().flat_map(|w| w.tokens[w.start..].to_vec()).collect();
            prop_assert_eq!(scored, tokens);
            prop_assert!(all.iter().all(|w| w.start >= 1 && w.tokens.len() <= context + 1));
        }
    }
}
