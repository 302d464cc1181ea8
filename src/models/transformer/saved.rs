//! The memory of a block: what a forward leaves behind, and the scratch that all layers share.
use super::{
    ids::{LinearId, PerLinear},
    routed::{Moves, Routed, RoutingGrads},
    spec::Spec,
};
use crate::tensor::{Arena, DType, Tensor};
use anyhow::Result;

/// What a layer's forward leaves behind. Training keeps one for each layer, for backward; inference uses one again and again.
pub(super) struct Saved {
    /// (N, C): the layer's input.
    pub resid_in: Tensor,
    /// (N): 1 / rms of it.
    pub rstd_in: Tensor,
    /// (N, NH * HS), after rotation.
    pub q: Tensor,
    /// (N, NKV * HS), after rotation.
    pub k: Tensor,
    /// (N, NKV * HS)
    pub v: Tensor,
    /// Where queries and keys are normed.
    pub heads: Option<HeadNorms>,
    /// (N, NH * HS)
    pub att: Tensor,
    /// (NH * N): log-sum-exp of the scores.
    pub lse: Tensor,
    /// (N, C): between attention and MLP.
    pub resid_mid: Tensor,
    /// (N)
    pub rstd_mid: Tensor,
    /// (N, F); of sparse layers the memory of (N * K, F), as of every tensor that is (N, F) here ([`Spec::mlp_rows`]).
    pub gate: Tensor,
    /// (N, F)
    pub up: Tensor,
    /// Where layers are sparse.
    pub routed: Option<Routed>,
    /// Where norms stand behind attention and MLP.
    pub post: Option<PostNorms>,
    /// (N, R) of each adapted linear.
    pub u: PerLinear<Option<Tensor>>,
}

/// Queries and keys before their norms.
pub(super) struct HeadNorms {
    /// (N, NH * HS)
    pub q: Tensor,
    /// (N * NH), or (N) where all heads are normed as one.
    pub rstd_q: Tensor,
    /// (N, NKV * HS)
    pub k: Tensor,
    /// (N * NKV) or (N)
    pub rstd_k: Tensor,
}

/// What attention and MLP gave before the norms behind them.
pub(super) struct PostNorms {
    /// (N, C)
    pub attention: Tensor,
    /// (N)
    pub rstd_attention: Tensor,
    /// (N, C)
    pub mlp: Tensor,
    /// (N)
    pub rstd_mlp: Tensor,
}

impl Saved {
    /// For `n` tokens of layer `layer`, or of any; activations of type `dtype`, sums over rows in F32 whatever that is. `rank` is that of a linear's adapter,
    /// of the layer's own or (true) the widest of its experts'.
    pub(super) fn lay_out(
        a: &mut Arena,
        spec: &Spec,
        layer: Option<usize>,
        n: usize,
        dtype: DType,
        rank: &dyn Fn(bool, LinearId) -> Option<usize>,
    ) -> Saved {
        let c = spec.hidden_size;
        let f = layer.map_or(spec.mlp_width(), |l| spec.mlp_rows(l).0 * spec.mlp_rows(l).1);
        let sparse = layer.is_none_or(|l| spec.layers[l].sparse);
        let routed = spec.experts.filter(|_| sparse);
        let routed = routed.map(|experts| Routed::lay_out(a, experts, n, dtype, &|id| rank(true, id)));
        let (qs, kvs, norms) = (spec.query_size(), spec.kv_size(), spec.qk_rows());
        let mut t = |name: &str, dims: &[usize]| {
            let sum = name.starts_with("rstd") || name == "lse";
            a.tensor(name, if sum { DType::F32 } else { dtype }, dims)
        };
        Saved {
            resid_in: t("resid_in", &[n, c]),
            rstd_in: t("rstd_in", &[n]),
            q: t("q", &[n, qs]),
            k: t("k", &[n, kvs]),
            v: t("v", &[n, kvs]),
            heads: spec.qk_norms.map(|_| HeadNorms {
                q: t("q_in", &[n, qs]),
                rstd_q: t("rstd_q", &[n * norms.0]),
                k: t("k_in", &[n, kvs]),
                rstd_k: t("rstd_k", &[n * norms.1]),
            }),
            att: t("att", &[n, qs]),
            lse: t("lse", &[spec.heads * n]),
            resid_mid: t("resid_mid", &[n, c]),
            rstd_mid: t("rstd_mid", &[n]),
            gate: t("gate", &[n, f]),
            up: t("up", &[n, f]),
            routed,
            post: spec.post_norms.then(|| PostNorms {
                attention: t("attention_out", &[n, c]),
                rstd_attention: t("rstd_attention", &[n]),
                mlp: t("mlp_out", &[n, c]),
                rstd_mlp: t("rstd_mlp", &[n]),
            }),
            u: PerLinear::from_fn(|id| rank(false, id).map(|r| t("u", &[n, r]))),
        }
    }

