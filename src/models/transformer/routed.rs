//! The memory of sparse layers: what routing leaves behind for backward, and the scratch of rows by expert.
use anyhow::Result;

use super::{experts::ExpertSpec, ids::LinearId, ids::PerLinear};
use crate::tensor::{Arena, DType, Tensor};

/// What a sparse layer's forward leaves behind beside what every layer does.
pub(super) struct Routed {
    /// (N, E), F32
    pub logits: Tensor,
    /// (N, K), U32: the experts of each token.
    pub chosen: Tensor,
    /// (N, K), F32: their shares.
    pub shares: Tensor,
    /// (N * K * R) of each linear of experts that is adapted, R the widest; an expert's rows stand where the rows before them end.
    pub u: PerLinear<Option<Tensor>>,
}

/// Rows by expert: which they are, and what goes in and comes out.
pub(super) struct Moves {
    /// (N * K): a row's token.
    pub order: Tensor,
    /// (N * K): a row's pair of token and place.
    pub pairs: Tensor,
    /// (N, K): a pair's row.
    pub slots: Tensor,
    /// (N * K, C): the input of experts.
    pub inp: Tensor,
    /// (N * K, C): their output; in backward its gradient, then that of their input.
    pub out: Tensor,
}

/// Gradients of the routing.
pub(super) struct RoutingGrads {
    /// (N, K), F32
    pub shares: Tensor,
    /// (N, E)
    pub logits: Tensor,
}

impl Routed {
    /// For `n` tokens.
    pub(super) fn lay_out(
        a: &mut Arena,
        experts: ExpertSpec,
        n: usize,
        dtype: DType,
        rank: &dyn Fn(LinearId) -> Option<usize>,
    ) -> Routed {
        let (e, k) = (experts.count, experts.chosen);
        Routed {
            logits: a.tensor("router_logits", DType::F32, &[n, e]),
            chosen: a.tensor("chosen", DType::U32, &[n, k]),
            shares: a.tensor("shares", DType::F32, &[n, k]),
            u: PerLinear::from_fn(|id| rank(id).map(|r| a.tensor("expert_u", dtype, &[n * k * r]))),
        }
    }

    /// The first `n` tokens of it: the same memory.
    pub(super) fn rows(&self, n: usize) -> Result<Routed> {
        Ok(Routed {
            logits: self.logits.rows(0..n)?,
            chosen: self.chosen.rows(0..n)?,
            shares: self.shares.rows(0..n)?,
            u: PerLinear::from_fn(|id| self.u[id].as_ref().map(Tensor::alias)),
        })
    }
}

impl Moves {
    /// For `n` tokens of width `c`.
    pub(super) fn lay_out(a: &mut Arena, experts: ExpertSpec, n: usize, c: usize, dtype: DType) -> Moves {
        let k = experts.chosen;
        Moves {
            order: a.tensor("expert_order", DType::U32, &[n * k]),
            pairs: a.tensor("expert_pairs", DType::U32, &[n * k]),
            slots: a.tensor("expert_slots", DType::U32, &[n, k]),
            inp: a.tensor("expert_inp", dtype, &[n * k, c]),
            out: a.tensor("expert_out", dtype, &[n * k, c]),
        }
    }

    /// The first `n` tokens of it: the same memory.
    pub(super) fn rows(&self, n: usize) -> Result<Moves> {
        let rows = n * self.slots.shape()[1];
        Ok(Moves {
            order: self.order.rows(0..rows)?,
            pairs: self.pairs.rows(0..rows)?,
            slots: self.slots.rows(0..n)?,
            inp: self.inp.rows(0..rows)?,
            out: self.out.rows(0..rows)?,
        })
    }
}

impl RoutingGrads {
    /// For `n` tokens.
    pub(super) fn lay_out(a: &mut Arena, experts: ExpertSpec, n: usize, dtype: DType) -> RoutingGrads {
        RoutingGrads {
            shares: a.tensor("dshares", DType::F32, &[n, experts.chosen]),
            logits: a.tensor("drouter_logits", dtype, &[n, experts.count]),
        }
    }

    /// The first `n` tokens of it: the same memory.
    pub(super) fn rows(&self, n: usize) -> Result<RoutingGrads> {
        Ok(RoutingGrads { shares: self.shares.rows(0..n)?, logits: self.logits.rows(0..n)? })
    }
}
