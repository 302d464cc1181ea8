//! A decoder layer, forward and backward: the one place that says what it computes, for training, prompts and decode steps.
//!
//! h = x + s [norm] attention([norm] x); y = h + s [norm] mlp([norm] h), with the norms that the family has, and its factor s.
//! Backward makes the normed inputs and the gated product again, from the residuals and 1/rms that forward saved.
mod backward;
mod experts;

use anyhow::Result;

use super::{
    dropout::{Dropout, InputDropout},
    ids::{LinearId, NormId, PerLinear},
    linear::{self, Rows},
    lora::Adapters,
    rope_table::RopeTable,
    saved::{Saved, Scratch},
    spec::{NormSpec, Spec},
    weights::{LayerWeights, UnitLinears, Weights},
};
pub(super) use backward::norm_backward;

use crate::{
    ops::{
        attention::{AttentionShape, attention_forward},
        decode_attention::decode_attention_forward,
        rmsnorm::{add_rmsnorm_forward, rmsnorm_forward},
        rope::rope_both,
        rows::{add, cast, copy, scatter_rows},
        swiglu::gated_forward,
    },
    tensor::Tensor,
};

/// A layer ready to run.
pub(super) struct Block<'a> {
    pub spec: &'a Spec,
    pub layer: usize,
    pub weights: &'a LayerWeights,
    /// Of its experts, where it is sparse.
    pub experts: &'a [UnitLinears],
    pub rope: Option<&'a RopeTable>,
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
    /// The gain of the norm that follows; without one the normed input is not written.
    pub gain: Option<&'a Tensor>,
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

