//! Self-distillation: the model with its adapters learns, token by token, the distribution that the same model without them has behind another prompt.
use anyhow::{Context, Result, ensure};
use tracing::info_span;

use super::{PackedBatch, TrainStep, documents, outline::states_of};
use crate::{
    models::transformer::weights::Transformer,
    ops::{
        kl_divergence::{Clip, Mixed, linear_kl_divergence},
        rows::gather_rows,
    },
    tensor::{DType, Tensor},
};

/// What distilling needs for batches of up to N tokens.
pub(super) struct Distilling {
    /// (N, C): the teacher's final hidden states, each where the student's of the same token is.
    aligned: Tensor,
    /// (N): the teacher's row of each row of the student, `u32::MAX` where there is none.
    map: Tensor,
    /// (N)
    divergences: Tensor,
    /// (N)
    clipped: Tensor,
    /// What a term of a divergence counts at most.
    clip: Option<f32>,
}

/// Answers behind the student's prompts, and the same answers behind the teacher's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distilled {
    /// What the student reads; its weights are those of the divergences.
    pub student: PackedBatch,
    /// What the teacher reads.
    pub teacher: PackedBatch,
    /// Rows of the student, rising, that say what comes next in an answer, each with the teacher's row of the same token.
    pub rows: Vec<(u32, u32)>,
}

impl Distilled {
    /// Appends an answer. It is predicted from the last token of each prompt on; where it has `ended`, that it ends is learnt too. Each of its tokens weighs `weight`.
    pub fn push(&mut self, id: u32, prompts: [&[u32]; 2], answer: &[u32], ended: bool, weight: f32) {
        let learnt = answer.len() + usize::from(ended);
        let first = [&mut self.student, &mut self.teacher].into_iter().zip(prompts).map(|(batch, prompt)| {
            let first = batch.tokens.len() + prompt.len() - 1;
            let tokens = [prompt, answer].concat();
            batch.push_as(id, &tokens, &vec![0.0; tokens.len()]);
            batch.weights[first..first + learnt].fill(weight);
            first as u32
        });
        let first: Vec<u32> = first.collect();
        self.rows.extend((0..learnt as u32).map(|i| (first[0] + i, first[1] + i)));
    }
}

/// What was measured on the rows of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DistilledSum {
    /// Σ w KL(teacher || student), nats.
    pub divergence: f64,
    /// What is learnt: the same of the clipped divergences, or with a share of the nll.
    pub clipped: f64,
    /// Σ w nll of the text, where it is known.
    pub nll: f64,
    /// Σ w.
    pub weight: f64,
    /// Rows.
    pub rows: usize,
    /// Those of which a term was clipped.
    pub limited: usize,
    /// Tokens that were run, by teacher and student.
    pub tokens: usize,
}

impl DistilledSum {
    /// Adds another batch.
    pub fn add(&mut self, other: DistilledSum) {
        self.divergence += other.divergence;
        self.clipped += other.clipped;
        self.nll += other.nll;
        self.weight += other.weight;
        self.rows += other.rows;
        self.limited += other.limited;
        self.tokens += other.tokens;
    }
}

impl TrainStep {
    /// Room for [`TrainStep::distil`], with a limit of each term of a divergence.
    ///
    /// # Errors
    /// All weights are trained: no base is left to teach; too little memory.
    pub fn distilling(self, model: &Transformer, clip: Option<f32>) -> Result<TrainStep> {
        let mut step = self.with_base(model)?;
        let (n, device) = (step.max_tokens, model.device());
        let states = [n, model.spec.hidden_size];
        let numbers = |name: &str| Tensor::zeros_on(&device, name, DType::F32, &[n]);
        step.distilling = Some(Distilling {
            aligned: Tensor::zeros_on(&device, "teacher_hidden", model.activation_dtype(), &states)?,
            map: Tensor::zeros_on(&device, "teacher_rows", DType::U32, &[n])?,
            divergences: numbers("divergences")?,
            clipped: numbers("clipped_divergences")?,
            clip,
        });
        step.memory.push(states_of("teacher", n, &model.spec, model.activation_dtype()));
        Ok(step)
    }

