//! A decoder layer, forward and backward: the one place that says what it computes, for training, prompts and decode steps.
//!
//! h = x + [norm] attention(norm x); y = h + [norm] mlp(norm h), where the norms in brackets are those of families that have them.
//! Backward makes the normed inputs and the gated product again, from the residuals and 1/rms that forward saved.
use anyhow::Result;

use super::{
    dropout::{Dropout, InputDropout},
    grads::Grads,
    ids::{LinearId, NormId, PerLinear},
    linear::{self, Rows},
    lora::Adapter,
    rope_table::RopeTable,
    saved::{BackwardScratch, Saved, Scratch},
    spec::{NormSpec, Spec},
    weights::LayerWeights,
};
use crate::{
    ops::{
        attention::{AttentionShape, attention_backward, attention_forward},
        decode_attention::decode_attention_forward,
        rmsnorm::{add_rmsnorm_forward, rmsnorm_backward, rmsnorm_backward_into, rmsnorm_forward},
        rope::rope_both,
        rows::{copy, scatter_rows},
        swiglu::{gated_backward, gated_forward},
    },
    tensor::Tensor,
};

/// A layer ready to run.
pub(super) struct Block<'a> {
    pub spec: &'a Spec,
    pub layer: usize,
    pub weights: &'a LayerWeights,
    pub rope: &'a RopeTable,
    pub shape: AttentionShape,
    /// On the inputs of adapters.
    pub dropout: Option<&'a Dropout>,
}

/// A layer's slots in a cache: where keys and values (slots, NKV * HS) of these rows go.
pub(super) struct Slots<'a> {
    pub keys: &'a mut Tensor,
    pub values: &'a mut Tensor,
    /// (N)
    pub own: &'a Tensor,
}

/// Where attention finds keys and values.
pub(super) enum Attention<'a> {
    /// Documents packed back to back; keys and values are copied to a cache, if there is one.
    Packed { cu_seqlens: &'a Tensor, slots: Option<Slots<'a>> },
    /// One token a row, over the slots from `starts` on, `lengths` of them, its own included.
    Step { slots: Slots<'a>, starts: &'a Tensor, lengths: &'a Tensor },
}

/// Where a layer leaves its output: the residual stream (N, C), 1/rms (N), and the normed input of what follows (N, C).
pub(super) struct Next<'a> {
    pub resid: Tensor,
    pub rstd: Tensor,
    pub norm: Tensor,
    /// The gain of the norm that follows.
    pub gain: &'a Tensor,
}

/// out = norm of inp by `gain`.
pub(super) fn norm_forward(
    out: &mut Tensor,
    rstd: &mut Tensor,
    inp: &Tensor,
    gain: &Tensor,
    norm: NormSpec,
) -> Result<()> {
    rmsnorm_forward(out, rstd, inp, norm.gain(gain), norm.eps)
}

