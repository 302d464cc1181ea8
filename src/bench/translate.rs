//! Translation with an NLLB or M2M100 model: random sentences of 10 to 50 tokens, by number of beams.
use anyhow::{Result, ensure};

use super::{Row, Runs, timed};
use crate::{
    data::random::RowRandom,
    models::m2m100::{BeamParams, GenerateOptions, M2m100, TranslationRequest, generate},
};

/// What is translated.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Sentences of a run.
    pub sentences: usize,
    /// New tokens at most.
    pub new: usize,
    /// Hypotheses a sentence; 1 is greedy.
    pub beams: usize,
}

/// `sentences/s` and new `tokens/s`.
///
/// # Errors
/// Too little memory; translations that differ between two runs.
pub fn measure(model: &M2m100, case: Case, runs: Runs) -> Result<Vec<Row>> {
    let mut random = RowRandom::new(1, "bench", "sentences");
    let vocabulary = model.config.vocab_size;
    let low = 100.min(vocabulary / 2);
    let requests: Vec<TranslationRequest> = (0..case.sentences)
        .map(|_| {
            let length = 10 + random.below(41);
            let words = (0..length).map(|_| (low + random.below(vocabulary - 2 * low)) as u32);
            let eos = model.config.eos_token_id;
            TranslationRequest { tokens: words.chain([eos]).collect(), forced_bos: Some(low as u32) }
        })
        .collect();
    let params = BeamParams { num_beams: case.beams, max_length: case.new + 1, ..BeamParams::default() };
    let mut before: Option<Vec<Vec<u32>>> = None;
    let mut tokens = 0;
    let seconds = timed(&model.device(), runs, || {
        let found = generate(model, &requests, &params, GenerateOptions::default(), &mut |_| {})?;
        // Without the start token.
        tokens = found.iter().map(|t| t.tokens.len().saturating_sub(1)).sum();
        let found: Vec<Vec<u32>> = found.into_iter().map(|t| t.tokens).collect();
        ensure!(
            before.as_ref().is_none_or(|b| *b == found),
            "the same sentences are translated differently in two runs"
        );
        before = Some(found);
        Ok(())
    })?;
    let name = if case.beams == 1 { "greedy".into() } else { format!("{} beams", case.beams) };
    Ok(vec![
        Row::rate(format!("translation, {name}"), "sentences/s", case.sentences as f64, &seconds),
        Row::rate(format!("translation, {name}, new tokens"), "tokens/s", tokens as f64, &seconds),
    ])
}
