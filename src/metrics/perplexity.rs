//! perplexity (to be written).
