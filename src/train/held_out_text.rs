//! Plain text that is not trained on, one a line: how many bits the model in training needs for a byte of it.
//!
//! The measure is that of `eval`'s perplexity tasks (`bits-per-byte`): the tokens behind the first one (behind the begin token, where the tokenizer
//! writes one) by all bytes of the text; a text is cut at [`LONGEST`] tokens.
use std::path::Path;

use anyhow::Result;

use crate::{
    data::{text_file::read_lines, tokenizer::Tokenizer},
    error::{Error, Kind},
    models::transformer::{
        train_step::{LossSum, PackedBatch, TrainStep},
        weights::Transformer,
    },
};

/// Tokens of a text at most, so that no batch has to be longer; what is beyond them does not count.
pub const LONGEST: usize = 512;

/// Bytes of a file of texts at most: every evaluation runs the model over all of it.
const MOST: u64 = 16 << 20;

/// The texts of a file: its lines that are not blank.
///
/// # Errors
/// A file that cannot be read or is no UTF-8, by its line; [`Error::BadInput`] where nothing is in it, or more than an evaluation should take.
pub fn texts(path: &Path) -> Result<Vec<String>> {
    let named = |m: String| Error::bad_input(path.display(), m);
    let bytes = path.metadata().map_or(0, |m| m.len());
    let long = || {
        format!(
            "{} has {} MiB, and every evaluation runs the model over all of it: at most {} MiB were expected; some hundred lines tell enough (head -n 500)",
            path.display(),
            bytes >> 20,
            MOST >> 20
        )
    };
    anyhow::ensure!(bytes <= MOST, Error::bad_input(path.display(), long()));
    let mut lines = read_lines(path).or_kind(named)?;
    lines.retain(|line| !line.trim().is_empty());
    if lines.is_empty() {
        let empty = "there is no text in it: lines of plain text in the source language were expected";
        return Err(Error::bad_input(path.display(), format!("{}: {empty}", path.display())).into());
    }
    Ok(lines)
}

/// Tokenised texts.
pub struct HeldOutText {
    documents: Vec<Vec<u32>>,
    bytes: usize,
}

impl HeldOutText {
    /// `texts` as the model sees them, at most `longest` tokens of each (and [`LONGEST`]).
    ///
    /// # Errors
    /// A text that the tokenizer refuses; texts of which nothing is predicted, each being one token.
    pub fn new(texts: &[String], tokenizer: &Tokenizer, longest: usize, path: &Path) -> Result<HeldOutText> {
        let (mut documents, mut bytes) = (vec![], 0);
        for text in texts {
            let mut tokens = tokenizer.encode(text, true)?;
            let whole = tokens.len();
            tokens.truncate(longest.min(LONGEST));
            if tokens.len() < 2 {
                continue;
            }
            bytes +=
                if tokens.len() == whole { text.len() } else { tokenizer.common_bytes(text, &tokens)? };
            documents.push(tokens);
        }
        let message =
            || format!("{}: none of its texts has two tokens: nothing is predicted", path.display());
        anyhow::ensure!(bytes > 0, Error::bad_input(path.display(), message()));
        Ok(HeldOutText { documents, bytes })
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.documents.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The bits per UTF-8 byte that the model in training needs for the texts, with about `batch_tokens` tokens a forward pass; the step has room for the
    /// longest text.
    ///
    /// # Errors
    /// Tokens beyond the model's vocabulary; a failing device.
    pub fn bits_per_byte(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        batch_tokens: usize,
    ) -> Result<f64> {
        let budget = batch_tokens.max(self.longest());
        let (mut sum, mut batch) = (LossSum::default(), PackedBatch::default());
        for tokens in &self.documents {
            if batch.tokens.len() + tokens.len() > budget {
                sum.add(step.forward(model, &std::mem::take(&mut batch))?);
            }
            batch.push(tokens, &vec![1.0; tokens.len()]);
        }
        sum.add(step.forward(model, &batch)?);
        Ok(sum.weighted_nll / std::f64::consts::LN_2 / self.bytes as f64)
    }
}