    /// The first `n` tokens of it: the same memory.
    pub(super) fn rows(&self, spec: &Spec, n: usize) -> Result<Saved> {
        let (nh, (q_norms, k_norms)) = (spec.heads, spec.qk_rows());
        let heads = |h: &HeadNorms| -> Result<HeadNorms> {
            Ok(HeadNorms {
                q: h.q.rows(0..n)?,
                rstd_q: h.rstd_q.rows(0..n * q_norms)?,
                k: h.k.rows(0..n)?,
                rstd_k: h.rstd_k.rows(0..n * k_norms)?,
            })
        };
        let post = |p: &PostNorms| -> Result<PostNorms> {
            Ok(PostNorms {
                attention: p.attention.rows(0..n)?,
                rstd_attention: p.rstd_attention.rows(0..n)?,
                mlp: p.mlp.rows(0..n)?,
                rstd_mlp: p.rstd_mlp.rows(0..n)?,
            })
        };
        Ok(Saved {
            resid_in: self.resid_in.rows(0..n)?,
            rstd_in: self.rstd_in.rows(0..n)?,
            q: self.q.rows(0..n)?,
            k: self.k.rows(0..n)?,
            v: self.v.rows(0..n)?,
            heads: self.heads.as_ref().map(heads).transpose()?,
            att: self.att.rows(0..n)?,
            lse: self.lse.rows(0..nh * n)?.view(&[nh, n])?,
            resid_mid: self.resid_mid.rows(0..n)?,
            rstd_mid: self.rstd_mid.rows(0..n)?,
            gate: self.gate.rows(0..n)?,
            up: self.up.rows(0..n)?,
            routed: self.routed.as_ref().map(|routed| routed.rows(n)).transpose()?,
            post: self.post.as_ref().map(post).transpose()?,
            u: PerLinear::try_from_fn(|id| self.u[id].as_ref().map(|u| u.rows(0..n)).transpose())?,
        })
    }
}

/// What a forward uses and leaves to the next layer.
pub(super) struct Scratch {
    /// (N): rows of the rotary tables, which are positions in their documents (see [`super::rope_table::RopeTables`]).
    pub positions: Tensor,
    /// (N, C): the normed input of attention, then of the MLP.
    pub norm: Tensor,
    /// (N, C): what attention and MLP add.
    pub projected: Tensor,
    /// (N, F)
    pub act: Tensor,
    /// Where layers are sparse.
    pub moves: Option<Moves>,
}

/// What a backward uses.
pub(super) struct BackwardScratch {
    /// (N): rows of the rotary tables, which are positions in their documents (see [`super::rope_table::RopeTables`]).
    pub positions: Tensor,
    /// (documents + 1)
    pub cu_seqlens: Tensor,
    /// (N, C): the gradient of the residual stream, carried from layer to layer.
    pub dresid: Tensor,
    /// (N, C): an input made again, or a gradient that may be overwritten.
    pub norm: Tensor,
    /// (N, C)
    pub dnorm: Tensor,
    /// (N, NH * HS)
    pub dq: Tensor,
    /// (N, NKV * HS)
    pub dk: Tensor,
    /// (N, NKV * HS)
    pub dv: Tensor,
    /// (N, NH * HS)
    pub datt: Tensor,
    /// (N, NKV * HS), where keys are normed: the gradient before the norm.
    pub dk_in: Option<Tensor>,
    /// (N, F)
    pub act: Tensor,
    /// (N, F)
    pub dact: Tensor,
    /// (N, F)
    pub dgate: Tensor,
    /// (N, F)
    pub dup: Tensor,
    /// Where layers are sparse.
    pub moves: Option<Moves>,
    /// Where layers are sparse.
    pub routing: Option<RoutingGrads>,
    /// (N * widest output), DoRA only.
    pub spare: Option<Tensor>,
    /// (N * widest rank), with adapters.
    pub du: Option<Tensor>,
}
