//! The MLP of a sparse layer: every token's K experts of E, and what the router weighs them by.
//!
//! y = Σ_j p_j Down_j (f(Gate_j x) ∘ Up_j x). The rows of all tokens stand by expert, so that each expert is three products; p_j is put on the input of Down, which has
//! no bias. Rows within an expert are in the tokens' order, and a token's K rows are added in the order of their shares: no bit depends on the batch.
use std::ops::Range;

use anyhow::{Context, Result};

use super::Block;
use crate::{
    models::transformer::{
        grads::Grads,
        ids::{LinearId, NormId},
        linear::{self, Rows},
        lora::{Adapter, Adapters},
        routed::{Moves, Routed},
        saved::{BackwardScratch, Saved, Scratch},
        tree::linear_of,
        weights::Linear,
    },
    ops::{
        experts::{ByExpert, route_backward, route_forward, sum_slots, weigh_backward, weigh_forward},
        gemm::{Layout, gemm},
        rows::gather_rows,
        swiglu::{gated_backward, gated_forward},
    },
    tensor::Tensor,
};

const NO_MEMORY: &str = "a sparse layer has no memory for its routing";

/// An expert that has rows: its unit, and its number in the layer.
struct Group {
    unit: usize,
    expert: usize,
    rows: Range<usize>,
}

/// An expert's rows of the memory that all of a layer's adapters of one linear share.
fn rows_of_u(u: &Option<Tensor>, adapter: Option<&Adapter>, rows: &Range<usize>) -> Result<Option<Tensor>> {
    let Some((u, adapter)) = u.as_ref().zip(adapter) else { return Ok(None) };
    let r = adapter.a.shape()[0];
    u.rows(rows.start * r..rows.end * r)?.view(&[rows.len(), r]).map(Some)
}

