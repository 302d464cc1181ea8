//! One training step of a Llama decoder: explicit forward and backward over packed documents.
//!
//! With adapters the base is frozen: backward computes input gradients through its weights and weight gradients for the adapters
//! only, and nothing below the lowest adapted layer. Saved for backward per layer: the two residuals, 1/rms of both norms, q, k, v
//! after rotation, the attention's output and log-sum-exp, gate and up; normed inputs and the SwiGLU product are computed again.
use anyhow::{Result, bail, ensure};
use tracing::info_span;

use super::{
    super::weights::check_memory,
    linear,
    lora::Lora,
    rope_table::RopeTable,
    saved::{Acts, Grads, head_rows, lse_rows},
    weights::{LayerWeights, Llama},
};
use crate::{
    device::Device,
    ops::{
        attention::{AttentionShape, attention_backward, attention_forward},
        cross_entropy::{linear_cross_entropy_forward, linear_cross_entropy_forward_backward},
        embedding::{embedding_backward, embedding_forward},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward},
        rope::{rope_backward, rope_forward},
        rows::{add, copy},
        swiglu::{swiglu_backward, swiglu_forward},
    },
    tensor::{DType, Laid, Tensor},
};

pub use super::saved::{Param, ParamKind};

/// Documents back to back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    /// (N)
    pub tokens: Vec<u32>,
    /// (N), restarting at 0 in each document.
    pub positions: Vec<u32>,
    /// (documents + 1), from 0 to N.
    pub cu_seqlens: Vec<u32>,
    /// (N): the next token of the document (anything at its last position).
    pub targets: Vec<u32>,
    /// (N): loss weight of predicting `targets`; 0 where it does not count.
    pub weights: Vec<f32>,
}

impl PackedBatch {
    /// Appends a document; `weights[i]` is the weight of predicting `tokens[i]` from what stands before it.
    pub fn push(&mut self, tokens: &[u32], weights: &[f32]) {
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        for i in 0..tokens.len() {
            self.tokens.push(tokens[i]);
            self.positions.push(i as u32);
            self.targets.push(tokens.get(i + 1).copied().unwrap_or(0));
            self.weights.push(weights.get(i + 1).copied().unwrap_or(0.0));
        }
        self.cu_seqlens.push(self.tokens.len() as u32);
    }
}

/// What is trained.
pub enum Trainable {
    /// Adapters on a frozen base.
    Lora(Lora),
    /// Every weight; the model must be in writable F32 memory ([`Llama::make_trainable`]).
    Full,
}

/// Σ w nll and Σ w of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Σ w_i nll_i, nats.
    pub weighted_nll: f64,
    /// Σ w_i.
    pub weight: f64,
    /// Tokens that were run.
    pub tokens: usize,
}

impl LossSum {
    /// Adds another batch.
    pub fn add(&mut self, other: LossSum) {
        self.weighted_nll += other.weighted_nll;
        self.weight += other.weight;
        self.tokens += other.tokens;
    }
    /// Mean nll per unit of weight.
    pub fn mean(&self) -> f64 {
        self.weighted_nll / self.weight
    }
}

/// Activations and gradients for batches of up to `max_tokens`.
pub struct TrainStep {
    acts: Acts,
    grads: Grads,
    rope: RopeTable,
    /// The memory of all gradients.
    flat_grads: Vec<Tensor>,
    shape: AttentionShape,
    max_tokens: usize,
    /// Layers below this one need no gradient.
    lowest: usize,
    memory: Vec<(String, usize)>,
}

