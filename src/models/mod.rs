//! Model graphs with explicit forward and backward, their configuration, adapters and weights.
pub mod m2m100;
pub mod slots;
pub mod transformer;
pub mod weights;
pub mod xlm_roberta;
