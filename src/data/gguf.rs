//! Checkpoint container formats live in `data` as plain bytes; tensors are made in `models::weights`.
