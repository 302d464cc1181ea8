//! A decoder layer, backward.
use anyhow::Result;

use super::{Block, norm_forward};
use crate::{
    models::transformer::{
        grads::Grads,
        ids::{LinearId, NormId},
        linear,
        saved::{BackwardScratch, Saved},
        spec::NormSpec,
    },
    ops::{
        attention::attention_backward,
        rmsnorm::{rmsnorm_backward, rmsnorm_backward_into},
        rows::cast,
        swiglu::{gated_backward, gated_forward},
    },
    tensor::Tensor,
};

/// dinp = or, with `add`, +=, dgain += the gradient of [`norm_forward`].
pub(in crate::models::transformer) fn norm_backward(
    (dinp, add): (&mut Tensor, bool),
    dgain: Option<&mut Tensor>,
    dout: &Tensor,
    (inp, rstd): (&Tensor, &Tensor),
    gain: &Tensor,
    norm: NormSpec,
) -> Result<()> {
    if add {
        return rmsnorm_backward(dinp, dgain, dout, inp, rstd, norm.gain(gain));
    }
    rmsnorm_backward_into(dinp, dgain, dout, inp, rstd, norm.gain(gain))
}

impl Block<'_> {
    /// What attention or the MLP read, made again in `norm`, where a norm stands before it.
    pub(super) fn input_again<'t>(
        &self,
        norm: &'t mut Tensor,
        (resid, rstd): (&'t Tensor, &Tensor),
        id: NormId,
    ) -> Result<&'t Tensor> {
        let Some(gain) = &self.weights.norms[id] else { return Ok(resid) };
        norm_forward(norm, &mut rstd.alias(), resid, gain, self.spec.norm)?;
        Ok(norm)
    }

    /// x.dresid += x.dnorm through the norm `id`; where there is none, the gradient is there already.
    pub(super) fn input_backward(
        &self,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        id: NormId,
        inp: (&Tensor, &Tensor),
    ) -> Result<()> {
        let Some(gain) = &self.weights.norms[id] else { return Ok(()) };
        let dgain = grads.norm(self.layer, id);
        norm_backward((&mut x.dresid, true), dgain, &x.dnorm, inp, gain, self.spec.norm)
    }

    /// x.dresid, the gradient of the layer's output, becomes that of its input, where anything `below` needs it; the trained parts' gradients +=.
    pub(in crate::models::transformer) fn backward(
        &self,
        s: &Saved,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        below: bool,
    ) -> Result<()> {
        self.mlp_backward(s, x, grads)?;
        self.attention_backward(s, x, grads, below)
    }

    /// The gradient of what a half of the layer adds by `linear`, from that of the residual stream, x.dresid: that itself, or in x.norm where a norm or a factor stands
    /// between or a DoRA adapter will overwrite it, and dresid is still needed.
    pub(super) fn addition_backward(
        &self,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        id: NormId,
        linear: LinearId,
        inp: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        let Some(inp) = inp else {
            let adapter = grads.adapters(self.layer).and_then(|a| a[linear].as_ref());
            let scale = self.spec.residual_scale;
            if scale == 1.0 && adapter.is_none_or(|a| a.magnitude.is_none()) {
                return Ok(x.dresid.alias());
            }
            cast(&mut x.norm, &x.dresid, scale)?;
            return Ok(x.norm.alias());
        };
        let dgain = grads.norm(self.layer, id);
        norm_backward((&mut x.norm, false), dgain, &x.dresid, inp, self.weights.norm(id)?, self.spec.norm)?;
        Ok(x.norm.alias())
    }

    /// x.dresid (into the layer's output) becomes the gradient of resid_mid.
    fn mlp_backward(&self, s: &Saved, x: &mut BackwardScratch, grads: &mut Grads) -> Result<()> {
        if !self.experts.is_empty() {
            return self.experts_backward(s, x, grads);
        }
        let (l, pre) = (self.layer, self.spec.pre_norms);
        let (id, n) = (LinearId::Down, x.norm.rows_cols().0);
        let adapter = grads.adapters(l).and_then(|a| a[id].as_ref());
        let dora = adapter.is_some_and(|a| a.magnitude.is_some());
        let [gate, up, mut act] = self.mlp_views([&s.gate, &s.up, &x.act], n)?;
        let [mut dact, mut dgate, mut dup] = self.mlp_views([&x.dact, &x.dgate, &x.dup], n)?;
        if dora {
            // DoRA needs it before the activation's backward gives it.
            gated_forward(&mut act, &gate, &up, self.spec.gate)?;
        }
        let inp = s.post.as_ref().map(|p| (&p.mlp, &p.rstd_mlp));
        let mut dout = self.addition_backward(x, grads, NormId::MlpOut, id, inp)?;
        let mut low = linear::LowRankScratch { du: &mut x.du, spare: &mut x.spare };
        let (dinp, mut trained) = (Some((&mut dact, false)), grads.trained(l, id));
        let (u, linear) = (&s.u[id], self.weights.linear(id)?);
        let dropout = self.dropout_of(id);
        let dropout = dropout.as_ref();
        linear::backward_input(dinp, &mut dout, &mut low, u, &act, linear, &mut trained, dropout)?;
        gated_backward(&mut dgate, &mut dup, Some(&mut act), &dact, &gate, &up, self.spec.gate)?;
        linear::backward_weights(&dout, &low, &act, trained, dropout)?;
        let inp = self.input_again(&mut x.norm, (&s.resid_mid, &s.rstd_mid), NormId::Mlp)?;
        for (id, dout) in [(LinearId::Gate, &mut dgate), (LinearId::Up, &mut dup)] {
            let dinp = if pre { (&mut x.dnorm, id != LinearId::Gate) } else { (&mut x.dresid, true) };
            let (trained, dropout) = (grads.trained(l, id), self.dropout_of(id));
            let (u, linear) = (&s.u[id], self.weights.linear(id)?);
            linear::backward(Some(dinp), dout, &mut low, u, inp, linear, trained, dropout.as_ref())?;
        }
        self.input_backward(x, grads, NormId::Mlp, (&s.resid_mid, &s.rstd_mid))
    }

    /// x.dresid (of resid_mid) becomes the gradient of the layer's input, where anything below needs it.
    fn attention_backward(
        &self,
        s: &Saved,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        below: bool,
    ) -> Result<()> {
        let (l, pre) = (self.layer, self.spec.pre_norms);
        let inp = s.post.as_ref().map(|p| (&p.attention, &p.rstd_attention));
        let mut dout = self.addition_backward(x, grads, NormId::AttentionOut, LinearId::O, inp)?;
        let mut low = linear::LowRankScratch { du: &mut x.du, spare: &mut x.spare };
        let (id, dinp) = (LinearId::O, Some((&mut x.datt, false)));
        let (trained, dropout) = (grads.trained(l, id), self.dropout_of(id));
        let (u, linear) = (&s.u[id], self.weights.linear(id)?);
        linear::backward(dinp, &mut dout, &mut low, u, &s.att, linear, trained, dropout.as_ref())?;
        let (dq, dk, dv) = (&mut x.dq, &mut x.dk, &mut x.dv);
        attention_backward(dq, dk, dv, &x.datt, &s.att, &s.lse, &s.q, &s.k, &s.v, &x.cu_seqlens, self.shape)?;
        if !self.norms_rotated() {
            self.rotate(dq, dk, &x.positions, true)?;
        }
        let (mut dq, mut dk) = (dq, dk);
        if let (Some(h), Some(dk_in)) = (&s.heads, &mut x.dk_in) {
            // The attention's gradient is used up: its memory holds that of the queries before their norm.
            self.heads_backward(&mut x.datt, dq, (&h.q, &h.rstd_q), NormId::Query, grads)?;
            self.heads_backward(dk_in, dk, (&h.k, &h.rstd_k), NormId::Key, grads)?;
            (dq, dk) = (&mut x.datt, dk_in);
            if self.norms_rotated() {
                self.rotate(dq, dk, &x.positions, true)?;
            }
        }
        let inp = self.input_again(&mut x.norm, (&s.resid_in, &s.rstd_in), NormId::Attention)?;
        for (id, dout) in [(LinearId::Q, dq), (LinearId::K, dk), (LinearId::V, dv)] {
            let dinp = if pre { (&mut x.dnorm, id != LinearId::Q) } else { (&mut x.dresid, true) };
            let dinp = below.then_some(dinp);
            let (trained, dropout) = (grads.trained(l, id), self.dropout_of(id));
            let (u, linear) = (&s.u[id], self.weights.linear(id)?);
            linear::backward(dinp, dout, &mut low, u, inp, linear, trained, dropout.as_ref())?;
        }
        if !below {
            return Ok(());
        }
        self.input_backward(x, grads, NormId::Attention, (&s.resid_in, &s.rstd_in))
    }

    /// dinp = the gradient of [`Block::norm_heads`].
    fn heads_backward(
        &self,
        dinp: &mut Tensor,
        dout: &Tensor,
        (inp, rstd): (&Tensor, &Tensor),
        id: NormId,
        grads: &mut Grads,
    ) -> Result<()> {
        let dims = [rstd.len(), inp.len() / rstd.len()];
        norm_backward(
            (&mut dinp.view(&dims)?, false),
            grads.norm(self.layer, id),
            &dout.view(&dims)?,
            (&inp.view(&dims)?, rstd),
            self.weights.norm(id)?,
            self.spec.norm,
        )
    }
}
