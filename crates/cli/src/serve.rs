//! `tunebook serve`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tunebook_models::{BestDevice as _, DType, Device, EngineConfig, Model, Quantization};
use tunebook_serve::{Access, AccessLog, ApiKey, EventLog, Limits, Server, ServerConfig, Watch};
use tunebook_tune::adapter_folder;

/// How the base's weights are kept in memory.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weights {
    /// As f32.
    F32,
    /// As bf16.
    Bf16,
    /// In quantised blocks, as the GGUF file has them.
    Stored,
    /// Quantised to 4 bits (NF4).
    Nf4,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The base: a GGUF file, a model's folder, a name in the cache, or a hub id.
    #[arg(long, value_name = "PATH_OR_ID")]
    base: PathBuf,
    /// The base's name for clients [default: its own].
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// How the weights are kept.
    #[arg(long, value_enum, default_value = "f32")]
    weights: Weights,
    /// An adapter's name for clients, and its folder or hub id (`owner/name`). May be given more than
    /// once.
    #[arg(long = "adapter", value_name = "NAME=PATH_OR_ID", value_parser = adapter)]
    adapters: Vec<(String, PathBuf)>,
    /// Where to listen; port 0 is any free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    bind: String,
    /// Lets other machines in. Needs a key.
    #[arg(long, requires = "api_key_file")]
    public: bool,
    /// A file with the key that clients must send.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// The folder that clients may load adapters from.
    #[arg(long, value_name = "DIR")]
    adapter_root: Option<PathBuf>,
    /// Lets clients load and unload adapters.
    #[arg(long, requires = "adapter_root")]
    allow_adapter_changes: bool,
    /// A folder whose adapters are served as they come, change and go.
    #[arg(long, value_name = "DIR")]
    watch: Option<PathBuf>,
    /// Serves adapters whose files name another base, too.
    #[arg(long)]
    any_base: bool,
    /// Keeps over restarts what clients have loaded. Adapters given with `--adapter` come before it,
    /// and are not in it.
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,
    /// Answers at a time.
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_batch_size)]
    max_batch_size: usize,
    /// Answers that wait; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_queue)]
    max_queue: usize,
    /// Adapters beside the base.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_adapters)]
    max_adapters: usize,
    /// Megabytes of memory for all adapters together [default: any number].
    #[arg(long, value_name = "MB")]
    max_adapter_mb: Option<usize>,
    /// Tokens of a prompt [default: what the context holds].
    #[arg(long, value_name = "N")]
    max_prompt_tokens: Option<usize>,
    /// Tokens of an answer [default: what the context holds].
    #[arg(long, value_name = "N")]
    max_completion_tokens: Option<usize>,
    /// Bytes of a request's body.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_body_bytes)]
    max_body_bytes: usize,
    /// Seconds for a whole answer.
    #[arg(long, value_name = "SECS", default_value_t = Limits::default().deadline.as_secs())]
    deadline: u64,
    /// Seconds for running answers after a stop.
    #[arg(long, value_name = "SECS", default_value_t = Limits::default().grace.as_secs())]
    grace: u64,
    /// Megabytes of keys and values to keep for prompts that begin alike.
    #[arg(long, value_name = "MB", default_value_t = EngineConfig::default().prefix_cache_bytes >> 20)]
    prefix_cache_mb: usize,
    /// A line for each request on standard error; texts are never in it.
    #[arg(long)]
    access_log: bool,
}

fn adapter(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => {
            Err("expected NAME=PATH_OR_ID, as in support=out/support or support=owner/name".into())
        }
    }
}

impl Arguments {
    fn config(&self) -> Result<ServerConfig, Box<dyn Error>> {
        let api_key = self.api_key_file.as_deref().map(key).transpose()?;
        let limits = Limits {
            max_body_bytes: self.max_body_bytes,
            max_prompt_tokens: self.max_prompt_tokens,
            max_completion_tokens: self.max_completion_tokens,
            max_queue: self.max_queue,
            max_adapters: self.max_adapters,
            max_adapter_bytes: self
                .max_adapter_mb
                .map(|megabytes| megabytes.saturating_mul(1_000_000)),
            deadline: Duration::from_secs(self.deadline),
            grace: Duration::from_secs(self.grace),
            ..Default::default()
        };
        let mut adapters = BTreeMap::new();
        for (name, folder) in &self.adapters {
            if adapters.insert(name.clone(), folder.clone()).is_some() {
                return Err(format!("`--adapter {name}=…` is given twice").into());
            }
        }
        Ok(ServerConfig {
            model_name: self.model_name.clone(),
            api_key,
            public: self.public,
            allow_adapter_changes: self.allow_adapter_changes,
            adapter_root: self.adapter_root.clone(),
            any_base: self.any_base,
            adapters,
            state_file: self.state_file.clone(),
            watch: self.watch.as_ref().map(Watch::new),
            limits,
            engine: EngineConfig {
                max_batch_size: self.max_batch_size,
                prefix_cache_bytes: self.prefix_cache_mb << 20,
                ..Default::default()
            },
            access_log: self.access_log.then(|| AccessLog(Arc::new(log))),
            event_log: Some(EventLog(Arc::new(|event| eprintln!("{event}")))),
        })
    }

    fn model(&self) -> tunebook_models::Result<Model> {
        let device = Device::best()?;
        match self.weights {
            Weights::F32 => Model::load_as(&self.base, Some(DType::F32), &device),
            Weights::Bf16 => Model::load_as(&self.base, Some(DType::BF16), &device),
            Weights::Stored => Model::load_quantized(&self.base, Quantization::Stored, &device),
            Weights::Nf4 => Model::load_quantized(&self.base, Quantization::Nf4, &device),
        }
    }
}

fn key(file: &Path) -> Result<ApiKey, Box<dyn Error>> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the key file `{}`: {error}", file.display()))?;
    Ok(ApiKey::new(&text)?)
}

fn log(access: &Access) {
    let Access { request_id, method, path, status, time } = access;
    eprintln!("{method} {path} {status} {:.1} ms {request_id}", time.as_secs_f64() * 1e3);
}

/// Serves until SIGINT or SIGTERM, then ends what runs; a second signal ends at once.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut config = arguments.config()?;
    config.validate()?; // before a model is loaded
    for (name, place) in &mut config.adapters {
        *place = adapter_folder(place, name)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // From here on a signal is waited for, also while the model is loaded.
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    let model = arguments.model()?;
    let server = Server::start(&model, &arguments.bind, &config)?;
    println!("{}", server.url());
    eprintln!("serving `{}` at {}", server.model_name(), server.url());
    server.adapters().iter().for_each(|adapter| eprintln!("  {adapter}"));
    let mut wait = || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {} , _ = terminate.recv() => {} }
        });
    };
    wait();
    eprintln!("stopping: answers that have begun are ended; a second signal breaks them off");
    let stopping = server.clone();
    let stop = std::thread::spawn(move || stopping.stop());
    while !stop.is_finished() {
        let signal = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                () = tokio::time::sleep(Duration::from_millis(20)) => false,
            }
        });
        if signal {
            return Err("broken off".into());
        }
    }
    match stop.join() {
        Ok(true) => Ok(()),
        _ => {
            Err(format!("answers took longer than {} s and were broken off", arguments.grace)
                .into())
        }
    }
}
