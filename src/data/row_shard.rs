//! row_shard (to be written).
