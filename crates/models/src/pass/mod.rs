//! What a forward pass takes along from block to block.

pub mod kv_cache;
pub mod positions;