impl TrainStep {
    /// Allocates everything that batches of up to `max_tokens` need.
    pub fn new(model: &Llama, trainable: Trainable, max_tokens: usize) -> Result<TrainStep> {
        ensure!(max_tokens > 0, "the token budget of a batch must be at least 1");
        let config = &model.config;
        let lora = if let Trainable::Lora(lora) = &trainable { Some(lora) } else { None };
        let (device, dtype) = (model.device(), model.activation_dtype());
        refuse_on_gpu(model, lora)?;
        if device == Device::Cpu {
            let measured = Acts::bytes(config, max_tokens, lora, dtype);
            check_memory(&format!("training with {max_tokens} tokens a batch"), measured)?;
        }
        let (acts, acts_bytes) = Acts::new(config, max_tokens, lora, &device, dtype)?;
        let mut memory = vec![("weights".to_string(), model.bytes())];
        let Laid { parts: grads, flat: flat_grads, bytes: grads_bytes } = match trainable {
            Trainable::Lora(lora) => {
                memory.push(("adapters".into(), lora.parameters() * 4));
                let lora = if device == Device::Cpu { lora } else { lora.to_device(&device)? };
                Grads::for_lora(lora, &device)?
            }
            Trainable::Full => Grads::for_all(model)?,
        };
        let lowest = grads.lowest_layer();
        memory.push(("gradients".into(), grads_bytes));
        memory.push(("activations".into(), acts_bytes));
        let shape = AttentionShape {
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head_size: config.head_size(),
            scale: 1.0 / (config.head_size() as f32).sqrt(),
            window: config.sliding_window,
            softcap: None,
        };
        let rope = RopeTable::new(config, max_tokens, &device)?;
        Ok(TrainStep { acts, grads, flat_grads, rope, shape, max_tokens, lowest, memory })
    }

    /// Bytes by purpose.
    pub fn memory(&self) -> &[(String, usize)] {
        &self.memory
    }

    /// The adapters, if it is them that are trained.
    pub fn adapter(&self) -> Option<&Lora> {
        if let Grads::Lora { lora, .. } = &self.grads { Some(lora) } else { None }
    }

    /// Sets every gradient to 0.
    pub fn zero_grads(&mut self) -> Result<()> {
        self.flat_grads.iter_mut().try_for_each(Tensor::fill_zero)
    }

    /// Every trained tensor, in a fixed order.
    pub fn params(&self, model: &Llama) -> Vec<Param> {
        self.grads.params(model)
    }

    /// The loss of a batch; nothing else changes.
    pub fn forward(&mut self, model: &Llama, batch: &PackedBatch) -> Result<LossSum> {
        let n = self.load(model, batch)?;
        self.decoder_forward(model, n, batch)?;
        let a = &mut self.acts;
        let mut losses = a.losses.rows(0..n)?;
        let (targets, weights) = (a.targets.rows(0..n)?, a.weights.rows(0..n)?);
        let hidden = a.hidden.rows(0..n)?;
        linear_cross_entropy_forward(
            &mut losses,
            &mut a.loss,
            &hidden,
            &model.weights.lm_head,
            &targets,
            &weights,
        )?;
        loss_sum(&losses, batch)
    }

    /// The loss of a batch; gradients += d(grad_scale Σ w nll).
    pub fn forward_backward(
        &mut self,
        model: &mut Llama,
        batch: &PackedBatch,
        grad_scale: f32,
    ) -> Result<LossSum> {
        let forward = info_span!("forward", tokens = batch.tokens.len()).entered();
        let n = self.load(model, batch)?;
        self.decoder_forward(model, n, batch)?;
        drop(forward);
        let loss = info_span!("loss").entered();
        let a = &mut self.acts;
        let mut losses = a.losses.rows(0..n)?;
        let (targets, weights) = (a.targets.rows(0..n)?, a.weights.rows(0..n)?);
        let (hidden, mut dhidden) = (a.hidden.rows(0..n)?, a.dnorm.rows(0..n)?);
        let dhead = match &mut self.grads {
            Grads::Full(g) => Some(g.lm_head.as_mut().unwrap_or(&mut g.embed_tokens)),
            Grads::Lora { .. } => None,
        };
        linear_cross_entropy_forward_backward(
            &mut losses,
            &mut dhidden,
            dhead,
            &mut a.loss,
            &hidden,
            &model.weights.lm_head,
            &targets,
            &weights,
            grad_scale,
        )?;
        drop(loss);
        info_span!("backward").in_scope(|| self.decoder_backward(model, n, batch))?;
        loss_sum(&self.acts.losses.rows(0..n)?, batch)
    }

    /// The final hidden states (N, C) of the last batch, after the last norm: for comparing logits.
    pub fn hidden(&self, n: usize) -> Result<Tensor> {
        self.acts.hidden.rows(0..n)
    }

