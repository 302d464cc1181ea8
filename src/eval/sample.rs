//! One row of a task with what the model made of it.
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    data::row_shard::RowSet,
    metrics::metric::{HiddenPair, Segment},
    pipeline::work_dir::SAMPLES,
    recipe::eval::EvalTask,
};

/// One row of a task with the model's reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Index of the row in its file.
    pub doc_id: usize,
    /// What the model was given.
    pub prompt: String,
    /// Its reply, or the letter of its choice.
    pub response: String,
    /// All of the reply, where only a part of it is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// What was expected; several where any will do.
    pub targets: Vec<String>,
    /// Log-likelihoods in nats: of each choice; or of the text, ours and lm-eval's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// Whether greedy decoding would write each choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub greedy: Vec<bool>,
    /// Characters of each choice, then bytes of each. Of a text: bytes and tokens of what is scored, bytes of all of it, and 1 if its first token is scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<usize>,
    /// The article was cut to fit the model's context.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Alignment: what every hidden state says about the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<HiddenPairs>,
}

fn is_false(x: &bool) -> bool {
    !x
}

impl Sample {
    /// What metrics see of it; `source` is the sentence that was translated, where there is one.
    ///
    /// # Errors
    /// Hidden states without the layer of the picture.
    pub fn segment<'a>(&'a self, source: &'a str) -> Result<Segment<'a>> {
        let hidden = self.pair.as_ref().map(|p| p.at(p.layer).context("a pair without its layer"));
        Ok(Segment {
            source,
            reply: &self.response,
            references: &self.targets,
            log_likelihoods: &self.log_likelihoods,
            lengths: &self.lengths,
            hidden: hidden.transpose()?,
        })
    }
}

/// What every hidden state says about a pair of sentences (see [`crate::metrics::alignment::Alignment`]), and its place in the picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HiddenPairs {
    /// The hidden state of the headline numbers and of the picture.
    pub layer: usize,
    /// Where the source sentence and its translation are drawn.
    pub points: [(f64, f64); 2],
    /// Cosine, by layer.
    pub cosine: Vec<f64>,
    /// Whether the translation is the nearest of all, by layer.
    pub forward: Vec<bool>,
    /// The same from the translation to the source.
    pub backward: Vec<bool>,
    /// Parts of linear CKA's sums, by layer.
    pub cka: Vec<[f64; 3]>,
}

impl HiddenPairs {
    /// One layer of it.
    pub fn at(&self, layer: usize) -> Option<HiddenPair> {
        Some(HiddenPair {
            cosine: *self.cosine.get(layer)?,
            forward: *self.forward.get(layer)?,
            backward: *self.backward.get(layer)?,
            cka: *self.cka.get(layer)?,
        })
    }
}

/// The samples of a finished task.
pub fn read_samples(dir: &Path, task: &EvalTask) -> Result<Vec<Sample>> {
    let path = dir.join(&task.name).join(SAMPLES);
    let set = RowSet::open(&path)
        .with_context(|| format!("task {} has no samples: run `eval` first", task.name))?;
    set.iter().collect()
}
