//! One integration binary: a file an op, a stage, a model.
mod alignment;
mod cli;
mod common;
mod data_formats;
mod gemm;
mod generation;
mod kernels;
mod layers;
mod lm_eval;
mod metrics;
mod models;
mod ops;
mod row_shard;
mod tokenizer;
mod training;
mod training_ops;
mod weights;
