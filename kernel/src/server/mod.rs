//! The server: Jupyter's protocol, with evcxr as the evaluator.
//!
//! Sockets are served by tokio tasks. Cells run on a thread of their own ([`executor`]), their code
//! in a child process whose output another thread takes ([`pump`]). `kernel_info` is answered
//! before any of that is ready.

mod advice;
mod cell;
mod executor;
mod failure;
mod frames;
mod index;
mod interrupt;
mod message;
pub(crate) mod pump;
mod requests;
mod running;
mod stdin;

use std::os::fd::IntoRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use evcxr::CommandContext;
use jupyter_protocol::{ConnectionInfo, JupyterMessage};
use jupyter_zmq_client as zmq;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tunebook_progress::channel::NONCE_VAR;
use zeromq::{SocketRecv, SocketSend};

use self::executor::{Context, Executor, Known, Queue};
use self::requests::Requests;
use self::running::Running;
use self::stdin::Input;
use crate::child::SOCKET_VAR;
use crate::layout::{self, Layout};
use crate::session::Session;
use crate::shim;
use crate::toolchain::Toolchain;

/// Serves the connection file until Jupyter shuts the kernel down.
pub(crate) fn run(connection_file: &Path) -> Result<()> {
    let text = std::fs::read(connection_file).with_context(|| {
        format!("cannot read the connection file {}", connection_file.display())
    })?;
    let connection: ConnectionInfo =
        serde_json::from_slice(&text).context("the connection file is not one of Jupyter's")?;
    let local = connection.ip.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    ensure!(
        local
            || connection.ip == "localhost"
            || std::env::var_os("TUNEBOOK_ALLOW_REMOTE").is_some(),
        "the connection file asks for the address {}: anybody who reaches it can run code here. \
         Set TUNEBOOK_ALLOW_REMOTE=1 if that is what you want",
        connection.ip
    );

    let layout = Layout::from_environment()?;
    let toolchain = Toolchain::of(&layout.project)?;
    let session = Session::reserve(&layout)?;
    let nonce = nonce()?;
    let socket = socket_path(session.dir())?;
    let listener = listen(&session, &socket)?;
    set_environment(&session, &toolchain, &nonce, &socket)?;
    // Paths in a notebook start at the repository, wherever the notebook lies.
    std::env::set_current_dir(&layout.project)
        .with_context(|| format!("cannot work in {}", layout.project.display()))?;

    end_with_parent();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(connection, layout, toolchain, session, nonce, listener))
}

async fn serve(
    connection: ConnectionInfo,
    layout: Layout,
    toolchain: Toolchain,
    session: Session,
    nonce: String,
    listener: UnixListener,
) -> Result<()> {
    let id = message::orphan("status", json!({})).header.session;
    let mut heartbeat = zmq::create_kernel_heartbeat_connection(&connection).await?;
    let iopub_socket = zmq::create_kernel_iopub_connection(&connection, &id).await?;
    let (shell_out, mut shell_in) =
        zmq::create_kernel_shell_connection(&connection, &id).await?.split();
    let (control_out, mut control_in) =
        zmq::create_kernel_control_connection(&connection, &id).await?.split();
    let (stdin_out, mut stdin_in) =
        zmq::create_kernel_stdin_connection(&connection, &id).await?.split();

    let (iopub, iopub_messages) = unbounded_channel();
    let (shell, shell_messages) = unbounded_channel();
    let (control, control_messages) = unbounded_channel();
    let (stdin, stdin_messages) = unbounded_channel();
    tokio::spawn(send_all(iopub_socket, iopub_messages, Topic::Type));
    tokio::spawn(send_all(shell_out, shell_messages, Topic::Identity));
    tokio::spawn(send_all(control_out, control_messages, Topic::Identity));
    tokio::spawn(send_all(stdin_out, stdin_messages, Topic::Identity));
    tokio::spawn(async move { while heartbeat.single_heartbeat().await.is_ok() {} });
    let _ = iopub.send(message::orphan("status", json!({"execution_state": "starting"})));

    let running = Arc::new(Running::new(iopub.clone()));
    let queue = Arc::new(Queue::default());
    let known = Arc::new(Mutex::new(Known::default()));
    let input = Arc::new(Input::new(stdin));
    let dir = session.dir().to_owned();
    std::thread::spawn({
        let running = Arc::clone(&running);
        move || pump::accept(&listener, &nonce, &running)
    });
    let executor = Executor {
        running: Arc::clone(&running),
        queue: Arc::clone(&queue),
        known: Arc::clone(&known),
        shell: shell.clone(),
        iopub: iopub.clone(),
        input: Arc::clone(&input),
        dir: dir.clone(),
        told: Mutex::default(),
    };
    // The session belongs to this thread, which never ends: its directory goes with the process.
    std::thread::spawn(move || executor.run(|| warm_up(&session, &layout, &toolchain)));

    let shell_requests = Requests::new(
        shell,
        iopub.clone(),
        Arc::clone(&queue),
        Arc::clone(&known),
        Arc::clone(&running),
        dir.clone(),
    );
    let control_requests = Requests::new(control, iopub.clone(), queue, known, running, dir);
    tokio::spawn({
        let iopub = iopub.clone();
        async move {
            loop {
                if let Some(message) = receive(&mut shell_in, "shell", &iopub).await {
                    shell_requests.handle(message);
                }
            }
        }
    });
    tokio::spawn({
        let iopub = iopub.clone();
        async move {
            loop {
                if let Some(message) = receive(&mut stdin_in, "stdin", &iopub).await {
                    let value =
                        message::content(&message)["value"].as_str().unwrap_or_default().to_owned();
                    input.answered(value);
                }
            }
        }
    });
    loop {
        if let Some(message) = receive(&mut control_in, "control", &iopub).await {
            let shutdown = message.header.msg_type == "shutdown_request";
            control_requests.handle(message);
            if shutdown {
                // The reply has to leave first.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                std::process::exit(0);
            }
        }
    }
}

