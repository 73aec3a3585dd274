//! The layers that every decoder is built from.
//!
//! A decoder does not know what stands in its places: each layer asks the [`Pass`](crate::Pass) for
//! the weights, projections and branches of the rows in hand.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod softcap;
pub(crate) mod weight;

pub(crate) use activation::Activation;
pub use embedding::Embedding;
pub use linear::{Linear, Projection, Slot};
pub(crate) use norm::Norm;
pub use norm::{LayerNorm, RmsNorm};
pub use weight::Weight;
