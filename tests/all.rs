//! One integration binary: a file an op, a stage, a model.
mod cli;
mod common;
mod data_formats;
mod gemm;
mod generation;
mod kernels;
mod layers;
mod metrics;
mod models;
mod ops;
mod pickle;
mod qe;
mod row_shard;
mod tokenizer;
mod training;
mod training_ops;
mod weights;
