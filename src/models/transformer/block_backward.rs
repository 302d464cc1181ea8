//! A decoder layer's backward. It makes the normed inputs and the gated product again, from the residuals and 1/rms that forward saved.
use anyhow::Result;

use super::{
    block::{Block, norm_backward, norm_forward},
    grads::Grads,
    ids::{LinearId, NormId},
    linear,
    saved::{BackwardScratch, Saved},
};
use crate::{
    ops::{
        attention::attention_backward,
        rope::rope_both,
        rows::copy,
        swiglu::{gated_backward, gated_forward},
    },
    tensor::Tensor,
};

impl Block<'_> {
    /// x.dresid, the gradient of the layer's output, becomes that of its input, where anything `below` needs it; the trained parts' gradients +=.
    pub(super) fn backward(
        &self,
        s: &Saved,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        below: bool,
    ) -> Result<()> {
        self.mlp_backward(s, x, grads)?;
        self.attention_backward(s, x, grads, below)
    }

    /// Linears of one input as the ops take them together, if they may be: [`linear::in_one`], and the adapters are what is trained.
    fn in_one<'b>(
        &'b self,
        s: &'b Saved,
        grads: &'b Grads,
        douts: &[(LinearId, &'b Tensor)],
    ) -> Option<Vec<linear::Back<'b>>> {
        let adapters = grads.adapters(self.layer)?;
        if !linear::in_one(&s.att, douts.iter().map(|(id, _)| adapters[*id].as_ref())) {
            return None;
        }
        let one = |&(id, dout): &(LinearId, &'b Tensor)| {
            let (adapter, grads) = grads.adapter_grads(self.layer, id)?;
            Some(linear::Back { dout, u: &s.u[id], linear: &self.weights.linears[id], adapter, grads })
        };
        douts.iter().map(one).collect()
    }

    /// dinp = the gradient of an input that several linears read, from those of what they gave; the trained parts' gradients +=. `scratch`: du, spare,
    /// counters.
    fn linears_backward(
        &self,
        mut dinp: Option<&mut Tensor>,
        douts: &mut [(LinearId, &mut Tensor)],
        s: &Saved,
        inp: &Tensor,
        (du, spare, counters): &mut (&mut Option<Tensor>, &mut Option<Tensor>, &mut Option<Tensor>),
        grads: &mut Grads,
    ) -> Result<()> {
        let handles: Vec<(LinearId, Tensor)> = douts.iter().map(|(id, dout)| (*id, dout.alias())).collect();
        let shown: Vec<(LinearId, &Tensor)> = handles.iter().map(|(id, dout)| (*id, dout)).collect();
        if let Some(layers) = self.in_one(s, grads, &shown) {
            linear::backward_input_in_one(&layers, dinp.map(|d| (d, false)), du.as_ref())?;
            return linear::backward_weights_in_one(&layers, inp, du.as_ref(), counters.as_mut());
        }
        let mut low = linear::LowRankScratch { du, spare };
        for (i, (id, dout)) in douts.iter_mut().enumerate() {
            let (dinp, trained) = (dinp.as_deref_mut().map(|d| (d, i > 0)), grads.trained(self.layer, *id));
            linear::backward(dinp, dout, &mut low, &s.u[*id], inp, &self.weights.linears[*id], trained)?;
        }
        Ok(())
    }

    /// The gradient of what a half of the layer adds by `linear`, from that of the residual stream, x.dresid: that itself, or in x.norm where a norm stands between
    /// or a DoRA adapter will overwrite it, and dresid is still needed.
    fn addition_backward(
        &self,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        id: NormId,
        linear: LinearId,
        inp: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        let Some(inp) = inp else {
            let adapter = grads.adapters(self.layer).and_then(|a| a[linear].as_ref());
            if adapter.is_none_or(|a| a.magnitude.is_none()) {
                return Ok(x.dresid.alias());
            }
            copy(&mut x.norm, &x.dresid)?;
            return Ok(x.norm.alias());
        };
        let dgain = grads.norm(self.layer, id);
        norm_backward((&mut x.norm, false), dgain, &x.dresid, inp, self.weights.norm(id)?, self.spec.norm)?;
        Ok(x.norm.alias())
    }

    /// x.dresid (into the layer's output) becomes the gradient of resid_mid.
    fn mlp_backward(&self, s: &Saved, x: &mut BackwardScratch, grads: &mut Grads) -> Result<()> {
        let (w, l, norm) = (self.weights, self.layer, self.spec.norm);
        let (id, linears) = (LinearId::Down, &w.linears);
        let adapter = grads.adapters(l).and_then(|a| a[id].as_ref());
        if adapter.is_some_and(|a| a.magnitude.is_some()) {
            // DoRA needs it before the activation's backward gives it.
            gated_forward(&mut x.act, &s.gate, &s.up, self.spec.gate)?;
        }
        let inp = s.post.as_ref().map(|p| (&p.mlp, &p.rstd_mlp));
        let mut dout = self.addition_backward(x, grads, NormId::MlpOut, id, inp)?;
        let gate = self.spec.gate;
        let dinp = Some((&mut x.dact, false));
        if let Some(layers) = self.in_one(s, grads, &[(id, &dout)]) {
            linear::backward_input_in_one(&layers, dinp, x.du.as_ref())?;
            let act = Some(&mut x.act);
            gated_backward(&mut x.dgate, &mut x.dup, act, &x.dact, &s.gate, &s.up, gate)?;
            linear::backward_weights_in_one(&layers, &x.act, x.du.as_ref(), x.counters.as_mut())?;
        } else {
            let mut low = linear::LowRankScratch { du: &mut x.du, spare: &mut x.spare };
            let (u, linear, mut trained) = (&s.u[id], &linears[id], grads.trained(l, id));
            linear::backward_input(dinp, &mut dout, &mut low, u, &x.act, linear, &mut trained)?;
            let act = Some(&mut x.act);
            gated_backward(&mut x.dgate, &mut x.dup, act, &x.dact, &s.gate, &s.up, gate)?;
            linear::backward_weights(&dout, &low, &x.act, trained)?;
        }
        let gain = w.norm(NormId::Mlp)?;
        let mut rstd = s.rstd_mid.alias();
        norm_forward(&mut x.norm, &mut rstd, &s.resid_mid, gain, norm)?;
        let mut scratch = (&mut x.du, &mut x.spare, &mut x.counters);
        let douts = &mut [(LinearId::Gate, &mut x.dgate), (LinearId::Up, &mut x.dup)];
        self.linears_backward(Some(&mut x.dnorm), douts, s, &x.norm, &mut scratch, grads)?;
        let dgain = grads.norm(l, NormId::Mlp);
        norm_backward((&mut x.dresid, true), dgain, &x.dnorm, (&s.resid_mid, &s.rstd_mid), gain, norm)
    }

    /// x.dresid (of resid_mid) becomes the gradient of the layer's input, where anything below needs it.
    fn attention_backward(
        &self,
        s: &Saved,
        x: &mut BackwardScratch,
        grads: &mut Grads,
        below: bool,
    ) -> Result<()> {
        let (w, l, norm) = (self.weights, self.layer, self.spec.norm);
        let inp = s.post.as_ref().map(|p| (&p.attention, &p.rstd_attention));
        let mut dout = self.addition_backward(x, grads, NormId::AttentionOut, LinearId::O, inp)?;
        let mut scratch = (&mut x.du, &mut x.spare, &mut x.counters);
        let douts = &mut [(LinearId::O, &mut dout)];
        self.linears_backward(Some(&mut x.datt), douts, s, &s.att, &mut scratch, grads)?;
        let (dq, dk, dv) = (&mut x.dq, &mut x.dk, &mut x.dv);
        attention_backward(dq, dk, dv, &x.datt, &s.att, &s.lse, &s.q, &s.k, &s.v, &x.cu_seqlens, self.shape)?;
        let (cos, sin, hs) = (&self.rope.cos, &self.rope.sin, self.shape.head_size);
        rope_both(dq, dk, &x.positions, cos, sin, hs, true)?;
        let (mut dq, mut dk) = (dq, dk);
        if let (Some(h), Some(dk_in)) = (&s.heads, &mut x.dk_in) {
            // The attention's gradient is used up: its memory holds that of the queries before their norm.
            self.heads_backward(&mut x.datt, dq, (&h.q, &h.rstd_q), NormId::Query, grads)?;
            self.heads_backward(dk_in, dk, (&h.k, &h.rstd_k), NormId::Key, grads)?;
            (dq, dk) = (&mut x.datt, dk_in);
        }
        let gain = w.norm(NormId::Attention)?;
        let mut rstd = s.rstd_in.alias();
        norm_forward(&mut x.norm, &mut rstd, &s.resid_in, gain, norm)?;
        let douts = &mut [(LinearId::Q, dq), (LinearId::K, dk), (LinearId::V, dv)];
        let dinp = below.then_some(&mut x.dnorm);
        self.linears_backward(dinp, douts, s, &x.norm, &mut scratch, grads)?;
        if !below {
            return Ok(());
        }
        let dgain = grads.norm(l, NormId::Attention);
        norm_backward((&mut x.dresid, true), dgain, &x.dnorm, (&s.resid_in, &s.rstd_in), gain, norm)
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
        let dims = [rstd.len(), self.shape.head_size];
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