    /// The divergences of a batch; with `grad_scale` gradients += d(grad_scale Σ w clipped KL(teacher || student)), with the adapters' dropout. The teacher is the model
    /// without its adapters and counts as a constant. Two forward passes, and one back through the student's.
    ///
    /// # Errors
    /// A batch beyond the room; a failing device.
    pub fn distil(
        &mut self,
        model: &Transformer,
        batch: &Distilled,
        grad_scale: Option<f32>,
    ) -> Result<DistilledSum> {
        let forward = info_span!("forward", tokens = batch.student.tokens.len()).entered();
        self.teach(model, batch)?;
        let n = self.load(model, &batch.student)?;
        let cu_seqlens = documents(&batch.student, &model.device())?;
        let a = &self.acts;
        let drops = a.dropout.as_ref().filter(|_| grad_scale.is_some());
        let dropout = drops.map(|d| d.of(&batch.student, a.spare.as_ref(), self.draws)).transpose()?;
        self.decoder_forward(model, n, &cu_seqlens, dropout.as_ref(), false)?;
        drop(forward);
        let sum = info_span!("loss").in_scope(|| self.diverge(model, batch, grad_scale))?;
        if grad_scale.is_some() {
            info_span!("backward")
                .in_scope(|| self.decoder_backward(model, n, cu_seqlens, dropout.as_ref()))?;
        }
        Ok(sum)
    }

    /// The teacher's final hidden states, each at the row of the student's.
    fn teach(&mut self, model: &Transformer, batch: &Distilled) -> Result<()> {
        let n = batch.student.tokens.len();
        ensure!(n <= self.max_tokens, "a batch of {n} tokens; there is room for {}", self.max_tokens);
        let m = self.load(model, &batch.teacher)?;
        self.decoder_forward(model, m, &documents(&batch.teacher, &model.device())?, None, true)?;
        let (d, base) =
            self.distilling.as_ref().zip(self.base.as_ref()).context("there is no room to distil")?;
        let mut map = vec![u32::MAX; n];
        batch.rows.iter().for_each(|&(own, other)| map[own as usize] = other);
        let mut on_device = d.map.rows(0..n)?;
        on_device.write_u32(&map)?;
        gather_rows(&mut d.aligned.rows(0..n)?, &base.rows(0..m)?, &on_device)
    }

    /// The divergences of the last pass through the layers from the teacher's states and, where wanted, their gradient.
    fn diverge(
        &mut self,
        model: &Transformer,
        batch: &Distilled,
        grad_scale: Option<f32>,
    ) -> Result<DistilledSum> {
        let d = self.distilling.as_ref().context("there is no room to distil")?;
        let (a, weights) = (&mut self.acts, &batch.student.weights);
        let n = weights.len();
        let (mut divergences, mut clipped) = (d.divergences.rows(0..n)?, d.clipped.rows(0..n)?);
        let mut dhidden = a.dnorm.rows(0..n)?;
        dhidden.fill_zero()?;
        let rows: Vec<u32> = batch.rows.iter().map(|&(own, _)| own).collect();
        linear_kl_divergence(
            &mut a.losses.rows(0..n)?,
            &mut divergences,
            grad_scale.map(|_| &mut dhidden),
            &mut a.loss,
            (&a.hidden.rows(0..n)?, &d.aligned.rows(0..n)?),
            model.head(),
            &a.targets.rows(0..n)?,
            &a.weights.rows(0..n)?,
            &rows,
            Mixed { hard: 0.0, soft: grad_scale.unwrap_or(0.0) },
            d.clip.map(|most| Clip { most, clipped: &mut clipped }),
        )?;
        let whole = divergences.to_f32_vec()?;
        let limited = if d.clip.is_some() { clipped.to_f32_vec()? } else { whole.clone() };
        let tokens = n + batch.teacher.tokens.len();
        let mut sum = DistilledSum { rows: rows.len(), tokens, ..DistilledSum::default() };
        for i in rows.into_iter().map(|i| i as usize) {
            let weight = f64::from(weights[i]);
            sum.divergence += weight * f64::from(whole[i]);
            sum.clipped += weight * f64::from(limited[i]);
            sum.weight += weight;
            sum.limited += usize::from(limited[i] != whole[i]);
        }
        Ok(sum)
    }
}
