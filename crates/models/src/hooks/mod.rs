//! The places of a decoder, besides its projections, where something can be added: after a sublayer,
//! before the tokens, and before a block's keys and values.

pub(crate) mod past_key_values;
pub(crate) mod residual;
pub(crate) mod virtual_tokens;
