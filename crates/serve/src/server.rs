//! A server: started, changed and stopped from Rust.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tunebook_models::{GenerationEngine, Model};
use tunebook_progress::Stop;
use tunebook_tune::{Adapters, FrozenAdapter, ServedWeights};

use crate::adapters::loader::Loader;
use crate::adapters::root::AdapterRoot;
use crate::adapters::source::AdapterSource;
use crate::adapters::state::State;
use crate::adapters::watch::Watcher;
use crate::adapters::{AdapterStatus, AdapterTable, Origin, Swap};
use crate::app::{App, Parts};
use crate::config::ServerConfig;
use crate::error::{Error, Result};
use crate::listener;
use crate::router::router;
use crate::status::ServerStatus;

/// Threads for HTTP. The engine has threads of its own.
const HTTP_THREADS: usize = 2;
/// Threads for tokenising, scoring and loading.
const WORK_THREADS: usize = 16;

/// A running server. Clones are the same server, which ends with [`Server::stop`], with the last of
/// them or with the process.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    app: Arc<App>,
    address: SocketAddr,
    closing: watch::Sender<bool>,
    /// `None`: it has stopped.
    runtime: Mutex<Option<Running>>,
    begun: Instant,
    /// How long it has run, once it has stopped.
    ended: OnceLock<Duration>,
}

/// What a server runs on.
struct Running {
    runtime: Runtime,
    /// Ends with the last connection.
    accepting: JoinHandle<()>,
}

/// A handle on a [`Server`] that does not keep it alive.
#[derive(Clone)]
pub struct WeakServer(Weak<Inner>);

impl WeakServer {
    /// The server, if another handle is there.
    pub fn upgrade(&self) -> Option<Server> {
        self.0.upgrade().map(Server)
    }
}

impl fmt::Debug for WeakServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakServer")
    }
}

/// Serving a model.
pub trait Serve {
    /// Serves the model at an address: the base under the model's name, and each adapter that it has
    /// now under its own, but for a name that a watched folder has. `127.0.0.1:0` is any free port.
    ///
    /// # Errors
    /// As [`Server::start`]; an adapter that cannot be served.
    fn serve(&self, address: &str) -> Result<Server> {
        self.serve_with(address, &ServerConfig::default())
    }

    /// The same with settings of one's own.
    ///
    /// # Errors
    /// As [`Serve::serve`].
    fn serve_with(&self, address: &str, config: &ServerConfig) -> Result<Server>;
}

impl Serve for Model {
    fn serve_with(&self, address: &str, config: &ServerConfig) -> Result<Server> {
        let server = Server::start(self, address, config)?;
        for adapter in self.adapters() {
            let found = server.0.app.adapters.find(&adapter.name);
            if !found.is_some_and(|served| served.origin.is_watched()) {
                server.swap(&adapter.name, adapter.name.as_str())?;
            }
        }
        Ok(server)
    }
}

