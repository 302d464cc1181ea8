//! The crate for programs that embed it: load, generate, train, score, evaluate.
//!
//! A thin layer over what the commands do, re-exported at the crate's root. Nothing is printed; what the commands say goes to `tracing` (target `sdrrl`,
//! levels info and warn). Errors are [`crate::Error`], by kind.
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