/// dinp = or, with `add`, +=, dgain += the gradient of [`norm_forward`].
pub(super) fn norm_backward(
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

impl<'a> Block<'a> {
    /// Layer `l` of a model.
    pub(super) fn new(
        spec: &'a Spec,
        layer: usize,
        weights: &'a LayerWeights,
        ropes: &'a [RopeTable],
    ) -> Block<'a> {
        let rope = &ropes[spec.layers[layer].rope];
        Block { spec, layer, weights, rope, shape: spec.attention(layer), dropout: None }
    }

    /// The same with dropout.
    pub(super) fn with_dropout(self, dropout: Option<&'a Dropout>) -> Block<'a> {
        Block { dropout, ..self }
    }

    /// Dropout on the input of the adapter of `id`.
    fn dropout_of(&self, id: LinearId) -> Option<InputDropout<'_>> {
        self.dropout.map(|dropout| dropout.of(self.layer, id))
    }

    /// The gain of the norm before attention.
    pub(super) fn input_gain(&self) -> Result<&'a Tensor> {
        self.weights.norm(NormId::Attention)
    }

    /// From s.resid_in and its normed form x.norm to `next`; everything else in `s` is written.
    pub(super) fn forward(
        &self,
        s: &mut Saved,
        x: &mut Scratch,
        attention: Attention,
        adapters: Option<&PerLinear<Option<Adapter>>>,
        rows: Rows,
        mut next: Next,
    ) -> Result<()> {
        self.attention_forward(s, x, attention, adapters, rows)?;
        let (resid, rstd, norm) = (s.resid_mid.alias(), s.rstd_mid.alias(), x.norm.alias());
        let mut middle = Next { resid, rstd, norm, gain: self.weights.norm(NormId::Mlp)? };
        let post = s.post.as_mut().map(|p| (&mut p.attention, &mut p.rstd_attention, NormId::AttentionOut));
        let (id, u) = (LinearId::O, &mut s.u);
        self.add_forward(&mut middle, id, u, (&s.att, &s.resid_in), post, &mut x.projected, adapters, rows)?;
        let mut gates = [(LinearId::Gate, &mut s.gate), (LinearId::Up, &mut s.up)];
        self.project(&mut gates, &mut s.u, &x.norm, adapters, rows)?;
        gated_forward(&mut x.act, &s.gate, &s.up, self.spec.gate)?;
        let post = s.post.as_mut().map(|p| (&mut p.mlp, &mut p.rstd_mlp, NormId::MlpOut));
        let (id, u) = (LinearId::Down, &mut s.u);
        self.add_forward(&mut next, id, u, (&x.act, &s.resid_mid), post, &mut x.projected, adapters, rows)
    }

    /// next = what comes of resid + linear(inp), or of resid + norm(linear(inp)) where a norm stands behind (`post`: its input, its 1/rms, its gain). On a GPU
    /// the addition is the product's epilogue, where nothing stands between.
    fn add_forward(
        &self,
        next: &mut Next,
        id: LinearId,
        u: &mut PerLinear<Option<Tensor>>,
        (inp, resid): (&Tensor, &Tensor),
        post: Option<(&mut Tensor, &mut Tensor, NormId)>,
        projected: &mut Tensor,
        adapters: Option<&PerLinear<Option<Adapter>>>,
        rows: Rows,
    ) -> Result<()> {
        let norm = self.spec.norm;
        let adapter = adapters.and_then(|a| a[id].as_ref());
        let plain = post.is_none() && adapter.is_none_or(|a| a.magnitude.is_none());
        if plain && inp.gpu().is_some() {
            let linear = &self.weights.linears[id];
            let dropout = self.dropout_of(id);
            linear::add_forward(&mut next.resid, &mut u[id], inp, linear, adapter, dropout.as_ref(), resid)?;
            return norm_forward(&mut next.norm, &mut next.rstd, &next.resid, next.gain, norm);
        }
        match post {
            Some((out, rstd, gain)) => {
                self.project(&mut [(id, out)], u, inp, adapters, rows)?;
                norm_forward(projected, rstd, out, self.weights.norm(gain)?, norm)?;
            }
            None => self.project(&mut [(id, projected)], u, inp, adapters, rows)?,
        }
        let (out, rstd, sum, gain) = (&mut next.norm, &mut next.rstd, &mut next.resid, norm.gain(next.gain));
        add_rmsnorm_forward(out, rstd, sum, projected, resid, gain, norm.eps)
    }

    /// s.att, from x.norm.
    fn attention_forward(
        &self,
        s: &mut Saved,
        x: &Scratch,
        attention: Attention,
        adapters: Option<&PerLinear<Option<Adapter>>>,
        rows: Rows,
    ) -> Result<()> {
        let (q, k) = match &mut s.heads {
            Some(heads) => (&mut heads.q, &mut heads.k),
            None => (&mut s.q, &mut s.k),
        };
        let mut outs = [(LinearId::Q, q), (LinearId::K, k), (LinearId::V, &mut s.v)];
        self.project(&mut outs, &mut s.u, &x.norm, adapters, rows)?;
        if let Some(h) = &mut s.heads {
            self.norm_heads(&mut s.q, &mut h.rstd_q, &h.q, NormId::Query)?;
            self.norm_heads(&mut s.k, &mut h.rstd_k, &h.k, NormId::Key)?;
        }
        let (cos, sin, hs) = (&self.rope.cos, &self.rope.sin, self.shape.head_size);
        rope_both(&mut s.q, &mut s.k, &x.positions, cos, sin, hs, false)?;
        match attention {
            Attention::Packed { cu_seqlens, slots } => {
                attention_forward(&mut s.att, &mut s.lse, &s.q, &s.k, &s.v, cu_seqlens, self.shape)?;
                slots.map_or(Ok(()), |mut slots| slots.store(&s.k, &s.v))
            }
            Attention::Step { mut slots, starts, lengths } => {
                slots.store(&s.k, &s.v)?;
                let (keys, values) = (&*slots.keys, &*slots.values);
                decode_attention_forward(&mut s.att, &s.q, keys, values, starts, lengths, self.shape)
            }
        }
    }

    /// Each head of inp (N, heads * HS) normed on its own.
    fn norm_heads(&self, out: &mut Tensor, rstd: &mut Tensor, inp: &Tensor, id: NormId) -> Result<()> {
        let dims = [rstd.len(), self.shape.head_size];
        let gain = self.weights.norm(id)?;
        norm_forward(&mut out.view(&dims)?, rstd, &inp.view(&dims)?, gain, self.spec.norm)
    }

    /// Linears of one input: in one dispatch where that is asked for and none has a bias or an adapter.
    fn project(
        &self,
        outs: &mut [(LinearId, &mut Tensor)],
        u: &mut PerLinear<Option<Tensor>>,
        inp: &Tensor,
        adapters: Option<&PerLinear<Option<Adapter>>>,
        rows: Rows,
    ) -> Result<()> {
        let linears = &self.weights.linears;
        let adapter = |id: LinearId| adapters.and_then(|a| a[id].as_ref());
        let plain = |id: LinearId| linears[id].bias.is_none() && adapter(id).is_none();
        if rows == Rows::Any && outs.iter().all(|(id, _)| plain(*id)) {
            let linears: Vec<_> = outs.iter().map(|(id, _)| &linears[*id]).collect();
            let mut outs: Vec<_> = outs.iter_mut().map(|(_, out)| &mut **out).collect();
            return linear::forward_together(&mut outs, inp, &linears);
        }
        let mut one = |(id, out): &mut (LinearId, &mut Tensor)| {
            let dropout = self.dropout_of(*id);
            linear::forward(out, &mut u[*id], inp, &linears[*id], adapter(*id), dropout.as_ref(), rows)
        };
        outs.iter_mut().try_for_each(&mut one)
    }

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
        let mut low = linear::LowRankScratch { du: &mut x.du, spare: &mut x.spare };
        let (dinp, mut trained) = (Some((&mut x.dact, false)), grads.trained(l, id));
        let (u, linear) = (&s.u[id], &linears[id]);
        let dropout = self.dropout_of(id);
        let dropout = dropout.as_ref();
        linear::backward_input(dinp, &mut dout, &mut low, u, &x.act, linear, &mut trained, dropout)?;
        let act = Some(&mut x.act);
        gated_backward(&mut x.dgate, &mut x.dup, act, &x.dact, &s.gate, &s.up, self.spec.gate)?;
        linear::backward_weights(&dout, &low, &x.act, trained, dropout)?;
        let gain = w.norm(NormId::Mlp)?;
        let mut rstd = s.rstd_mid.alias();
        norm_forward(&mut x.norm, &mut rstd, &s.resid_mid, gain, norm)?;
        for (id, dout) in [(LinearId::Gate, &mut x.dgate), (LinearId::Up, &mut x.dup)] {
            let dinp = Some((&mut x.dnorm, id != LinearId::Gate));
            let (trained, dropout) = (grads.trained(l, id), self.dropout_of(id));
            let (u, linear) = (&s.u[id], &linears[id]);
            linear::backward(dinp, dout, &mut low, u, &x.norm, linear, trained, dropout.as_ref())?;
        }
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
        let linears = &w.linears;
        let inp = s.post.as_ref().map(|p| (&p.attention, &p.rstd_attention));
        let mut dout = self.addition_backward(x, grads, NormId::AttentionOut, LinearId::O, inp)?;
        let mut low = linear::LowRankScratch { du: &mut x.du, spare: &mut x.spare };
        let (id, dinp) = (LinearId::O, Some((&mut x.datt, false)));
        let (trained, dropout) = (grads.trained(l, id), self.dropout_of(id));
        let (u, linear) = (&s.u[id], &linears[id]);
        linear::backward(dinp, &mut dout, &mut low, u, &s.att, linear, trained, dropout.as_ref())?;
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
        for (id, dout) in [(LinearId::Q, dq), (LinearId::K, dk), (LinearId::V, dv)] {
            let dinp = below.then_some((&mut x.dnorm, id != LinearId::Q));
            let (trained, dropout) = (grads.trained(l, id), self.dropout_of(id));
            let (u, linear) = (&s.u[id], &linears[id]);
            linear::backward(dinp, dout, &mut low, u, &x.norm, linear, trained, dropout.as_ref())?;
        }
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

impl Slots<'_> {
    /// Each row's key and value to its own slot.
    fn store(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        scatter_rows(self.keys, k, self.own)?;
        scatter_rows(self.values, v, self.own)
    }
}
