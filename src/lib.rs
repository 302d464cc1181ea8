//! sdrrl: self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204) on the CPU and NVIDIA GPUs.
//!
//! As a program: see the README. As a library, what most programs need stands here at the root:
//!
//! - [`Model::load`], [`Model::generate`]: a model answers questions and conversations;
//! - [`train()`]: an adapter (or a whole model) from conversations, a file or packed tokens;
//! - [`Model::evaluate`]: tasks with metrics and intervals;
//! - [`TranslationScorer`]: the quality of translations;
//! - [`Error`]: what went wrong, by kind.
//!
//! ```
//! use sdrrl::{AnswerOptions, LoadOptions, Model};
//!
//! // Chat templates come with models and are programs: the `sdrrl` binary runs them within limits. This model is trusted.
//! sdrrl::use_program(None);
//! let model = Model::load("assets/quickstart/model", &LoadOptions::default())?;
//! let replies = model.generate(&["What is the pet of Polol?"], &AnswerOptions { max_new_tokens: Some(16), ..Default::default() })?;
//! println!("{} ({})", replies[0].text, replies[0].finish.name());
//!
//! match Model::load("no-such-folder", &LoadOptions::default()) {
//!     Err(sdrrl::Error::NotFound { path, .. }) => println!("{} is not there", path.display()),
//!     Err(other) => return Err(other),
//!     Ok(_) => unreachable!(),
//! }
//! # Ok::<(), sdrrl::Error>(())
//! ```
//!
//! `examples/` holds three whole programs. Nothing is printed unless [`report::out::set_mode`] asks for it.
//!
//! The modules below are the program's own, for those who build on its parts. They stand in layers; each may use only those below it in this list
//! (`tests/layers.rs` enforces it): `cli`, `orchestrate` `api`, `stages`, `eval` `bench`, `recipe`, `infer` `train` `mt` `qe`, `models`, `ops` `pipeline`,
//! `tensor`, `metrics` `device`, `data` `report`, `error`.
mod api;
pub mod bench;
pub mod cli;
pub mod data;
pub mod device;
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
