//! Question answering (to be written).
