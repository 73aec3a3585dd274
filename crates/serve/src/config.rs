//! What a server is told when it starts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tunebook_models::EngineConfig;

use crate::api_key::ApiKey;
use crate::error::{Error, Result};

/// How a server works. The default answers this machine only, and its adapters are changed by the
/// program that started it only.
#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// The base's name for clients; `None`: the model's own.
    pub model_name: Option<String>,
    /// Every request must bring it as `Authorization: Bearer`, but for `/health`.
    pub api_key: Option<ApiKey>,
    /// Lets it listen on other addresses than the loopback's. Needs a key.
    pub public: bool,
    /// Lets clients load and unload adapters. Needs an `adapter_root`.
    pub allow_adapter_changes: bool,
    /// The folder that holds whatever clients may load.
    pub adapter_root: Option<PathBuf>,
    /// Serves adapters whose files name another base, too.
    pub any_base: bool,
    /// Folders of adapters to serve from the start on, by name.
    pub adapters: BTreeMap<String, PathBuf>,
    /// Keeps the names of adapters and their folders over restarts: of those that were loaded while
    /// the server ran. `adapters` come before it and are not in it, nor is what came from memory.
    pub state_file: Option<PathBuf>,
    /// A folder whose adapters are served as they come and go.
    pub watch: Option<Watch>,
    /// What it refuses.
    pub limits: Limits,
    /// How the engine works.
    pub engine: EngineConfig,
    /// Told of every request when it is answered.
    pub access_log: Option<AccessLog>,
    /// Told what the watch has loaded, unloaded and refused, and what of the state file is not served.
    pub event_log: Option<EventLog>,
}

/// A folder whose adapters are served, each under its own folder's name: loaded when it is whole,
/// replaced when it has changed, unloaded when it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The folder, in which each adapter has a folder of its own. Links out of it are refused.
    pub folder: PathBuf,
    /// The time between two looks.
    pub interval: Duration,
}

impl Watch {
    /// A look at `folder` every second.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), interval: Duration::from_secs(1) }
    }
}

/// The most of everything that a request may bring or take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a request's body. Default 4 MiB.
    pub max_body_bytes: usize,
    /// Of a request's head, at least 8192. Default 64 KiB.
    pub max_header_bytes: usize,
    /// Connections at a time; more wait to be accepted. Default 1024.
    pub max_connections: usize,
    /// Of one prompt; `None`: what the model's context holds.
    pub max_prompt_tokens: Option<usize>,
    /// Of one answer; `None`: what the model's context holds.
    pub max_completion_tokens: Option<usize>,
    /// Answers of one request: its prompts times `n`. Default 128.
    pub max_choices: usize,
    /// Answers that wait because as many as the engine takes at a time are on their way; more are
    /// refused with 429. Default 256.
    pub max_queue: usize,
    /// Adapters beside the base. Default 16.
    pub max_adapters: usize,
    /// Memory of all adapters together, in bytes; `None`: any. Requests that were accepted before a
    /// swap keep what they are answered by for their time.
    pub max_adapter_bytes: Option<usize>,
    /// For the head of a request and for its body. Default 10 s.
    pub read_timeout: Duration,
    /// For a client to take some bytes of its answer. Default 30 s.
    pub write_timeout: Duration,
    /// From the acceptance of a request to the end of its answer. Default 10 min.
    pub deadline: Duration,
    /// For running answers after a stop. Default 30 s.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 4 << 20,
            max_header_bytes: 64 << 10,
            max_connections: 1024,
            max_prompt_tokens: None,
            max_completion_tokens: None,
            max_choices: 128,
            max_queue: 256,
            max_adapters: 16,
            max_adapter_bytes: None,
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(600),
            grace: Duration::from_secs(30),
        }
    }
}

impl ServerConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// With the field, its value and what is expected.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        let Limits { max_header_bytes, max_connections, max_choices, max_queue, .. } = self.limits;
        if self.public && self.api_key.is_none() {
            return refuse(
                "ServerConfig.api_key",
                "None".to_owned(),
                "a key where `public` lets other machines in",
            );
        }
        if self.allow_adapter_changes && self.adapter_root.is_none() {
            return refuse(
                "ServerConfig.adapter_root",
                "None".to_owned(),
                "the folder that clients may load adapters from (`allow_adapter_changes` is on)",
            );
        }
        if self.model_name.as_deref().is_some_and(|name| name.is_empty() || name.contains('@')) {
            let value = format!("{:?}", self.model_name.as_deref().unwrap_or_default());
            return refuse("ServerConfig.model_name", value, "a name without `@`");
        }
        if max_header_bytes < 8192 {
            let value = max_header_bytes.to_string();
            return refuse("Limits.max_header_bytes", value, "at least 8192");
        }
        for (field, value) in [
            ("Limits.max_connections", max_connections),
            ("Limits.max_choices", max_choices),
            ("EngineConfig.max_batch_size", self.engine.max_batch_size),
        ] {
            if value == 0 {
                return refuse(field, "0".to_owned(), "at least 1");
            }
        }
        if self.watch.as_ref().is_some_and(|watch| watch.interval.is_zero()) {
            return refuse("Watch.interval", "0 s".to_owned(), "a time above 0");
        }
        if max_queue > u32::MAX as usize / 2 {
            return refuse("Limits.max_queue", max_queue.to_string(), "at most 2147483647");
        }
        Ok(())
    }
}

/// A request that was answered, without its texts.
#[derive(Clone, Debug)]
pub struct Access {
    /// `x-request-id` of the answer.
    pub request_id: String,
    /// `POST`.
    pub method: String,
    /// `/v1/chat/completions`, without a query.
    pub path: String,
    /// 200.
    pub status: u16,
    /// From the request's head to the head of the answer.
    pub time: Duration,
}

/// Told of what happens without a request, a line each.
#[derive(Clone)]
pub struct EventLog(pub Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventLog")
    }
}

/// Told of every request. It is called on a thread that serves others, too, so it must not wait.
#[derive(Clone)]
pub struct AccessLog(pub Arc<dyn Fn(&Access) + Send + Sync>);

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessLog")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_field() {
        let field = |config: ServerConfig| config.validate().unwrap_err().to_string();
        let base = ServerConfig::default();
        base.validate().unwrap();
        let error = field(ServerConfig { public: true, ..base.clone() });
        assert!(error.starts_with("`ServerConfig.api_key` is None"), "{error}");
        let error = field(ServerConfig { allow_adapter_changes: true, ..base.clone() });
        assert!(error.starts_with("`ServerConfig.adapter_root` is None"), "{error}");
        let error = field(ServerConfig { model_name: Some("a@b".to_owned()), ..base.clone() });
        assert!(error.starts_with("`ServerConfig.model_name` is \"a@b\""), "{error}");
        let limits = Limits { max_choices: 0, ..Default::default() };
        let error = field(ServerConfig { limits, ..base });
        assert!(error.starts_with("`Limits.max_choices` is 0"), "{error}");
    }
}
