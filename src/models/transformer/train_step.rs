//! One training step of a decoder: forward and backward over packed documents.
//!
//! With adapters the base is frozen: backward computes input gradients through its weights and weight gradients for the adapters
//! only, and nothing below the lowest adapted layer.
mod beside;
mod distilling;
mod flat;
mod keeping;
mod loss_sum;
pub mod outline;
mod passes;
mod pooled;
mod stored;
mod weighed;

use anyhow::{Result, bail, ensure};
use outline::states_of;
use tracing::info_span;

use super::{
    super::weights::check_memory, acts::Acts, dropout::Draws, experts::say_unbalanced, grads::Grads,
    lora::Lora, rope_table::RopeTables, weights::Transformer,
};
use crate::{
    device::Device,
    distributed::beside::Sums,
    ops::cross_entropy::loss_of_known_weights,
    tensor::{DType, Laid, Tensor},
};

pub(crate) use super::grads::Changes;
pub use super::grads::{Param, ParamKind};
pub use distilling::{Distilled, DistilledSum};
pub use loss_sum::LossSum;
use loss_sum::loss_sum;

/// Documents back to back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    /// (N)
    pub tokens: Vec<u32>,
    /// (documents + 1), from 0 to N.
    pub cu_seqlens: Vec<u32>,
    /// (N): the next token of the document (anything at its last position).
    pub targets: Vec<u32>,
    /// (N): loss weight of predicting `targets`; 0 where it does not count.
    pub weights: Vec<f32>,
    /// (documents): a number for each that it has in any batch: what dropout draws by.
    pub ids: Vec<u32>,
    /// Rows with a weight that belong to source-language documents, rising ([`PackedBatch::mark_source`]).
    pub source: Vec<u32>,
}

impl PackedBatch {
    /// Appends a document; `weights[i]` is the weight of predicting `tokens[i]` from what stands before it. Its number is that of the documents before it.
    pub fn push(&mut self, tokens: &[u32], weights: &[f32]) {
        self.push_as(self.ids.len() as u32, tokens, weights);
    }

    /// The same of a document with a number of its own.
    pub fn push_as(&mut self, id: u32, tokens: &[u32], weights: &[f32]) {
        self.ids.push(id);
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        for i in 0..tokens.len() {
            self.tokens.push(tokens[i]);
            self.targets.push(tokens.get(i + 1).copied().unwrap_or(0));
            self.weights.push(weights.get(i + 1).copied().unwrap_or(0.0));
        }
        self.cu_seqlens.push(self.tokens.len() as u32);
    }

    /// The last document is one of the source language: a step that keeps the source ([`TrainStep::keep_source`]) keeps the base model's distribution on it.
    pub fn mark_source(&mut self) {
        let Some(&[begin, end]) = self.cu_seqlens.last_chunk::<2>() else { return };
        self.source.extend((begin..end).filter(|&i| self.weights[i as usize] != 0.0));
    }
}

/// What is trained.
// A training has one of it.
#[allow(clippy::large_enum_variant)]
pub enum Trainable {
    /// Adapters on a frozen base.
    Lora(Lora),
    /// Every weight; the model must be in writable F32 memory ([`Transformer::make_trainable`]).
    Full,
}

/// Activations and gradients for batches of up to `max_tokens`.
pub struct TrainStep {
    acts: Acts,
    grads: Grads,
    /// The memory of all gradients.
    flat_grads: Vec<Tensor>,
    ropes: RopeTables,
    max_tokens: usize,
    /// Layers below this one need no gradient.
    lowest: usize,
    draws: Draws,
    /// (N, C): the final hidden states of the model without its adapters, where they are learnt from.
    base: Option<Tensor>,
    keeping: Option<keeping::Keeping>,
    distilling: Option<distilling::Distilling>,
    stored: Option<Tensor>, // (N): divergences from a teacher's stored distributions
    sums: Option<Sums>,
    memory: Vec<(String, usize)>,
}