impl Server {
    /// Serves the base of a model at an address, the adapters that `config` gives, and those of the
    /// state file; an entry there that cannot be served is told to the event log. As long as it
    /// runs, full fine-tuning of the model is refused; adapters are trained beside it.
    ///
    /// # Errors
    /// A setting that cannot work, an adapter in `config` that cannot be served, an address that is
    /// taken or that other machines reach without `public`, weights that are in training, or a state
    /// file that cannot be read.
    pub fn start(model: &Model, address: &str, config: &ServerConfig) -> Result<Self> {
        config.validate()?;
        let root = config.adapter_root.as_deref().map(AdapterRoot::new).transpose()?;
        let listen = |source| Error::Listen { address: address.to_owned(), source };
        let socket = TcpListener::bind(address).map_err(listen)?;
        let bound = socket.local_addr().map_err(listen)?;
        let loopback = bound.ip().is_loopback();
        if !loopback && !config.public {
            return Err(Error::NotLoopback { address: address.to_owned() });
        }
        socket.set_nonblocking(true).map_err(listen)?;
        let weights = ServedWeights::hold(model, &format!("http://{bound}"))?;
        let base = model.base().with_stop(&Stop::never());
        let name = config.model_name.clone().unwrap_or_else(|| model_name(model));
        let state = State::read(config.state_file.as_deref())?;
        let app = Arc::new(App::new(Parts {
            engine: GenerationEngine::new(&base, config.engine.clone()).spawn(),
            adapters: AdapterTable::new(&base, name, &config.limits, state)?,
            loader: Loader::start()?,
            model: base,
            root,
            config: config.clone(),
            loopback,
            weights,
        }));
        serve_folders(&app, config)?;
        let watcher = config.watch.as_ref().map(Watcher::new).transpose()?;
        let looking = Arc::clone(&app);
        let watcher = app.loader.run(move || {
            Ok(watcher.map(|mut watcher| {
                watcher.look(&looking); // what is there is served from the first request on
                watcher
            }))
        })?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(HTTP_THREADS)
            .max_blocking_threads(WORK_THREADS)
            .thread_name("tunebook-serve")
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let (closing, closed) = watch::channel(false);
        let listener = {
            let _within = runtime.enter();
            tokio::net::TcpListener::from_std(socket).map_err(listen)?
        };
        let accept =
            listener::accept(listener, router(Arc::clone(&app)), config.limits.clone(), closed);
        let accepting = runtime.spawn(accept);
        if let Some(watcher) = watcher {
            runtime.spawn(watcher.run(Arc::clone(&app), closing.subscribe()));
        }
        let runtime = Mutex::new(Some(Running { runtime, accepting }));
        let (begun, ended) = (Instant::now(), OnceLock::new());
        Ok(Self(Arc::new(Inner { app, address: bound, closing, runtime, begun, ended })))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.address
    }

