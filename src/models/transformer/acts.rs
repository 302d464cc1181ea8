//! The memory of a training step: what each layer saves, the batch, and scratch.
use anyhow::Result;

use super::{
    dropout::DropoutActs,
    lora::Lora,
    routed::{Moves, RoutingGrads},
    saved::{BackwardScratch, Saved, Scratch},
    spec::Spec,
};
use crate::{
    device::Device,
    ops::cross_entropy,
    tensor::{Arena, DType, Tensor},
};

/// Activations for batches of up to N tokens.
pub(super) struct Acts {
    pub layers: Vec<Saved>,
    /// (N, C): the last layer's output, and what the last norm makes of it.
    pub resid_out: Tensor,
    pub rstd_out: Tensor,
    pub hidden: Tensor,
    /// (N)
    pub losses: Tensor,
    pub loss: cross_entropy::LossScratch,
    pub tokens: Tensor,
    pub positions: Tensor,
    pub targets: Tensor,
    pub weights: Tensor,
    /// Scratch that all layers share, as [`BackwardScratch`] describes it.
    pub norm: Tensor,
    pub dresid: Tensor,
    pub dnorm: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    datt: Tensor,
    dk_in: Option<Tensor>,
    act: Tensor,
    dact: Tensor,
    dgate: Tensor,
    dup: Tensor,
    moves: Option<Moves>,
    routing: Option<RoutingGrads>,
    pub spare: Option<Tensor>,
    du: Option<Tensor>,
    pub dropout: Option<DropoutActs>,
}

/// Bytes for one chunk of logits.
const LOGITS_BYTES: usize = 48 << 20;

impl Acts {
    /// On `device`, of type `dtype`.
    pub(super) fn new(
        spec: &Spec,
        n: usize,
        lora: Option<&Lora>,
        device: &Device,
        dtype: DType,
    ) -> Result<(Acts, usize)> {
        Arena::build("activations", device, |a| Acts::lay_out(a, spec, n, lora, dtype))
    }

    /// What [`Acts::new`] would allocate, bytes.
    pub(super) fn bytes(spec: &Spec, n: usize, lora: Option<&Lora>, dtype: DType) -> usize {
        Arena::measure(|a| {
            Acts::lay_out(a, spec, n, lora, dtype);
        })
    }

    fn lay_out(a: &mut Arena, spec: &Spec, n: usize, lora: Option<&Lora>, dtype: DType) -> Acts {
        let (c, f, qs, kvs) = (spec.hidden_size, spec.mlp_width(), spec.query_size(), spec.kv_size());
        let mut layers = vec![];
        for l in 0..spec.layers.len() {
            let rank = |experts: bool, id| {
                let units = if experts { spec.expert_units(l) } else { l..l + 1 };
                lora.and_then(|lora| lora.widest(units, id))
            };
            layers.push(Saved::lay_out(a, spec, Some(l), n, dtype, &rank));
        }
        let adapters = || lora.into_iter().flat_map(Lora::adapters).map(|(_, _, adapter)| adapter);
        let rank = adapters().map(|adapter| adapter.a.shape()[0]).max();
        let dora = adapters().any(|adapter| adapter.magnitude.is_some());
        let wide = c.max(spec.widest_mlp()).max(qs);
        // Of experts K rows a token.
        let experts = lora.is_some_and(|lora| lora.adapts_experts(spec));
        let rows = if experts { n * spec.expert_rows().max(1) } else { n };
        let moves = spec.experts.map(|experts| Moves::lay_out(a, experts, n, c, dtype));
        let routing = spec.experts.map(|experts| RoutingGrads::lay_out(a, experts, n, dtype));
        let dropout = DropoutActs::lay_out(a, n, wide, lora, dtype);
        let mut t = |name: &str, dtype: DType, dims: &[usize]| a.tensor(name, dtype, dims);
        Acts {
            layers,
            dropout,
            moves,
            routing,
            resid_out: t("resid_out", dtype, &[n, c]),
            rstd_out: t("rstd_out", DType::F32, &[n]),
            hidden: t("hidden", dtype, &[n, c]),
            losses: t("losses", DType::F32, &[n]),
            weights: t("weights", DType::F32, &[n]),
            norm: t("norm", dtype, &[n, c]),
            dresid: t("dresid", dtype, &[n, c]),
            dnorm: t("dnorm", dtype, &[n, c]),
            dq: t("dq", dtype, &[n, qs]),
            dk: t("dk", dtype, &[n, kvs]),
            dv: t("dv", dtype, &[n, kvs]),
            datt: t("datt", dtype, &[n, qs]),
            dk_in: spec.qk_norms.map(|_| t("dk_in", dtype, &[n, kvs])),
            act: t("act", dtype, &[n, f]),
            dact: t("dact", dtype, &[n, f]),
            dgate: t("dgate", dtype, &[n, f]),
            dup: t("dup", dtype, &[n, f]),
            spare: dora.then(|| t("spare", dtype, &[rows * wide])),
            // Narrower adapters use the front of it.
            du: rank.map(|r| t("du", dtype, &[rows * r])),
            tokens: t("tokens", DType::U32, &[n]),
            positions: t("positions", DType::U32, &[n]),
            targets: t("targets", DType::U32, &[n]),
            loss: cross_entropy::LossScratch::lay_out(a, dtype, n, spec.vocab_size, c, LOGITS_BYTES),
        }
    }

    /// For a forward over the first `n` tokens.
    pub(super) fn forward_scratch(&self, n: usize) -> Result<Scratch> {
        Ok(Scratch {
            positions: self.positions.rows(0..n)?,
            norm: self.norm.rows(0..n)?,
            projected: self.dnorm.rows(0..n)?,
            act: self.act.rows(0..n)?,
            moves: self.moves.as_ref().map(|moves| moves.rows(n)).transpose()?,
        })
    }

    /// For a backward over the first `n` tokens.
    pub(super) fn backward_scratch(&self, n: usize, cu_seqlens: Tensor) -> Result<BackwardScratch> {
        Ok(BackwardScratch {
            positions: self.positions.rows(0..n)?,
            cu_seqlens,
            dresid: self.dresid.rows(0..n)?,
            norm: self.norm.rows(0..n)?,
            dnorm: self.dnorm.rows(0..n)?,
            dq: self.dq.rows(0..n)?,
            dk: self.dk.rows(0..n)?,
            dv: self.dv.rows(0..n)?,
            datt: self.datt.rows(0..n)?,
            dk_in: self.dk_in.as_ref().map(|t| t.rows(0..n)).transpose()?,
            act: self.act.rows(0..n)?,
            dact: self.dact.rows(0..n)?,
            dgate: self.dgate.rows(0..n)?,
            dup: self.dup.rows(0..n)?,
            moves: self.moves.as_ref().map(|moves| moves.rows(n)).transpose()?,
            routing: self.routing.as_ref().map(|routing| routing.rows(n)).transpose()?,
            spare: self.spare.as_ref().map(Tensor::alias),
            du: self.du.as_ref().map(Tensor::alias),
        })
    }
}