impl TrainStep {
    /// Allocates everything that batches of up to `max_tokens` need.
    pub fn new(model: &Transformer, trainable: Trainable, max_tokens: usize) -> Result<TrainStep> {
        ensure!(max_tokens > 0, "the token budget of a batch must be at least 1");
        let spec = &model.spec;
        let lora = if let Trainable::Lora(lora) = &trainable { Some(lora) } else { None };
        let (device, dtype) = (model.device(), model.activation_dtype());
        refuse_on_gpu(model, lora)?;
        say_unbalanced(model)?;
        lora.map_or(Ok(()), |lora| lora.check_dropout(spec))?;
        if device == Device::Cpu {
            let measured = Acts::bytes(spec, max_tokens, lora, dtype);
            check_memory(&format!("training with {max_tokens} tokens a batch"), measured)?;
        }
        let (acts, acts_bytes) = Acts::new(spec, max_tokens, lora, &device, dtype)?;
        let mut memory = vec![("weights".to_string(), model.bytes())];
        let Laid { parts: grads, flat: flat_grads, bytes: grads_bytes } = match trainable {
            Trainable::Lora(lora) => {
                memory.push(("adapters".into(), lora.parameters() * 4));
                let lora = if device == Device::Cpu { lora } else { lora.to_device(spec, &device)? };
                Grads::for_lora(spec, lora, &device, dtype)?
            }
            Trainable::Full => Grads::for_all(model)?,
        };
        let lowest = grads.lowest_layer(spec);
        memory.extend([("gradients".into(), grads_bytes), ("activations".into(), acts_bytes)]);
        let ropes = RopeTables::new(spec, max_tokens, max_tokens, &device)?;
        Ok(TrainStep {
            acts,
            grads,
            flat_grads,
            ropes,
            max_tokens,
            lowest,
            draws: Draws::default(),
            base: None,
            keeping: None,
            distilling: None,
            stored: None,
            sums: None,
            memory,
        })
    }

    /// Room for the states of the model without its adapters.
    ///
    /// # Errors
    /// All weights are trained: no base is left; too little memory.
    fn with_base(mut self, model: &Transformer) -> Result<TrainStep> {
        ensure!(self.adapter().is_some(), "only training of adapters leaves a base model to learn from");
        let (acts, states) = (model.activation_dtype(), [self.max_tokens, model.spec.hidden_size]);
        self.base = Some(Tensor::zeros_on(&model.device(), "base_hidden", acts, &states)?);
        self.memory.push(states_of("base model", self.max_tokens, &model.spec, acts));
        Ok(self)
    }

    /// From here on the adapters' dropout draws for this optimizer step (from 1) of a training with `seed`; until the first call, for step 0 and seed 0.
    pub fn draw(&mut self, seed: u64, step: u64) {
        self.draws = Draws { seed, step };
    }

    /// Bytes by purpose.
    pub fn memory(&self) -> &[(String, usize)] {
        &self.memory
    }

    /// The adapters, if it is them that are trained.
    pub fn adapter(&self) -> Option<&Lora> {
        if let Grads::Lora(t) = &self.grads { Some(&t.lora) } else { None }
    }

    /// The adapters with what is computed from their parameters, as they are now: for a pass through the model outside of a training step.
    ///
    /// # Errors
    /// A failing device.
    pub fn current_adapter(&mut self, model: &Transformer) -> Result<Option<&Lora>> {
        self.grads.refresh(model)?;
        Ok(self.adapter())
    }

    /// Every trained tensor, in a fixed order.
    pub fn params(&self, model: &Transformer) -> Vec<Param> {
        self.grads.params(model)
    }

    /// The loss of a batch, without dropout; nothing else changes.
    pub fn forward(&mut self, model: &Transformer, batch: &PackedBatch) -> Result<LossSum> {
        let n = self.load(model, batch)?;
        self.decoder_forward(model, n, &documents(batch, &model.device())?, None, false)?;
        model.end_of_pass()?;
        let a = &mut self.acts;
        let mut losses = a.losses.rows(0..n)?;
        let (targets, weights) = (a.targets.rows(0..n)?, a.weights.rows(0..n)?);
        let hidden = a.hidden.rows(0..n)?;
        let (loss, weights) = (&mut a.loss, (&weights, &batch.weights[..]));
        loss_of_known_weights(&mut losses, None, loss, &hidden, model.head(), &targets, weights, 0.0)?;
        loss_sum(&losses, batch)
    }

