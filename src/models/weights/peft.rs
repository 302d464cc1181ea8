//! peft (to be written).
