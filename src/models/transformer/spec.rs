//! What a decoder computes, whatever its family: sizes, norms, gate, biases, caps, windows and rotary embeddings.
use anyhow::{Context, Result, ensure};

use super::{
    config::Config,
    experts::ExpertSpec,
    ids::{NormId, PerLinear},
    rope_table::RopeSpec,
};
use crate::{
    ops::{
        activation::Activation,
        attention::{AttentionShape, supported},
        rmsnorm::Gain,
    },
    tensor::Tensor,
};

/// RMSNorm's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the gain: Gemma's norms scale by 1 + w.
    pub gain_offset: f32,
}

impl NormSpec {
    /// What a norm with this `weight` multiplies by.
    pub(super) fn gain(self, weight: &Tensor) -> Gain<'_> {
        Gain { weight, offset: self.gain_offset }
    }
}

/// The gate's activation by Hugging Face's name for it.
pub fn gate_of(name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => anyhow::bail!("hidden_act {other} is not supported, only silu and gelu_pytorch_tanh"),
    }
}

/// What may differ from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// A token sees this many tokens, itself included; all if absent.
    pub window: Option<usize>,
    /// Which of [`Spec::ropes`]; queries and keys stay as they are if absent (NoPE, Kazemnejad et al. 2023).
    pub rope: Option<usize>,
    /// Its MLP is a mixture of experts ([`Spec::experts`]).
    pub sparse: bool,
}

/// How queries and keys are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorms {
    /// All heads of a token are one row, and the gains as wide as all of them; else each head is normed on its own.
    pub whole: bool,
    /// After rotation; else before it.
    pub rotated: bool,
}

impl QkNorms {
    /// Of each head, before rotation.
    pub const HEADS: QkNorms = QkNorms { whole: false, rotated: false };
}

/// By what embeddings are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmbeddingScale {
    /// This number.
    By(f32),
    /// sqrt(C), rounded to the weights' type.
    RootOfWidth,
}

/// A decoder's arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// V.
    pub vocab_size: usize,
    /// C.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// NH.
    pub heads: usize,
    /// NKV.
    pub kv_heads: usize,
    /// HS.
    pub head_size: usize,
    /// By layer.
    pub layers: Vec<LayerSpec>,
    /// Of every norm.
    pub norm: NormSpec,
    /// Norms of queries and keys.
    pub qk_norms: Option<QkNorms>,
    /// Norms before attention and MLP.
    pub pre_norms: bool,
    /// Norms behind attention and MLP, before the residual additions.
    pub post_norms: bool,
    /// The MLP's gate: SwiGLU or GeGLU.
    pub gate: Activation,
    /// Which linears carry biases.
    pub biases: PerLinear<bool>,
    /// Factor of the attention scores.
    pub query_scale: f32,
    /// Scores s become cap tanh(s / cap).
    pub attention_softcap: Option<f32>,
    /// Logits l become cap tanh(l / cap).
    pub final_softcap: Option<f32>,
    /// Factor of the embeddings.
    pub embedding_scale: EmbeddingScale,
    /// Factor of what attention and MLP add to the residual stream; 1 where norms stand behind them.
    pub residual_scale: f32,
    /// Factor of the logits, before their cap.
    pub logit_scale: f32,
    /// Checkpoints keep q, k and v as one matrix, and gate and up as another ([`super::ids::FUSED`]).
    pub fused: bool,
    /// The MLP of layers that are sparse.
    pub experts: Option<ExpertSpec>,
    /// The rotary embeddings that layers choose from.
    pub ropes: Vec<RopeSpec>,
    /// The head is the embedding.
    pub tied_head: bool,
}

impl LayerSpec {
    /// With this window, rotated, and with an MLP of its own.
    pub fn dense(window: Option<usize>) -> LayerSpec {
        LayerSpec { window, rope: Some(0), sparse: false }
    }