    fn load(&mut self, model: &Llama, batch: &PackedBatch) -> Result<usize> {
        let n = batch.tokens.len();
        ensure!(
            n > 0 && n <= self.max_tokens,
            "a batch of {n} tokens; there is room for {} (raise the token budget)",
            self.max_tokens
        );
        let vocab = model.config.vocab_size;
        if let Some(i) = batch.tokens.iter().position(|&t| t as usize >= vocab) {
            bail!(
                "token {} at position {i} of the batch is not below the vocabulary size {vocab}: were the shards packed for this model?",
                batch.tokens[i]
            );
        }
        let a = &mut self.acts;
        a.tokens.rows(0..n)?.write_u32(&batch.tokens)?;
        a.positions.rows(0..n)?.write_u32(&batch.positions)?;
        a.targets.rows(0..n)?.write_u32(&batch.targets)?;
        a.weights.rows(0..n)?.write_f32(&batch.weights)?;
        Ok(n)
    }

    fn decoder_forward(&mut self, model: &Llama, n: usize, batch: &PackedBatch) -> Result<()> {
        let cu = documents(batch, &model.device())?;
        let eps = model.config.rms_norm_eps as f32;
        let a = &mut self.acts;
        let (tokens, positions) = (a.tokens.rows(0..n)?, a.positions.rows(0..n)?);
        embedding_forward(&mut a.layers[0].resid_in.rows(0..n)?, &tokens, &model.weights.embed_tokens)?;
        for (l, w) in model.weights.layers.iter().enumerate() {
            let adapters = self.grads.adapters(l);
            let mut next = a.layers.get(l + 1).map_or(&a.resid_out, |next| &next.resid_in).rows(0..n)?;
            let acts = &a.layers[l];
            let (mut norm, mut rstd) = (a.norm.rows(0..n)?, acts.rstd_in.rows(0..n)?);
            let resid_in = acts.resid_in.rows(0..n)?;
            rmsnorm_forward(&mut norm, &mut rstd, &resid_in, &w.input_layernorm, eps)?;
            let (mut q, mut k, mut v) = (acts.q.rows(0..n)?, acts.k.rows(0..n)?, acts.v.rows(0..n)?);
            let mut u = head_rows(&acts.u, n)?;
            linear::forward(&mut q, &mut u[0], &norm, &w.q_proj, adapters[0].as_ref())?;
            linear::forward(&mut k, &mut u[1], &norm, &w.k_proj, adapters[1].as_ref())?;
            linear::forward(&mut v, &mut u[2], &norm, &w.v_proj, adapters[2].as_ref())?;
            let hs = self.shape.head_size;
            rope_forward(&mut q, &positions, &self.rope.cos, &self.rope.sin, hs)?;
            rope_forward(&mut k, &positions, &self.rope.cos, &self.rope.sin, hs)?;
            let (mut att, mut lse) = (acts.att.rows(0..n)?, lse_rows(&acts.lse, self.shape.heads, n)?);
            attention_forward(&mut att, &mut lse, &q, &k, &v, &cu, self.shape)?;
            let mut projected = a.dnorm.rows(0..n)?;
            linear::forward(&mut projected, &mut u[3], &att, &w.o_proj, adapters[3].as_ref())?;
            let (mut rstd, mut resid_mid) = (acts.rstd_mid.rows(0..n)?, acts.resid_mid.rows(0..n)?);
            let post = &w.post_attention_layernorm;
            add_rmsnorm_forward(&mut norm, &mut rstd, &mut resid_mid, &projected, &resid_in, post, eps)?;
            let (mut gate, mut up) = (acts.gate.rows(0..n)?, acts.up.rows(0..n)?);
            linear::forward(&mut gate, &mut u[4], &norm, &w.gate_proj, adapters[4].as_ref())?;
            linear::forward(&mut up, &mut u[5], &norm, &w.up_proj, adapters[5].as_ref())?;
            let mut act = a.act.rows(0..n)?;
            swiglu_forward(&mut act, &gate, &up)?;
            linear::forward(&mut next, &mut u[6], &act, &w.down_proj, adapters[6].as_ref())?;
            add(&mut next, &resid_mid)?;
        }
        let (mut hidden, mut rstd) = (a.hidden.rows(0..n)?, a.rstd_out.rows(0..n)?);
        rmsnorm_forward(&mut hidden, &mut rstd, &a.resid_out.rows(0..n)?, &model.weights.norm, eps)
    }

