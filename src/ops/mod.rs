//! One file per op: shape checks, the CPU arm, and `mod reference`, the naive oracle it is held to.
//!
//! `&mut` arguments are written, `&` arguments are read; outputs come first, then what is saved for backward, inputs,
//! weights, scalars. Letters: N rows (tokens), C hidden size, V vocabulary, NH heads, NKV key/value heads, HS head size,
//! F intermediate size, R rank.
//!
//! Public ops that no model here calls: [`embedding::embedding_backward`], [`swiglu::swiglu_forward`] and [`swiglu::swiglu_backward`] are the plain cases (scale
//! 1, SiLU) of ops that models call. [`layernorm::layernorm_backward`], [`activation::activation_backward`] and [`attention::cross_attention_backward`] are the
//! backward passes of encoders and translators, which are only run forward so far; [`gemm::linear_add_forward`] is the residual epilogue that blocks do not use yet.
pub mod activation;
pub mod adafactor;
pub mod adamw;
pub mod adamw8;
mod arrays;
pub mod attention;
pub mod beam_step;
pub(crate) mod checks;
pub(crate) mod choose;
pub mod collective;
pub mod cross_entropy;
pub mod decode_attention;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod experts;
pub(crate) mod fork_join;
pub mod gemm;
pub mod grad_norm;
pub(crate) mod kernels;
pub mod kl_divergence;
pub(crate) mod launch;
pub mod layernorm;
pub mod lora;
pub mod mix;
pub mod muon;
pub(crate) mod parallel;
pub use parallel::with_threads;
pub mod quantize;
pub mod rmsnorm;
pub mod rope;
pub mod rows;
pub mod sampling;
pub mod segment_mean;
pub(crate) mod simd;
pub mod swiglu;
pub mod top_k;
pub mod top_k_divergence;
