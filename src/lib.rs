//! sdrrl: self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204) on the CPU and NVIDIA GPUs.
//!
//! The README describes the command-line program. For use as a library, the crate root has what most programs need:
//!
//! - [`Model::load`], [`Model::generate`]: load a model, answer questions and conversations;
//! - [`train()`]: train an adapter (or a whole model) on conversations, a file or packed tokens;
//! - [`Model::evaluate`]: run evaluation tasks, with metrics and confidence intervals;
//! - [`TranslationScorer`]: score translations without references;
//! - [`Error`]: errors, one variant per kind.
//!
//! ```
//! use sdrrl::{AnswerOptions, LoadOptions, Model};
//!
//! // Chat templates are programs that come with models; normally the `sdrrl` binary runs them within limits. This model is trusted.
//! sdrrl::use_program(None);
//! let model = Model::load("assets/quickstart/model", &LoadOptions::default())?;
//! let replies = model.generate(&["What is the pet of Polol?"], &AnswerOptions { max_new_tokens: Some(16), ..Default::default() })?;
//! println!("{} ({})", replies[0].text, replies[0].finish.name());
//!
//! match Model::load("no-such-folder", &LoadOptions::default()) {
//!     Err(sdrrl::Error::NotFound { path, .. }) => println!("{} was not found", path.display()),
//!     Err(other) => return Err(other),
//!     Ok(_) => unreachable!(),
//! }
//! # Ok::<(), sdrrl::Error>(())
//! ```
//!
//! `examples/` has three complete programs. Nothing is printed unless [`report::out::set_mode`] turns it on.
//!
//! The modules below are the internals, for programs that build on single parts. They are layered: each may use only those after it in this list
//! (`tests/layers.rs` enforces it): `cli`, `orchestrate` `api`, `stages`, `eval` `bench`, `remote`, `recipe`, `infer` `train` `mt` `qe`, `models`, `distributed`, `ops` `pipeline`,
//! `tensor`, `metrics` `device`, `data` `report`, `error`.
mod api;
pub mod bench;
pub mod cli;
pub mod data;
pub mod device;
pub mod distributed;
pub mod error;
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
pub mod remote;
pub mod report;
pub mod stages;
pub mod tensor;
pub mod train;

pub use api::{
    Conversation, LoadOptions, Measured, Model, ScoreOptions, TrainData, TrainOptions, Trained,
    TranslationScorer, train,
};
pub use data::{
    contained::use_program,
    conversation::{Role, Turn},
};
pub use device::DeviceChoice;
pub use error::{Error, Result};
pub use infer::{
    answerer::{AnswerOptions, Reply},
    engine::Finish,
};
pub use recipe::{
    eval::{EvalSettings, EvalTask, TaskKind},
    pack::PackSettings,
    score::{ScoreEngine, ScoreSettings},
    train::TrainSettings,
};
pub use tensor::DType;
