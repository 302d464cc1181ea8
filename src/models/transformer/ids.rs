//! The parts of a layer by name: its linears and its norms, and maps over them.
use std::ops::{Index, IndexMut};

use super::spec::Spec;

/// Defines an enum of a layer's parts and a struct with one value for each.
macro_rules! parts {
    ($(#[$meta:meta])* $id:ident, $(#[$map_meta:meta])* $map:ident { $($(#[$doc:meta])* $variant:ident $field:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $id { $($(#[$doc])* $variant),+ }

        impl $id {
            /// Every one, in the order that tensors are listed in.
            pub const ALL: &[$id] = &[$($id::$variant),+];
        }

        $(#[$map_meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $map<T> { $($field: T),+ }

        impl<T> $map<T> {
            /// `make` of each, in order.
            pub fn from_fn(mut make: impl FnMut($id) -> T) -> $map<T> {
                $map { $($field: make($id::$variant)),+ }
            }
            /// `make` of each, in order, up to the first error.
            pub fn try_from_fn<E>(mut make: impl FnMut($id) -> Result<T, E>) -> Result<$map<T>, E> {
                Ok($map { $($field: make($id::$variant)?),+ })
            }
            /// Each with its value, in order.
            pub fn iter(&self) -> impl Iterator<Item = ($id, &T)> {
                $id::ALL.iter().map(|&id| (id, &self[id]))
            }
        }

        impl<T> Index<$id> for $map<T> {
            type Output = T;
            fn index(&self, id: $id) -> &T {
                match id { $($id::$variant => &self.$field),+ }
            }
        }

        impl<T> IndexMut<$id> for $map<T> {
            fn index_mut(&mut self, id: $id) -> &mut T {
                match id { $($id::$variant => &mut self.$field),+ }
            }
        }
    };
}

parts! {
    /// A linear of a layer.
    LinearId,
    /// A value for each linear of a layer.
    PerLinear {
        /// Queries: (NH * HS, C).
        Q q,
        /// Keys: (NKV * HS, C).
        K k,
        /// Values: (NKV * HS, C).
        V v,
        /// Out of attention: (C, NH * HS).
        O o,
        /// The gate: (F, C).
        Gate gate,
        /// What is gated: (F, C).
        Up up,
        /// Out of the MLP: (C, F).
        Down down,
        /// Chooses experts: (E, C).
        Router router,
    }
}

parts! {
    /// A norm of a layer.
    NormId,
    /// A value for each norm of a layer.
    PerNorm {
        /// Before attention: (C).
        Attention attention,
        /// Before the MLP: (C).
        Mlp mlp,
        /// Behind attention, before the residual addition: (C).
        AttentionOut attention_out,
        /// Behind the MLP, before the residual addition: (C).
        MlpOut mlp_out,
        /// Of queries: (HS), or (NH * HS) where all heads are normed as one.
        Query query,
        /// Of keys: (HS) or (NKV * HS).
        Key key,
    }
}

/// Linears of one input that a checkpoint may keep as one matrix, row upon row.
#[derive(Debug)]
pub struct Fused {
    /// The path within a layer, as Hugging Face names it.
    pub path: &'static str,
    /// The name within a GGUF block.
    pub gguf: &'static str,
    /// In the order of their rows.
    pub parts: &'static [LinearId],
}

/// Those that are kept so where `Spec::fused` says it.
pub const FUSED: [Fused; 2] = [
    Fused { path: "self_attn.qkv_proj", gguf: "attn_qkv", parts: &[LinearId::Q, LinearId::K, LinearId::V] },
    Fused { path: "mlp.gate_up_proj", gguf: "ffn_up", parts: &[LinearId::Gate, LinearId::Up] },
];

impl Fused {
    /// The last part of the path: `qkv_proj`.
    pub fn module(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

impl LinearId {
    /// Those that may have an adapter, in the order of [`LinearId::ALL`].
    pub const ADAPTABLE: &[LinearId] = LinearId::ALL.split_at(LinearId::ALL.len() - 1).0;

    /// The path within a layer, as Hugging Face names it; within an expert it has another ([`Spec::linear_path`]).
    pub fn path(self) -> &'static str {
        match self {
            LinearId::Q => "self_attn.q_proj",
            LinearId::K => "self_attn.k_proj",
            LinearId::V => "self_attn.v_proj",
            LinearId::O => "self_attn.o_proj",
            LinearId::Gate => "mlp.gate_proj",
            LinearId::Up => "mlp.up_proj",
            LinearId::Down => "mlp.down_proj",
            LinearId::Router => "mlp.gate",
        }
    }
    /// The last part of the path: `q_proj`.
    pub fn module(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or(self.path())
    }
    /// The name within a GGUF block.
    pub fn gguf(self) -> &'static str {
        match self {
            LinearId::Q => "attn_q",
            LinearId::K => "attn_k",
            LinearId::V => "attn_v",
            LinearId::O => "attn_output",
            LinearId::Gate => "ffn_gate",
            LinearId::Up => "ffn_up",
            LinearId::Down => "ffn_down",
            LinearId::Router => "ffn_gate_inp",
        }
    }
    /// True for the inputs of rotary embedding, whose rows some GGUF files keep in another order.
    pub fn is_rotated(self) -> bool {
        matches!(self, LinearId::Q | LinearId::K)
    }
}

impl NormId {
    /// The path within a layer, as Hugging Face names it. Where norms stand behind attention and MLP too, the one before the MLP has
    /// another name, and `post_attention_layernorm` is what it says; norms of rotated queries and keys are called otherwise, too.
    pub fn path(self, spec: &Spec) -> &'static str {
        let rotated = spec.qk_norms.is_some_and(|n| n.rotated);
        match self {
            NormId::Attention => "input_layernorm",
            NormId::Mlp if spec.post_norms => "pre_feedforward_layernorm",
            NormId::Mlp | NormId::AttentionOut => "post_attention_layernorm",
            NormId::MlpOut => "post_feedforward_layernorm",
            NormId::Query if rotated => "self_attn.query_layernorm",
            NormId::Key if rotated => "self_attn.key_layernorm",
            NormId::Query => "self_attn.q_norm",
            NormId::Key => "self_attn.k_norm",
        }
    }
    /// The name within a GGUF block.
    pub fn gguf(self) -> &'static str {
        match self {
            NormId::Attention => "attn_norm",
            NormId::Mlp => "ffn_norm",
            NormId::AttentionOut => "post_attention_norm",
            NormId::MlpOut => "post_ffw_norm",
            NormId::Query => "attn_q_norm",
            NormId::Key => "attn_k_norm",
        }
    }
}
