//! The process in which the cells run, under our server.
//!
//! evcxr starts it, writes `LOAD_AND_RUN <shared object> <function>` to its standard input for each
//! cell, and reads its control words from the standard output. The cell's own streams are others:
//! its input is empty (`tunebook::prelude::input` reads the answers that evcxr passes on), and its
//! outputs are sockets to the server, which shows what comes as it comes, takes the frames
//! of the display channel out of it, and passes evcxr's control words on to evcxr (see
//! [`crate::server::pump`]). Since the server holds the other end, nothing that was printed is lost
//! when the process dies.

use std::ffi::c_void;
use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use tunebook_progress::channel::{Frame, NONCE_VAR};
use tunebook_progress::interrupt::{FLAG_VAR, Flag};
use tunebook_progress::questions::{self, INPUT_VAR};

/// The environment variable with the path of the server's socket. Only our server sets it.
pub(crate) const SOCKET_VAR: &str = "TUNEBOOK_SOCKET";

/// What the child says on its third connection: a cell's code starts, and: it has seen the stop
/// flag.
pub(crate) const RUNS: &str = "run";
pub(crate) const SEEN: &str = "seen";

/// The stop flag, which the code of the cells reads by its address.
static FLAG: Flag = Flag::new();

extern "C" fn on_sigint(_: libc::c_int) {
    FLAG.request();
}

/// Becomes the child and does not return, if our server has started this process for it.
pub(crate) fn run_if_child() {
    if std::env::var_os("EVCXR_IS_RUNTIME").is_none() {
        return;
    }
    let (Some(socket), Ok(nonce)) = (std::env::var_os(SOCKET_VAR), std::env::var(NONCE_VAR)) else {
        return;
    };
    let code = match run(socket.as_ref(), &nonce) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            99
        }
    };
    std::process::exit(code);
}

fn run(socket: &std::path::Path, nonce: &str) -> Result<()> {
    let instructions = take_over_stdin()?;
    let to_evcxr = take_over_streams(socket)?;
    // The descriptor stays open as long as this process: the server writes to it through /proc.
    let _ = to_evcxr.into_raw_fd();
    // SAFETY: no other thread has been started yet.
    unsafe {
        // A kernel that was killed takes its cells along. (The thread that started this process
        // lives as long as it.)
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        std::env::set_var(FLAG_VAR, FLAG.address());
        std::env::set_var(INPUT_VAR, instructions.as_raw_fd().to_string());
        // The frames of a backtrace are evcxr's and ours; the panic's message and place are shown
        // anyway.
        if std::env::var_os("TUNEBOOK_BACKTRACE").is_none() {
            std::env::set_var("RUST_BACKTRACE", "0");
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigint as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
    }
    let mut control = UnixStream::connect(socket).context("cannot reach the kernel")?;
    writeln!(control, "ctl {}", std::process::id())?;
    let mut run = control.try_clone().context("cannot reach the kernel")?;
    std::thread::spawn(move || report_acknowledgements(control));

    let mut store: *mut c_void = std::ptr::null_mut();
    let mut instructions = ManuallyDrop::new(instructions);
    while let Some(line) =
        questions::read_line(&mut *instructions).context("cannot read evcxr's instruction")?
    {
        // Anything else is an answer for which no cell waits any more.
        let Some((path, function)) = cell_to_run(&line) else { continue };
        FLAG.reset();
        writeln!(run, "{RUNS}").context("the kernel is gone")?;
        store = load_and_run(path, function, store)?;
        end_of_cell(nonce)?;
    }
    Ok(())
}

/// The library and the function of evcxr's instruction. The path may hold spaces.
fn cell_to_run(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("LOAD_AND_RUN ")?.rsplit_once(' ')
}

/// Takes evcxr's pipe away from standard input, which is empty from then on: code of a cell that
/// reads it, and programs that a cell starts, must not get evcxr's instructions.
fn take_over_stdin() -> Result<File> {
    // SAFETY: descriptor 0 is open, and the duplicate is owned by nobody else.
    let real = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 10) };
    anyhow::ensure!(real >= 0, "cannot keep evcxr's pipe: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let real = unsafe { File::from_raw_fd(real) };
    let empty = File::open("/dev/null").context("cannot open /dev/null")?;
    // SAFETY: both descriptors are open.
    let result = unsafe { libc::dup2(empty.as_raw_fd(), 0) };
    anyhow::ensure!(result >= 0, "cannot redirect in: {}", std::io::Error::last_os_error());
    Ok(real)
}

/// Connects standard output and error to the server, and returns evcxr's end of standard output.
fn take_over_streams(socket: &std::path::Path) -> Result<OwnedFd> {
    // SAFETY: descriptor 1 is open, and the duplicate is owned by nobody else.
    let real = unsafe { libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 10) };
    anyhow::ensure!(real >= 0, "cannot keep evcxr's pipe: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let real = unsafe { OwnedFd::from_raw_fd(real) };
    for (name, fd) in [("out", 1), ("err", 2)] {
        let mut stream = UnixStream::connect(socket).context("cannot reach the kernel")?;
        writeln!(stream, "{name} {} {}", std::process::id(), real.as_raw_fd())?;
        // SAFETY: both descriptors are open.
        let result = unsafe { libc::dup2(stream.as_raw_fd(), fd) };
        anyhow::ensure!(result >= 0, "cannot redirect {name}: {}", std::io::Error::last_os_error());
    }
    Ok(real)
}

/// Tells the server when running code has seen the stop flag.
fn report_acknowledgements(mut control: UnixStream) {
    let mut told = 0;
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let seen = FLAG.seen();
        if seen != told {
            told = seen;
            if seen != 0 && writeln!(control, "{SEEN}").is_err() {
                return;
            }
        }
    }
}

fn load_and_run(path: &str, function: &str, store: *mut c_void) -> Result<*mut c_void> {
    // SAFETY: the shared object was compiled by evcxr a moment ago, with a function of this
    // signature.
    unsafe {
        let library = libloading::Library::new(path)
            .with_context(|| format!("cannot load the cell {path}"))?;
        let run = library.get::<extern "C" fn(*mut c_void) -> *mut c_void>(function.as_bytes())?;
        let store = run(store);
        // Values of the cell's types live on, so its code has to.
        std::mem::forget(library);
        Ok(store)
    }
}

fn end_of_cell(nonce: &str) -> Result<()> {
    // Not through std's buffer: this program has a copy of its own, the cells share another.
    // SAFETY: descriptor 1 is the server's socket; it is not closed by the drop.
    let mut out = ManuallyDrop::new(unsafe { File::from_raw_fd(1) });
    out.write_all(&Frame::End.encode(nonce)).context("the kernel is gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cells_path_may_hold_spaces() {
        let cell = cell_to_run("LOAD_AND_RUN /my work/cell/libctx.so run_user_code_1");
        assert_eq!(cell, Some(("/my work/cell/libctx.so", "run_user_code_1")));
        assert_eq!(cell_to_run("an answer of the user"), None);
    }
}