    fn decoder_backward(&mut self, model: &Llama, n: usize, batch: &PackedBatch) -> Result<()> {
        let cu = documents(batch, &model.device())?;
        let dhidden = self.acts.dnorm.rows(0..n)?;
        let mut dresid = self.acts.dresid.rows(0..n)?;
        dresid.fill_zero()?;
        let dnorm_weight = if let Grads::Full(g) = &mut self.grads { Some(&mut g.norm) } else { None };
        let (resid, rstd) = (self.acts.resid_out.rows(0..n)?, self.acts.rstd_out.rows(0..n)?);
        rmsnorm_backward(&mut dresid, dnorm_weight, &dhidden, &resid, &rstd, &model.weights.norm)?;
        for l in (self.lowest..model.weights.layers.len()).rev() {
            let w = &model.weights.layers[l];
            self.mlp_backward(model, w, l, n)?;
            self.attention_block_backward(model, w, l, n, &cu)?;
        }
        if let Grads::Full(g) = &mut self.grads {
            embedding_backward(&mut g.embed_tokens, &dresid, &self.acts.tokens.rows(0..n)?)?;
        }
        Ok(())
    }

    /// dresid (into the layer's output) becomes the gradient of resid_mid.
    fn mlp_backward(&mut self, model: &Llama, w: &LayerWeights, l: usize, n: usize) -> Result<()> {
        let a = &mut self.acts;
        let acts = &a.layers[l];
        let (gate, up) = (acts.gate.rows(0..n)?, acts.up.rows(0..n)?);
        let (resid_mid, mut rstd) = (acts.resid_mid.rows(0..n)?, acts.rstd_mid.rows(0..n)?);
        let u = head_rows(&acts.u, n)?;
        let (mut act, mut dresid, mut dnorm) = (a.act.rows(0..n)?, a.dresid.rows(0..n)?, a.dnorm.rows(0..n)?);
        let (mut dgate, mut dup, mut dact) = (a.dgate.rows(0..n)?, a.dup.rows(0..n)?, a.dact.rows(0..n)?);
        let (mut norm, mut spare, mut du) =
            (a.norm.rows(0..n)?, a.spare.as_ref().map(Tensor::alias), a.du.as_ref().map(Tensor::alias));
        swiglu_forward(&mut act, &gate, &up)?;
        // DoRA overwrites dout, and dresid is still needed.
        copy(&mut norm, &dresid)?;
        let trained = self.grads.trained(l, 6);
        linear::backward(
            Some((&mut dact, false)),
            &mut norm,
            &mut du,
            &mut spare,
            &u[6],
            &act,
            &w.down_proj,
            trained,
        )?;
        swiglu_backward(&mut dgate, &mut dup, &dact, &gate, &up)?;
        let eps = model.config.rms_norm_eps as f32;
        rmsnorm_forward(&mut norm, &mut rstd, &resid_mid, &w.post_attention_layernorm, eps)?;
        let trained = self.grads.trained(l, 4);
        linear::backward(
            Some((&mut dnorm, false)),
            &mut dgate,
            &mut du,
            &mut spare,
            &u[4],
            &norm,
            &w.gate_proj,
            trained,
        )?;
        let trained = self.grads.trained(l, 5);
        linear::backward(
            Some((&mut dnorm, true)),
            &mut dup,
            &mut du,
            &mut spare,
            &u[5],
            &norm,
            &w.up_proj,
            trained,
        )?;
        let dweight = match &mut self.grads {
            Grads::Full(g) => Some(&mut g.layers[l].post_attention_layernorm),
            Grads::Lora { .. } => None,
        };
        rmsnorm_backward(&mut dresid, dweight, &dnorm, &resid_mid, &rstd, &w.post_attention_layernorm)
    }