    /// The layers of a decoder of which some have a window: those that `layer_types` names, or, without it, those for which `slides`.
    pub(super) fn windowed(
        c: &Config,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<LayerSpec>> {
        let listed = c.layer_types()?;
        let sliding = |i: usize| listed.as_ref().map_or_else(|| slides(i), |l| l[i]);
        let layer = |i: usize| {
            ensure!(
                !(listed.is_some() && sliding(i) && window.is_none()),
                "layer_types gives layer {i} a sliding window, but there is no sliding_window"
            );
            Ok(LayerSpec::dense(window.filter(|_| sliding(i))))
        };
        (0..c.num_hidden_layers).map(layer).collect()
    }
}

impl Spec {
    /// The plain decoder of a configuration's sizes: no biases, full attention, one rotary embedding. Families change what they do otherwise.
    pub fn plain(c: &Config) -> Result<Spec> {
        Ok(Spec {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            heads: c.num_attention_heads,
            kv_heads: c.kv_heads(),
            head_size: c.head_size(),
            layers: vec![LayerSpec::dense(None); c.num_hidden_layers],
            norm: NormSpec { eps: c.rms_norm_eps as f32, gain_offset: 0.0 },
            qk_norms: None,
            pre_norms: true,
            post_norms: false,
            gate: gate_of(&c.hidden_act)?,
            biases: PerLinear::from_fn(|_| false),
            query_scale: 1.0 / (c.head_size() as f32).sqrt(),
            attention_softcap: None,
            final_softcap: None,
            embedding_scale: EmbeddingScale::By(1.0),
            residual_scale: 1.0,
            logit_scale: 1.0,
            fused: false,
            experts: None,
            ropes: vec![RopeSpec::of_config(c)],
            tied_head: c.tie_word_embeddings,
        })
    }

    /// Refuses what no decoder can be.
    pub fn check(&self) -> Result<()> {
        let (nh, nkv) = (self.heads, self.kv_heads);
        ensure!(
            nh > 0 && nkv > 0 && nh.is_multiple_of(nkv),
            "{nh} attention heads do not share {nkv} key/value heads evenly"
        );
        ensure!(
            self.head_size > 0 && self.head_size.is_multiple_of(2),
            "the head size {} is not even",
            self.head_size
        );
        ensure!(
            self.layers.iter().all(|l| l.window != Some(0)),
            "a sliding window of 0 tokens: nothing would be seen"
        );
        for rope in &self.ropes {
            let (frequencies, factor) = rope.frequencies(1).context("rope_scaling")?;
            ensure!(
                factor.is_finite() && frequencies.iter().all(|f| f.is_finite()),
                "its rotary embedding has frequencies that are no numbers: rope_theta {}, {:?}",
                rope.theta,
                rope.scaling
            );
        }
        let caps = [self.attention_softcap, self.final_softcap];
        ensure!(
            caps.iter().flatten().all(|&cap| cap > 0.0 && cap.is_finite()),
            "a soft-cap must be above 0, found {caps:?}"
        );
        self.check_experts()?;
        let embedding = if let EmbeddingScale::By(x) = self.embedding_scale { x } else { 1.0 };
        for (what, scale) in [
            ("attention", self.query_scale),
            ("embedding", embedding),
            ("residual addition", self.residual_scale),
            ("logits", self.logit_scale),
        ] {
            ensure!(
                scale > 0.0 && scale.is_finite(),
                "the scale of the {what} is {scale}: a positive number was expected"
            );
        }
        Ok(())
    }

    /// Refuses what the kernels of a GPU of compute capability `arch` (80 for sm_80; `None`: the CPU) do not do.
    pub fn check_kernels(&self, arch: Option<u32>) -> Result<()> {
        supported(self.head_size, self.attention_softcap, arch)
    }

    /// NH * HS.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_size
    }
    /// NKV * HS.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_size
    }
    /// Rows that the norms of queries and of keys make of a token's.
    pub fn qk_rows(&self) -> (usize, usize) {
        if self.qk_norms.is_some_and(|n| n.whole) { (1, 1) } else { (self.heads, self.kv_heads) }
    }
    /// See [`RopeSpec::switches_beyond`].
    pub fn switches_beyond(&self) -> Option<usize> {
        self.ropes.iter().filter_map(RopeSpec::switches_beyond).min()
    }
    /// The attention of layer `l`.
    pub fn attention(&self, l: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            scale: self.query_scale,
            window: self.layers[l].window,
            softcap: self.attention_softcap,
        }
    }
    /// True if a layer has this norm.
    pub fn has_norm(&self, id: NormId) -> bool {
        match id {
            NormId::Attention | NormId::Mlp => self.pre_norms,
            NormId::AttentionOut | NormId::MlpOut => self.post_norms,
            NormId::Query | NormId::Key => self.qk_norms.is_some(),
        }
    }
}