    /// The loss of a batch, with the adapters' dropout; gradients += d(grad_scale Σ w nll).
    pub fn forward_backward(
        &mut self,
        model: &mut Transformer,
        batch: &PackedBatch,
        grad_scale: f32,
    ) -> Result<LossSum> {
        let forward = info_span!("forward", tokens = batch.tokens.len()).entered();
        let n = self.load(model, batch)?;
        let cu_seqlens = documents(batch, &model.device())?;
        let hard = self.kept_apart(batch)?;
        if hard.is_some() {
            self.decoder_forward(model, n, &cu_seqlens, None, true)?;
        }
        let a = &self.acts;
        let dropout = a.dropout.as_ref().map(|d| d.of(batch, a.spare.as_ref(), self.draws)).transpose()?;
        self.decoder_forward(model, n, &cu_seqlens, dropout.as_ref(), false)?;
        drop(forward);
        let loss = info_span!("loss").entered();
        let a = &mut self.acts;
        let mut losses = a.losses.rows(0..n)?;
        let (targets, weights) = (a.targets.rows(0..n)?, a.weights.rows(0..n)?);
        let (hidden, mut dhidden) = (a.hidden.rows(0..n)?, a.dnorm.rows(0..n)?);
        let dhead = self.grads.full().map(|g| g.lm_head.as_mut().unwrap_or(&mut g.embed_tokens));
        loss_of_known_weights(
            &mut losses,
            Some((&mut dhidden, dhead)),
            &mut a.loss,
            &hidden,
            model.head(),
            &targets,
            (&weights, hard.as_deref().unwrap_or(&batch.weights)),
            grad_scale,
        )?;
        let kept = if hard.is_some() { self.keep(model, batch, grad_scale)? } else { [0.0; 2] };
        drop(loss);
        info_span!("backward").in_scope(|| self.decoder_backward(model, n, cu_seqlens, dropout.as_ref()))?;
        Ok(LossSum { kept, ..loss_sum(&self.acts.losses.rows(0..n)?, batch)? })
    }

    /// A copy of the final hidden states (N, C) of the last batch, after the last norm: for comparing logits.
    pub fn hidden(&self, n: usize) -> Result<Tensor> {
        let states = self.acts.hidden.rows(0..n)?;
        states.to_device(&states.device())
    }

    fn load(&mut self, model: &Transformer, batch: &PackedBatch) -> Result<usize> {
        let n = batch.tokens.len();
        ensure!(
            n > 0 && n <= self.max_tokens,
            "a batch of {n} tokens; there is room for {} (raise the token budget)",
            self.max_tokens
        );
        let vocab = model.spec.vocab_size;
        if let Some(i) = batch.tokens.iter().position(|&t| t as usize >= vocab) {
            bail!(
                "token {} at position {i} of the batch is not below the vocabulary size {vocab}: were the shards packed for this model?",
                batch.tokens[i]
            );
        }
        let lengths: Vec<usize> = batch.cu_seqlens.windows(2).map(|d| (d[1] - d[0]) as usize).collect();
        let rope_rows = self.ropes.rows(&lengths)?;
        let a = &mut self.acts;
        a.tokens.rows(0..n)?.write_u32(&batch.tokens)?;
        a.positions.rows(0..n)?.write_u32(&rope_rows)?;
        a.targets.rows(0..n)?.write_u32(&batch.targets)?;
        a.weights.rows(0..n)?.write_f32(&batch.weights)?;
        self.grads.refresh(model)?;
        Ok(n)
    }
}

/// The batch's document offsets on `device`.
fn documents(batch: &PackedBatch, device: &Device) -> Result<Tensor> {
    let mut cu = Tensor::scratch_on(device, "cu_seqlens", DType::U32, &[batch.cu_seqlens.len()])?;
    cu.write_u32(&batch.cu_seqlens)?;
    Ok(cu)
}

/// What the GPU kernels do not do yet.
fn refuse_on_gpu(model: &Transformer, lora: Option<&Lora>) -> Result<()> {
    if model.device() == Device::Cpu {
        return Ok(());
    }
    if lora.is_none() && model.activation_dtype() != DType::F32 {
        bail!("on a GPU all weights train in f32 only: use --dtype f32, or LoRA");
    }
    Ok(())
}