    /// dresid (of resid_mid) becomes the gradient of the layer's input, where anything below needs it.
    fn attention_block_backward(
        &mut self,
        model: &Llama,
        w: &LayerWeights,
        l: usize,
        n: usize,
        cu: &Tensor,
    ) -> Result<()> {
        let a = &mut self.acts;
        let acts = &a.layers[l];
        let (q, k, v) = (acts.q.rows(0..n)?, acts.k.rows(0..n)?, acts.v.rows(0..n)?);
        let (att, lse) = (acts.att.rows(0..n)?, lse_rows(&acts.lse, self.shape.heads, n)?);
        let (resid_in, mut rstd) = (acts.resid_in.rows(0..n)?, acts.rstd_in.rows(0..n)?);
        let u = head_rows(&acts.u, n)?;
        let (mut dresid, mut dnorm, mut norm) =
            (a.dresid.rows(0..n)?, a.dnorm.rows(0..n)?, a.norm.rows(0..n)?);
        let (mut dq, mut dk, mut dv) = (a.dq.rows(0..n)?, a.dk.rows(0..n)?, a.dv.rows(0..n)?);
        let mut datt = a.datt.rows(0..n)?;
        let (mut spare, mut du, positions) =
            (a.spare.as_ref().map(Tensor::alias), a.du.as_ref().map(Tensor::alias), a.positions.rows(0..n)?);
        copy(&mut norm, &dresid)?;
        let trained = self.grads.trained(l, 3);
        linear::backward(
            Some((&mut datt, false)),
            &mut norm,
            &mut du,
            &mut spare,
            &u[3],
            &att,
            &w.o_proj,
            trained,
        )?;
        attention_backward(&mut dq, &mut dk, &mut dv, &datt, &att, &lse, &q, &k, &v, cu, self.shape)?;
        let hs = self.shape.head_size;
        rope_backward(&mut dq, &positions, &self.rope.cos, &self.rope.sin, hs)?;
        rope_backward(&mut dk, &positions, &self.rope.cos, &self.rope.sin, hs)?;
        let eps = model.config.rms_norm_eps as f32;
        rmsnorm_forward(&mut norm, &mut rstd, &resid_in, &w.input_layernorm, eps)?;
        let below = l > self.lowest || matches!(self.grads, Grads::Full(_));
        for (j, (dout, linear)) in
            [(&mut dq, &w.q_proj), (&mut dk, &w.k_proj), (&mut dv, &w.v_proj)].into_iter().enumerate()
        {
            let dinp = below.then_some((&mut dnorm, j > 0));
            let trained = self.grads.trained(l, j);
            linear::backward(dinp, dout, &mut du, &mut spare, &u[j], &norm, linear, trained)?;
        }
        if !below {
            return Ok(());
        }
        let dweight = match &mut self.grads {
            Grads::Full(g) => Some(&mut g.layers[l].input_layernorm),
            Grads::Lora { .. } => None,
        };
        rmsnorm_backward(&mut dresid, dweight, &dnorm, &resid_in, &rstd, &w.input_layernorm)
    }
}

/// The batch's document offsets on `device`.
fn documents(batch: &PackedBatch, device: &Device) -> Result<Tensor> {
    let mut cu = Tensor::zeros_on(device, "cu_seqlens", DType::U32, &[batch.cu_seqlens.len()])?;
    cu.write_u32(&batch.cu_seqlens)?;
    Ok(cu)
}

/// What the GPU kernels do not do yet.
fn refuse_on_gpu(model: &Llama, lora: Option<&Lora>) -> Result<()> {
    if model.device() == Device::Cpu {
        return Ok(());
    }
    if lora.is_none() && model.activation_dtype() != DType::F32 {
        bail!("on a GPU all weights train in f32 only: use --dtype f32, or LoRA");
    }
    Ok(())
}

fn loss_sum(losses: &Tensor, batch: &PackedBatch) -> Result<LossSum> {
    let mut sum = LossSum { tokens: batch.tokens.len(), ..LossSum::default() };
    for (nll, w) in losses.to_f32_vec()?.iter().zip(&batch.weights) {
        sum.weighted_nll += *nll as f64 * *w as f64;
        sum.weight += *w as f64;
    }
    Ok(sum)
}
