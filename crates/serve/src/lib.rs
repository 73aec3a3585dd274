//! A model as a service: OpenAI's HTTP interface, with adapters that are swapped while it runs.
//!
//! ```no_run
//! use tunebook_models::{Device, Model};
//! use tunebook_serve::Serve;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
//! let server = model.serve("127.0.0.1:8080")?;
//! println!("{}", server.url()); // for any client of OpenAI's interface
//! // … train …
//! server.swap("support", &model)?; // the adapter that answers here, as it is now
//! server.stop();
//! # Ok(())
//! # }
//! ```
//!
//! Each request takes a snapshot of the model that it names when it is accepted, and
//! `system_fingerprint` of its answer is the generation of that snapshot. One engine thread answers
//! all requests in one batch; HTTP runs on threads of its own.

mod adapters;
mod answers;
mod api_error;
mod api_key;
mod app;
mod config;
mod drain;
mod error;
mod fields;
mod listener;
mod metrics;
mod openai;
mod openapi;
mod reply;
mod router;
mod scoring;
mod server;
mod shares;
mod status;
mod stream;
mod tokenize;
mod unread;
mod write_limit;

pub use adapters::AdapterStatus;
pub use adapters::source::AdapterSource;
pub use api_key::ApiKey;
pub use config::{Access, AccessLog, EventLog, Limits, ServerConfig, Watch};
pub use error::{Error, Result};
pub use server::{Serve, Server, WeakServer};
pub use status::{ModelStatus, ServerState, ServerStatus};
