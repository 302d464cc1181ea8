//! decode_attention (to be written).