impl Block<'_> {
    fn expert(&self, group: &Group, id: LinearId) -> Result<&Linear> {
        linear_of(&self.experts[group.expert], id)
    }

    /// The experts that have rows; `moves` says which these are.
    fn groups(&self, routed: &Routed, moves: &mut Moves) -> Result<Vec<Group>> {
        let (k, count) = (routed.chosen.shape()[1], self.experts.len());
        let by = ByExpert::of(&routed.chosen.to_u32_vec()?, k, count);
        moves.order.write_u32(&by.order)?;
        moves.pairs.write_u32(&by.pairs)?;
        moves.slots.write_u32(&by.slots)?;
        let first = self.spec.expert_units(self.layer).start;
        Ok(by.groups.into_iter().map(|(expert, rows)| Group { unit: first + expert, expert, rows }).collect())
    }

    fn normalised(&self) -> bool {
        self.spec.experts.is_some_and(|experts| experts.normalised)
    }

    /// x.projected = what the experts make of x.norm.
    pub(super) fn experts_forward(
        &self,
        s: &mut Saved,
        x: &mut Scratch,
        adapters: Option<&Adapters>,
        rows: Rows,
    ) -> Result<()> {
        let n = x.norm.rows_cols().0;
        let [mut gate, mut up, mut act] = self.mlp_views([&s.gate, &s.up, &x.act], n)?;
        let (routed, moves) = s.routed.as_mut().zip(x.moves.as_mut()).context(NO_MEMORY)?;
        let router = self.weights.linear(LinearId::Router)?;
        gemm(&mut routed.logits, &x.norm, &router.weight, Layout::NT, 1.0, false)?;
        route_forward(&mut routed.chosen, &mut routed.shares, &routed.logits, self.normalised())?;
        let groups = self.groups(routed, moves)?;
        gather_rows(&mut moves.inp, &x.norm, &moves.order)?;
        let each = |id: LinearId, out: &mut Tensor, inp: &Tensor| -> Result<()> {
            for group in &groups {
                let adapter = adapters.and_then(|a| a[group.unit][id].as_ref());
                let mut u = rows_of_u(&routed.u[id], adapter, &group.rows)?;
                let (mut out, inp) = (out.rows(group.rows.clone())?, inp.rows(group.rows.clone())?);
                linear::forward(&mut out, &mut u, &inp, self.expert(group, id)?, adapter, None, rows)?;
            }
            Ok(())
        };
        if rows == Rows::Any && adapters.is_none() {
            for group in &groups {
                let part = |t: &Tensor| t.rows(group.rows.clone());
                let (mut gate, mut up, inp) = (part(&gate)?, part(&up)?, part(&moves.inp)?);
                let both = [self.expert(group, LinearId::Gate)?, self.expert(group, LinearId::Up)?];
                linear::forward_together(&mut [&mut gate, &mut up], &inp, &both)?;
            }
        } else {
            each(LinearId::Gate, &mut gate, &moves.inp)?;
            each(LinearId::Up, &mut up, &moves.inp)?;
        }
        gated_forward(&mut act, &gate, &up, self.spec.gate)?;
        weigh_forward(&mut act, &routed.shares, &moves.pairs)?;
        each(LinearId::Down, &mut moves.out, &act)?;
        sum_slots(&mut x.projected, &moves.out, &moves.slots, false)
    }

    /// x.dresid (into the layer's output) becomes the gradient of resid_mid.
    pub(super) fn experts_backward(
        &self,
        s: &Saved,
        x: &mut BackwardScratch,
        grads: &mut Grads,
    ) -> Result<()> {
        let n = x.norm.rows_cols().0;
        let routed = s.routed.as_ref().context(NO_MEMORY)?;
        let [gate, up, mut act] = self.mlp_views([&s.gate, &s.up, &x.act], n)?;
        let [mut dact, mut dgate, mut dup] = self.mlp_views([&x.dact, &x.dgate, &x.dup], n)?;
        let dout = self.addition_backward(x, grads, NormId::MlpOut, LinearId::Down, None)?;
        let moves = x.moves.as_mut().context(NO_MEMORY)?;
        let groups = self.groups(routed, moves)?;
        gather_rows(&mut moves.out, &dout, &moves.order)?;
        gated_forward(&mut act, &gate, &up, self.spec.gate)?;
        weigh_forward(&mut act, &routed.shares, &moves.pairs)?;
        let low = &mut linear::LowRankScratch { du: &mut x.du, spare: &mut x.spare };
        let id = LinearId::Down;
        self.each_backward(id, &groups, (&mut dact, false), (&mut moves.out, &act), routed, low, grads)?;
        // Once more, without the shares: their gradient is by what they are multiplied with.
        gated_forward(&mut act, &gate, &up, self.spec.gate)?;
        let routing = x.routing.as_mut().context(NO_MEMORY)?;
        weigh_backward(&mut routing.shares, &mut dact, &act, &routed.shares, &moves.pairs)?;
        gated_backward(&mut dgate, &mut dup, None, &dact, &gate, &up, self.spec.gate)?;
        let inp = self.input_again(&mut x.norm, (&s.resid_mid, &s.rstd_mid), NormId::Mlp)?;
        gather_rows(&mut moves.inp, inp, &moves.order)?;
        for (id, dout) in [(LinearId::Gate, &mut dgate), (LinearId::Up, &mut dup)] {
            let dinp = (&mut moves.out, id != LinearId::Gate);
            self.each_backward(id, &groups, dinp, (dout, &moves.inp), routed, low, grads)?;
        }
        sum_slots(&mut x.dnorm, &moves.out, &moves.slots, false)?;
        let Routed { logits, chosen, shares, .. } = routed;
        route_backward(&mut routing.logits, &routing.shares, chosen, shares, logits, self.normalised())?;
        let (id, dinp) = (LinearId::Router, Some((&mut x.dnorm, true)));
        let (router, trained) = (self.weights.linear(id)?, grads.trained(self.layer, id));
        linear::backward(dinp, &mut routing.logits, low, &None, inp, router, trained, None)?;
        self.input_backward(x, grads, NormId::Mlp, (&s.resid_mid, &s.rstd_mid))
    }

    /// The backward of one linear of every expert that has rows: dinp = or += by dout, of which `inp` was the input.
    fn each_backward(
        &self,
        id: LinearId,
        groups: &[Group],
        (dinp, add): (&mut Tensor, bool),
        (dout, inp): (&mut Tensor, &Tensor),
        routed: &Routed,
        low: &mut linear::LowRankScratch,
        grads: &mut Grads,
    ) -> Result<()> {
        for group in groups {
            let rows = || group.rows.clone();
            let (mut dinp, mut dout, inp) = (dinp.rows(rows())?, dout.rows(rows())?, inp.rows(rows())?);
            let trained = grads.trained(group.unit, id);
            let adapter = trained.adapter.as_ref().map(|(adapter, _)| *adapter);
            let u = rows_of_u(&routed.u[id], adapter, &group.rows)?;
            let linear = self.expert(group, id)?;
            linear::backward(Some((&mut dinp, add)), &mut dout, low, &u, &inp, linear, trained, None)?;
        }
        Ok(())
    }
}
