//! The library interface, for programs that embed the crate: load, generate, train, score, evaluate.
//!
//! A thin layer over the code behind the commands, re-exported at the crate root. Nothing is printed: messages go to `tracing` (target `sdrrl`,
//! levels info and warn). Errors are [`crate::Error`], one variant per kind.
mod conversation;
mod evaluate;
mod model;
mod score;
mod train;

pub use conversation::Conversation;
pub use evaluate::Measured;
pub use model::{LoadOptions, Model};
pub use score::{ScoreOptions, TranslationScorer};
pub use train::{TrainData, TrainOptions, Trained, train};