/// Makes the evaluator and loads the prelude. Runs while Jupyter already talks to the kernel.
fn warm_up(session: &Session, layout: &Layout, toolchain: &Toolchain) -> Context {
    let start = || -> Result<CommandContext> {
        session.fill(layout, toolchain)?;
        let (mut context, _outputs) =
            CommandContext::new().map_err(|error| anyhow::anyhow!("{error}"))?;
        // The last line makes evcxr ready for a `?`, which costs the first cell that has one a
        // second compilation.
        for code in [
            format!(
                ":dep {}\nuse {}::prelude::*;",
                layout::dependency(session.dir()),
                layout::PRELUDE
            ),
            "Ok::<(), std::fmt::Error>(())?;".to_owned(),
        ] {
            context.execute(&code).map_err(|error| anyhow::anyhow!("{code}: {error}"))?;
        }
        Ok(context)
    };
    start().map_err(|error| format!("{error:#}"))
}

/// Ends the kernel when the Jupyter that started it is gone: nobody else could.
fn end_with_parent() {
    if std::env::var_os("JPY_PARENT_PID").is_none() {
        return;
    }
    let parent = || {
        // SAFETY: getppid always succeeds.
        unsafe { libc::getppid() }
    };
    let started_by = parent();
    std::thread::spawn(move || {
        while parent() == started_by {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        // The child goes with this process.
        std::process::exit(0);
    });
}

/// The socket by which the child reaches the server, in a directory that is ours alone.
fn listen(session: &Session, socket: &Path) -> Result<UnixListener> {
    std::fs::set_permissions(session.dir(), std::fs::Permissions::from_mode(0o700))?;
    UnixListener::bind(socket).context("cannot open the display channel")
}

/// The system takes 108 bytes for a socket's path.
const SOCKET_PATH_BYTES: usize = 100;

/// The path of the socket in `dir`: through a descriptor of this process where the path itself is
/// too long for a socket.
fn socket_path(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("child.sock");
    if path.as_os_str().len() < SOCKET_PATH_BYTES {
        return Ok(path);
    }
    // Open as long as this process: the child connects through it.
    let descriptor = std::fs::File::open(dir)
        .with_context(|| format!("cannot open {}", dir.display()))?
        .into_raw_fd();
    Ok(format!("/proc/{}/fd/{descriptor}/child.sock", std::process::id()).into())
}

fn set_environment(
    session: &Session,
    toolchain: &Toolchain,
    nonce: &str,
    socket: &Path,
) -> Result<()> {
    let dir = session.dir();
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin)?;
    let exe = std::env::current_exe()?;
    for tool in ["cargo", "rustc", "rustup"] {
        symlink(&exe, bin.join(tool)).with_context(|| format!("cannot put {tool} in place"))?;
    }
    let mut path = std::ffi::OsString::from(&bin);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut variables = session.environment(toolchain);
    variables.extend([
        ("PATH", path),
        // Where rust-analyzer looks.
        ("CARGO", bin.join("cargo").into()),
        ("RUSTC", bin.join("rustc").into()),
        (shim::DIR_VAR, dir.into()),
        (shim::CARGO_VAR, toolchain.cargo.clone().into()),
        (shim::RUSTC_VAR, toolchain.rustc.clone().into()),
        (SOCKET_VAR, socket.into()),
        (NONCE_VAR, nonce.into()),
    ]);
    for (name, value) in variables {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// 128 random bits in hexadecimal.
fn nonce() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("the system has no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What goes in front of a message.
#[derive(Clone, Copy)]
enum Topic {
    /// The front end that it is for.
    Identity,
    /// Its type, by which a front end could subscribe.
    Type,
}

async fn send_all<S: SocketSend>(
    mut connection: zmq::Connection<S>,
    mut messages: UnboundedReceiver<JupyterMessage>,
    topic: Topic,
) {
    while let Some(mut message) = messages.recv().await {
        if matches!(topic, Topic::Type) {
            message.zmq_identities = vec![message.header.msg_type.clone().into_bytes().into()];
        }
        if let Err(error) = connection.send(message).await {
            eprintln!("a message was not sent: {error}");
        }
    }
}

/// Reads a message. One that is damaged or not signed with our key is dropped, and its sender's
/// user is told.
async fn receive<S: SocketRecv>(
    connection: &mut zmq::Connection<S>,
    channel: &str,
    iopub: &UnboundedSender<JupyterMessage>,
) -> Option<JupyterMessage> {
    let received = match connection.socket.recv().await {
        Ok(parts) => message::parse(parts, &connection.mac),
        Err(error) => Err(error.into()),
    };
    match received {
        Ok(message) => Some(message),
        Err(error) => {
            let why = match error.to_string() {
                unspecified if unspecified.contains("ring::error::Unspecified") => {
                    "its signature is not made with this kernel's key".to_owned()
                }
                other => other,
            };
            let text = format!("[kernel] dropped a message on the {channel} channel: {why}\n");
            eprint!("{text}");
            let _ = iopub.send(message::orphan("stream", json!({"name": "stderr", "text": text})));
            // A broken socket fails again at once.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_of_a_long_path_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["short".to_owned(), "long".repeat(40)] {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            let path = socket_path(&dir).unwrap();
            let _listener = UnixListener::bind(&path).unwrap();
            assert!(dir.join("child.sock").exists());
            UnixStream::connect(&path).unwrap();
        }
    }
}
