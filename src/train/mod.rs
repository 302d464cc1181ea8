//! The trainer: optimizer, schedule, early stopping, checkpoints, logs.
pub mod checkpoint;
pub mod early_stopping;
mod gradients;
pub mod guard;
pub mod held_out_text;
pub mod log;
pub mod on_policy;
pub mod optimizer;
pub mod preference;
pub mod progress;
mod resume;
mod run_types;
pub mod schedule;
pub mod tensorboard;
pub mod trainer;
pub mod validation;
pub mod world;
