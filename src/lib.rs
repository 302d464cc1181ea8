//! sdrrl: self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204) on the CPU and NVIDIA GPUs.
//!
//! The modules stand in layers; each may use only those below it in this list (`tests/layers.rs` enforces it):
//! `stages`, `recipe`, `report`, `train`, `infer`, `mt` and `qe`, `models`, `metrics`, `data`, `ops`, `tensor`, `device`.
pub mod data;
pub mod device;
pub mod infer;
pub mod metrics;
pub mod models;
pub mod mt;
pub mod ops;
pub mod qe;
pub mod recipe;
pub mod report;
pub mod stages;
pub mod tensor;
pub mod train;
