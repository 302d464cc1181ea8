//! sdrrl: self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204) on the CPU and NVIDIA GPUs.
//!
//! The modules stand in layers; each may use only those below it in this list (`tests/layers.rs` enforces it):
//! `cli`, `orchestrate`, `stages`, `eval`, `infer`, `recipe`, `train` `mt` `qe`, `models`, `ops` `pipeline`, `tensor`, `metrics` `device`, `data` `report`.
pub mod cli;
pub mod data;
pub mod device;
pub mod eval;
pub mod infer;
pub mod metrics;
pub mod models;
pub mod mt;
pub mod ops;
pub mod orchestrate;
pub mod pipeline;
pub mod qe;
pub mod recipe;
pub mod report;
pub mod stages;
pub mod tensor;
pub mod train;