    /// The address for OpenAI's clients (`base_url`): `http://127.0.0.1:8080/v1`.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.0.address)
    }

    /// The base's name: the `model` of requests that no adapter answers.
    pub fn model_name(&self) -> &str {
        &self.0.app.adapters.base().name
    }

    /// The adapters, by name.
    pub fn adapters(&self) -> Vec<AdapterStatus> {
        self.0.app.adapters.status()
    }

    /// Lets a name point to an adapter, as it is now, whether it is new or another adapter's: requests
    /// that were accepted before are answered by the one that they found. Returns the generation.
    ///
    /// ```no_run
    /// # fn f(server: tunebook_serve::Server, model: tunebook_models::Model, run: tunebook_tune::Run) -> tunebook_serve::Result<()> {
    /// server.swap("support", &run)?; // what the run has trained
    /// server.swap("support", &model)?; // what answers with this handle
    /// server.swap("support", std::path::Path::new("out/support"))?; // files
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// No adapter there, one that cannot be served, the base's name, no room for another, or the
    /// server has stopped.
    pub fn swap(&self, name: &str, adapter: impl Into<AdapterSource>) -> Result<String> {
        self.change(name, adapter.into(), Swap::Always)
    }

    /// As [`Server::swap`], where the name still points to the generation `expected`.
    ///
    /// # Errors
    /// As [`Server::swap`]; [`Error::Generation`] where it points to another.
    pub fn swap_from(
        &self,
        name: &str,
        expected: &str,
        adapter: impl Into<AdapterSource>,
    ) -> Result<String> {
        self.change(name, adapter.into(), Swap::From(expected))
    }

    fn change(&self, name: &str, source: AdapterSource, swap: Swap<'_>) -> Result<String> {
        self.check_running()?;
        let begun = Instant::now();
        let Inner { app, .. } = &*self.0;
        let (source, origin) = match source {
            AdapterSource::Folder(folder) => {
                let folder = absolute(&folder);
                (AdapterSource::Folder(folder.clone()), Origin::Folder(folder))
            }
            source => (source, Origin::Memory),
        };
        let adapter = source.load(app, name)?;
        let change = app.adapters.put(adapter, origin, swap)?;
        app.metrics.swapped(begun.elapsed());
        Ok(change.served.generation.clone())
    }

    /// The adapter that a name points to, to be swapped in again later; that takes no time, as it is in
    /// memory.
    ///
    /// ```no_run
    /// # fn f(server: tunebook_serve::Server, run: tunebook_tune::Run) -> tunebook_serve::Result<()> {
    /// let before = server.adapter("support");
    /// server.swap("support", &run)?;
    /// // … the answers are worse …
    /// if let Some(before) = before {
    ///     server.swap("support", &before)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn adapter(&self, name: &str) -> Option<FrozenAdapter> {
        self.0.app.adapters.find(name)?.adapter().cloned()
    }

    /// Takes an adapter's name out. Requests that were accepted before are answered by it.
    ///
    /// # Errors
    /// No adapter of that name, or the server has stopped.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.check_running()?;
        self.0.app.adapters.remove(name, None).map(|_| ())
    }

    /// What it does now.
    pub fn status(&self) -> ServerStatus {
        let Inner { app, begun, ended, .. } = &*self.0;
        ServerStatus::of(app, self.url(), *begun, ended.get().copied())
    }

    /// A handle that does not keep the server alive.
    pub fn downgrade(&self) -> WeakServer {
        WeakServer(Arc::downgrade(&self.0))
    }

    /// What it has done, in Prometheus' text format, as `/metrics` gives it.
    pub fn metrics(&self) -> String {
        self.0.app.metrics_text()
    }

    /// Whether it takes requests.
    pub fn is_running(&self) -> bool {
        !self.0.app.drain.is_stopping()
    }

    fn check_running(&self) -> Result<()> {
        if self.is_running() { Ok(()) } else { Err(Error::Stopped) }
    }

    /// Ends the answers that have begun, refuses new requests meanwhile, and closes the address.
    /// Answers that take longer than [`Limits::grace`](crate::Limits::grace) are broken off: `false`.
    pub fn stop(&self) -> bool {
        let Inner { app, closing, runtime, begun, ended, .. } = &*self.0;
        app.drain.begin();
        let running = runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { runtime, accepting }) = running else {
            return true;
        };
        let (sender, done) = std::sync::mpsc::channel();
        let (waiting, close) = (Arc::clone(app), closing.clone());
        runtime.spawn(async move {
            waiting.drain.done().await;
            close.send_replace(true);
            // The last bytes of what has been answered.
            let _ = accepting.await;
            let _ = sender.send(());
        });
        let all = done.recv_timeout(app.config.limits.grace).is_ok();
        closing.send_replace(true);
        runtime.shutdown_timeout(Duration::from_millis(200));
        app.release_weights();
        ended.get_or_init(|| begun.elapsed());
        all
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.app.drain.begin();
        self.closing.send_replace(true);
        let running = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { runtime, .. }) = running {
            // Whatever is on its way is broken off; nothing is waited for.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waiting, running, tokens) = self.0.app.metrics.load();
        match self.is_running() {
            true => write!(
                f,
                "Server({}: `{}`, {running} answers on their way, {waiting} waiting, {tokens} tokens so far)",
                self.url(),
                self.model_name()
            )?,
            false => write!(f, "Server(stopped, {tokens} tokens)")?,
        }
        self.adapters().iter().try_for_each(|adapter| write!(f, "\n  {adapter}"))
    }
}

/// Serves the adapters that whoever starts the server gives, then those of the state file.
///
/// # Errors
/// One of the former cannot be served.
fn serve_folders(app: &Arc<App>, config: &ServerConfig) -> Result<()> {
    for (name, folder) in &config.adapters {
        let folder = absolute(folder);
        let adapter = AdapterSource::Folder(folder.clone()).load(app, name)?;
        app.adapters.put(adapter, Origin::Start(folder), Swap::Always)?;
    }
    for (name, folder) in app.adapters.unserved() {
        let adapter = AdapterSource::Folder(folder.clone()).load(app, &name);
        let put = |adapter| app.adapters.put(adapter, Origin::Folder(folder), Swap::Always);
        if let Err(error) = adapter.and_then(put) {
            app.tell(&format!(
                "state file: `{name}` is not served, and stays in the file: {error}"
            ));
        }
    }
    Ok(())
}

/// The last part of a model's path or hub id: no client writes a path.
fn model_name(model: &Model) -> String {
    let name = model.name().trim_end_matches('/');
    let last = name.rsplit('/').next().unwrap_or(name);
    last.strip_suffix(".gguf").unwrap_or(last).replace('@', "-")
}

/// So that a restart in another folder finds it.
fn absolute(folder: &Path) -> std::path::PathBuf {
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf())
}
