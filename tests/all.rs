//! One integration binary: a file an op, a stage, a model.
mod alignment;
#[path = "../build/bindings/mod.rs"]
mod bindings;
mod cli;
mod common;
mod data_formats;
mod evaluation;
mod gemm;
mod generation;
mod kernels;
mod layers;
mod lm_eval;
mod m2m100;
mod metrics;
mod models;
mod nllb;
mod ops;
mod pickle;
mod qe;
mod rehearsal;
mod row_shard;
mod scoring;
mod tokenizer;
mod training;
mod training_ops;
mod weights;
