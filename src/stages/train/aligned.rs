//! The parallel sentences that a training aligns in the middle of its model: read, tokenised, counted.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Args;
use crate::{
    data::{parallel::Sentences, tokenizer::Tokenizer},
    error::Error,
    models::{transformer::config::Config, weights::WeightSource},
    pipeline::{identity::Inputs, manifest::Manifest},
    recipe::train::Method,
    report::out::say,
    train::middle_layer::MiddleLayer,
};

/// Sentences that are aligned, and what became of the others.
pub(super) struct Aligned {
    /// What the trainer takes.
    pub sentences: MiddleLayer,
    layers: usize,
    empty: usize,
    repeated: usize,
    long: usize,
    /// Tokens that the model takes, and where the first longer sentence stands.
    context: usize,
    first_long: Option<String>,
}

/// With the files of the sentences, where any are aligned.
pub(super) fn inputs(args: &Args, inputs: Inputs) -> Inputs {
    let s = &args.settings;
    if s.aligning().is_none() {
        return inputs;
    }
    let Some(file) = s.alignment_file.as_ref().or(args.parallel.as_ref()) else { return inputs };
    let name = if s.alignment_file.is_some() { "alignment-file" } else { "parallel sentences" };
    inputs.beside(name, file).maybe("alignment-target-file", s.alignment_target_file.as_deref())
}

impl Aligned {
    /// Those that the arguments name, as the model at `path` takes them; none where none are aligned.
    ///
    /// # Errors
    /// No sentences, or too few for a step; files that cannot be read; a layer that the model has not; a tokenizer or config.json that is missing or not understood.
    pub fn of(args: &Args, path: &Path) -> Result<Option<Aligned>> {
        let s = &args.settings;
        let Some(how) = s.aligning() else { return Ok(None) };
        let none = "alignment-weight is set, and there are no parallel sentences: name alignment-file";
        let named = s.alignment_file.as_deref().or(args.parallel.as_deref());
        let file = named.ok_or_else(|| Error::setting("train.alignment-file", none))?;
        let config = match s.method {
            Method::Scratch => Config::from_dir(path)?,
            _ => WeightSource::open(path)?.0,
        };
        let (layers, context) = (config.num_hidden_layers, config.max_position_embeddings);
        let layer = how.layer_of(layers)?;
        let found =
            how.sentences(file, s.alignment_target_file.as_deref()).context("train.alignment-file")?;
        let Sentences { pairs, empty, repeated } = found;
        all_there(file, pairs.len() + empty + repeated)?;
        let tokenizer = Tokenizer::load(path)?;
        let (mut kept, mut long, mut first_long) = (vec![], 0, None);
        for (place, [a, b]) in pairs {
            let pair = [tokenizer.encode(&a, true)?, tokenizer.encode(&b, true)?];
            let beyond = pair.iter().flatten().find(|&&t| t as usize >= config.vocab_size);
            ensure!(
                beyond.is_none(),
                "{place}: the tokenizer has a token {}, and the model {} of them: does it belong to the model?",
                beyond.unwrap_or(&0),
                config.vocab_size
            );
            if pair.iter().all(|tokens| tokens.len() <= context) {
                kept.push(pair);
            } else {
                long += 1;
                first_long.get_or_insert(place);
            }
        }
        how.check_number(file, kept.len())?;
        let sentences = MiddleLayer::new(kept, layer, how.batch, [how.temperature, how.weight])?;
        Ok(Some(Aligned { sentences, layers, empty, repeated, long, context, first_long }))
    }

    /// Tokens of a batch of sentences at most, in batches of `batch_tokens`.
    pub fn room(&self, batch_tokens: usize) -> usize {
        self.sentences.longest().max(batch_tokens)
    }

    /// Says what is aligned, and what was left out.
    pub fn print(&self) {
        let MiddleLayer { pairs, layer, batch, temperature, weight, .. } = &self.sentences;
        say!(
            "train: aligns {} pairs of sentences behind layer {layer} of {}, {batch} a step, temperature {temperature}, weight {weight}; left out: {} with an empty side, {} repeated, {} longer than the {} tokens of the model{}",
            pairs.len(),
            self.layers,
            self.empty,
            self.repeated,
            self.long,
            self.context,
            self.first_long.as_ref().map_or(String::new(), |place| format!(" (the first: {place})"))
        );
    }
}

/// An error if a stage has finished `file` with another number of rows than were read.
fn all_there(file: &Path, read: usize) -> Result<()> {
    let written = if file.is_dir() { Manifest::load(file)?.and_then(|m| m.rows) } else { None };
    let (n, path) = (written.unwrap_or(read), file.display());
    ensure!(n == read, "{path} was finished with {n} rows, and {read} are there: make it again");
    Ok(())
}

/// The manifest's summary with the same.
pub(super) fn summary(mut summary: Value, aligned: Option<&Aligned>) -> Value {
    if let Some(Aligned { sentences, empty, repeated, long, .. }) = aligned {
        summary["alignment"] = json!({
            "pairs": sentences.pairs.len(), "layer": sentences.layer, "empty": empty, "repeated": repeated, "too-long": long
        });
    }
    summary
}
