//! token_shard (to be written).
