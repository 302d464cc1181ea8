//! tensorboard (to be written).
