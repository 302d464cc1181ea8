//! What a training step would take, before anything of it is there: its own layouts, measured.
use anyhow::Result;

use super::{super::lora::LoraConfig, Acts, Grads, Lora, Param};
use crate::{models::transformer::spec::Spec, tensor::DType};

/// A training step that is not made.
#[derive(Clone, Debug)]
pub struct Outline<'a> {
    /// The model.
    pub spec: &'a Spec,
    /// Bytes of its weights in memory.
    pub weights: usize,
    /// New adapters; `None`: every weight is trained.
    pub lora: Option<LoraConfig>,
    /// Tokens of a batch at most.
    pub max_tokens: usize,
    /// Type of the activations.
    pub acts: DType,
    /// Whether it would compute on a GPU.
    pub on_gpu: bool,
    /// Whether source rows keep the base model's distribution.
    pub keeps_source: bool,
    /// Whether it learns from the model without its adapters, which is shown more.
    pub distils: bool,
}

/// The final states of up to `n` tokens that a pass of another model keeps for the loss.
pub(super) fn states_of(whose: &str, n: usize, spec: &Spec, acts: DType) -> (String, usize) {
    (format!("{whose}'s states"), n * spec.hidden_size * acts.bytes())
}

impl Outline<'_> {
    /// What [`super::TrainStep::memory`] of the step would say, and what would be trained, as shapes without memory.
    ///
    /// # Errors
    /// A rank of 0, adapter settings that adapt nothing or cannot be read.
    pub fn measure(&self) -> Result<(Vec<(String, usize)>, Vec<Param>)> {
        let lora = self.lora.clone().map(|config| Lora::shapes(self.spec, config)).transpose()?;
        let acts = Acts::bytes(self.spec, self.max_tokens, lora.as_ref(), self.acts);
        let mut memory = vec![("weights".to_string(), self.weights)];
        memory.extend(lora.as_ref().map(|lora| ("adapters".into(), lora.parameters() * 4)));
        let (params, gradients) = Grads::measure(self.spec, lora, self.on_gpu, self.acts);
        memory.push(("gradients".into(), gradients));
        memory.push(("activations".into(), acts));
        let kept = [("base model", self.keeps_source || self.distils), ("teacher", self.distils)];
        let kept = kept.into_iter().filter(|(_, is_kept)| *is_kept);
        memory.extend(kept.map(|(whose, _)| states_of(whose, self.max_tokens, self.spec, self.acts)));
        Ok((memory, params))
    }
}