impl<'a> Block<'a> {
    /// Layer `l` of a model.
    pub(super) fn new(
        spec: &'a Spec,
        layer: usize,
        weights: &'a Weights,
        ropes: &'a [RopeTable],
    ) -> Block<'a> {
        let rope = spec.layers[layer].rope.map(|which| &ropes[which]);
        let (units, first) = (spec.expert_units(layer), spec.layers.len());
        let experts = &weights.experts[units.start - first..units.end - first];
        let weights = &weights.layers[layer];
        Block { spec, layer, weights, experts, rope, shape: spec.attention(layer), dropout: None }
    }

    /// The same with dropout.
    pub(super) fn with_dropout(self, dropout: Option<&'a Dropout>) -> Block<'a> {
        Block { dropout, ..self }
    }

    /// Dropout on the input of the adapter of `id`.
    fn dropout_of(&self, id: LinearId) -> Option<InputDropout<'_>> {
        // Linears of one module drop the same.
        let first = self.spec.module_parts(id).first().copied().unwrap_or(id);
        self.dropout.map(|dropout| dropout.of(self.layer, first))
    }

    /// The gain of the norm before attention.
    pub(super) fn input_gain(&self) -> Option<&'a Tensor> {
        self.weights.norms[NormId::Attention].as_ref()
    }

    /// x.norm = the normed s.resid_in, where a norm stands before attention.
    pub(super) fn norm_input(&self, s: &mut Saved, x: &mut Scratch) -> Result<()> {
        let Some(gain) = self.input_gain() else { return Ok(()) };
        norm_forward(&mut x.norm, &mut s.rstd_in, &s.resid_in, gain, self.spec.norm)
    }

    /// What attention or the MLP reads: the residual stream, normed where norms stand before them.
    fn input<'t>(&self, norm: &'t Tensor, resid: &'t Tensor) -> &'t Tensor {
        if self.spec.pre_norms { norm } else { resid }
    }

    /// Queries and keys rotated, or with `back` their gradients turned back; as they are in layers without positions.
    fn rotate(&self, q: &mut Tensor, k: &mut Tensor, positions: &Tensor, back: bool) -> Result<()> {
        let Some(rope) = self.rope else { return Ok(()) };
        rope_both(q, k, positions, &rope.cos, &rope.sin, self.shape.head_size, back)
    }

    /// Queries and keys are normed after rotation.
    fn norms_rotated(&self) -> bool {
        self.spec.qk_norms.is_some_and(|n| n.rotated)
    }

    /// From s.resid_in and its normed form x.norm to `next`; everything else in `s` is written.
    pub(super) fn forward(
        &self,
        s: &mut Saved,
        x: &mut Scratch,
        attention: Attention,
        adapters: Option<&Adapters>,
        rows: Rows,
        mut next: Next,
    ) -> Result<()> {
        self.attention_forward(s, x, attention, adapters, rows)?;
        let (resid, rstd, norm) = (s.resid_mid.alias(), s.rstd_mid.alias(), x.norm.alias());
        let mut middle = Next { resid, rstd, norm, gain: self.weights.norms[NormId::Mlp].as_ref() };
        let post = s.post.as_mut().map(|p| (&mut p.attention, &mut p.rstd_attention, NormId::AttentionOut));
        let (id, u) = (LinearId::O, &mut s.u);
        self.add_forward(&mut middle, id, u, (&s.att, &s.resid_in), post, &mut x.projected, adapters, rows)?;
        if !self.experts.is_empty() {
            self.experts_forward(s, x, adapters, rows)?;
            return self.join(&mut next, &x.projected, &s.resid_mid);
        }
        let n = x.norm.rows_cols().0;
        let [mut gate, mut up, mut act] = self.mlp_views([&s.gate, &s.up, &x.act], n)?;
        let mut gates = [(LinearId::Gate, &mut gate), (LinearId::Up, &mut up)];
        let inp = self.input(&x.norm, &s.resid_mid);
        self.project(&mut gates, &mut s.u, inp, adapters, rows)?;
        gated_forward(&mut act, &gate, &up, self.spec.gate)?;
        let post = s.post.as_mut().map(|p| (&mut p.mlp, &mut p.rstd_mlp, NormId::MlpOut));
        let (id, u) = (LinearId::Down, &mut s.u);
        self.add_forward(&mut next, id, u, (&act, &s.resid_mid), post, &mut x.projected, adapters, rows)
    }

    /// The rows of this layer's MLP in memory that is as wide as the widest's: (N, F), or (N * K, F) of experts.
    fn mlp_views<const M: usize>(&self, tensors: [&Tensor; M], n: usize) -> Result<[Tensor; M]> {
        let (k, f) = self.spec.mlp_rows(self.layer);
        let mut views = tensors.map(Tensor::alias);
        for view in &mut views {
            *view = view.view(&[view.len()])?.rows(0..n * k * f)?.view(&[n * k, f])?;
        }
        Ok(views)
    }

    /// next = what comes of resid + s linear(inp), or of resid + norm(linear(inp)) where a norm stands behind (`post`: its input, its 1/rms, its gain). On a GPU
    /// the addition is the product's epilogue, where nothing stands between.
    fn add_forward(
        &self,
        next: &mut Next,
        id: LinearId,
        u: &mut PerLinear<Option<Tensor>>,
        (inp, resid): (&Tensor, &Tensor),
        post: Option<(&mut Tensor, &mut Tensor, NormId)>,
        projected: &mut Tensor,
        adapters: Option<&Adapters>,
        rows: Rows,
    ) -> Result<()> {
        let (norm, scale) = (self.spec.norm, self.spec.residual_scale);
        let adapter = adapters.and_then(|a| a[self.layer][id].as_ref());
        let plain = post.is_none() && scale == 1.0 && adapter.is_none_or(|a| a.magnitude.is_none());
        if plain && inp.gpu().is_some() {
            let linear = self.weights.linear(id)?;
            let dropout = self.dropout_of(id);
            linear::add_forward(&mut next.resid, &mut u[id], inp, linear, adapter, dropout.as_ref(), resid)?;
            let Some(gain) = next.gain else { return Ok(()) };
            return norm_forward(&mut next.norm, &mut next.rstd, &next.resid, gain, norm);
        }
        match post {
            Some((out, rstd, gain)) => {
                self.project(&mut [(id, out)], u, inp, adapters, rows)?;
                norm_forward(projected, rstd, out, self.weights.norm(gain)?, norm)?;
            }
            None if scale != 1.0 => {
                self.project(&mut [(id, &mut next.norm)], u, inp, adapters, rows)?;
                cast(projected, &next.norm, scale)?;
            }
            None => self.project(&mut [(id, projected)], u, inp, adapters, rows)?,
        }
        self.join(next, projected, resid)
    }

    /// next = what comes of resid + projected.
    fn join(&self, next: &mut Next, projected: &Tensor, resid: &Tensor) -> Result<()> {
        let norm = self.spec.norm;
        let (out, rstd, sum) = (&mut next.norm, &mut next.rstd, &mut next.resid);
        match next.gain {
            Some(gain) => add_rmsnorm_forward(out, rstd, sum, projected, resid, norm.gain(gain), norm.eps),
            None => {
                copy(sum, resid)?;
                add(sum, projected)
            }
        }
    }

    /// s.att, from x.norm.
    fn attention_forward(
        &self,
        s: &mut Saved,
        x: &Scratch,
        attention: Attention,
        adapters: Option<&Adapters>,
        rows: Rows,
    ) -> Result<()> {
        let (q, k) = match &mut s.heads {
            Some(heads) => (&mut heads.q, &mut heads.k),
            None => (&mut s.q, &mut s.k),
        };
        let mut outs = [(LinearId::Q, q), (LinearId::K, k), (LinearId::V, &mut s.v)];
        let inp = self.input(&x.norm, &s.resid_in);
        self.project(&mut outs, &mut s.u, inp, adapters, rows)?;
        if let Some(h) = &mut s.heads {
            if self.norms_rotated() {
                self.rotate(&mut h.q, &mut h.k, &x.positions, false)?;
            }
            self.norm_heads(&mut s.q, &mut h.rstd_q, &h.q, NormId::Query)?;
            self.norm_heads(&mut s.k, &mut h.rstd_k, &h.k, NormId::Key)?;
        }
        if !self.norms_rotated() {
            self.rotate(&mut s.q, &mut s.k, &x.positions, false)?;
        }
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

    /// Each head of inp (N, heads * HS) normed on its own, or all of a token's as one, as many rows as `rstd` has.
    fn norm_heads(&self, out: &mut Tensor, rstd: &mut Tensor, inp: &Tensor, id: NormId) -> Result<()> {
        let dims = [rstd.len(), inp.len() / rstd.len()];
        let gain = self.weights.norm(id)?;
        norm_forward(&mut out.view(&dims)?, rstd, &inp.view(&dims)?, gain, self.spec.norm)
    }

    /// Linears of one input: in one dispatch where that is asked for and none has a bias or an adapter.
    fn project(
        &self,
        outs: &mut [(LinearId, &mut Tensor)],
        u: &mut PerLinear<Option<Tensor>>,
        inp: &Tensor,
        adapters: Option<&Adapters>,
        rows: Rows,
    ) -> Result<()> {
        let adapter = |id: LinearId| adapters.and_then(|a| a[self.layer][id].as_ref());
        let linears = outs.iter().map(|(id, _)| self.weights.linear(*id)).collect::<Result<Vec<_>>>()?;
        let plain = |id: LinearId| adapter(id).is_none();
        let bare = linears.iter().all(|linear| linear.bias.is_none());
        if rows == Rows::Any && bare && outs.iter().all(|(id, _)| plain(*id)) {
            let mut outs: Vec<_> = outs.iter_mut().map(|(_, out)| &mut **out).collect();
            return linear::forward_together(&mut outs, inp, &linears);
        }
        for ((id, out), linear) in outs.iter_mut().zip(linears) {
            let dropout = self.dropout_of(*id);
            linear::forward(out, &mut u[*id], inp, linear, adapter(*id), dropout.as_ref(), rows)?;
        }
        Ok(())
    }
}

impl Slots<'_> {
    /// Each row's key and value to its own slot.
    fn store(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        scatter_rows(self.keys, k, self.own)?;
        scatter_rows(self.values, v, self.own)
    }
}
