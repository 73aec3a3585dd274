//! The stop flag: how long work learns that the user pressed Stop.
//!
//! Our kernel keeps the flag in its own part of the process and passes its address in the
//! environment variable [`FLAG_VAR`] as `pid:address` (hexadecimal); it clears the flag before each
//! cell. In any other process the flag lives here, and [`catch_ctrl_c`] lets Ctrl-C set it.
//!
//! These functions are for the code of a notebook's cells and for a program's main work:
//! [`requested`] and [`check`] are those of [`Stop::cell`](crate::Stop::cell). They acknowledge the
//! Stop, so work in the background has a [`Stop`](crate::Stop) of its own instead.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable through which our kernel shares its flag.
pub const FLAG_VAR: &str = "TUNEBOOK_INTERRUPT";

/// The flag, shared between the kernel and the code of the cells, which are linked apart: the layout
/// is part of the interface.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Flag {
    /// How often Stop was pressed since the cell started.
    requested: AtomicU32,
    /// How many of these the running code has seen. The kernel takes it as the acknowledgement.
    seen: AtomicU32,
}

impl Flag {
    /// A flag that nobody has raised.
    pub const fn new() -> Self {
        Self { requested: AtomicU32::new(0), seen: AtomicU32::new(0) }
    }

    /// Counts a press of Stop, and returns how many came before. An atomic addition: allowed in a
    /// signal handler.
    pub fn request(&self) -> u32 {
        self.requested.fetch_add(1, Ordering::AcqRel)
    }

    /// How many presses the running code has seen.
    pub fn seen(&self) -> u32 {
        self.seen.load(Ordering::Acquire)
    }

    /// Forgets earlier presses.
    pub fn reset(&self) {
        self.requested.store(0, Ordering::Release);
        self.seen.store(0, Ordering::Release);
    }

    /// The value of [`FLAG_VAR`] by which the code of this process finds the flag.
    pub fn address(&'static self) -> String {
        format!("{}:{:x}", std::process::id(), &raw const *self as usize)
    }

    /// Whether Stop was pressed. If so, all presses count as seen.
    fn look(&self) -> bool {
        let requested = self.requested.load(Ordering::Acquire);
        if requested == 0 {
            return false;
        }
        self.seen.store(requested, Ordering::Release);
        true
    }
}

/// The user asked to stop. What was done up to then is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: the work was stopped on request, and everything computed before is kept")]
pub struct Interrupted;

static OWN: Flag = Flag::new();

/// Whether the user has asked to stop the running cell. Cheap enough for every step, layer or
/// chunk. An answer of true acknowledges the Stop: the kernel then leaves the end of the work to
/// the caller.
pub fn requested() -> bool {
    flag().look()
}

/// [`requested`] as a result, for use with `?`.
///
/// # Errors
/// [`Interrupted`] when the user has asked to stop.
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}

/// Asks the running work to stop, as Stop does.
pub fn request() {
    flag().request();
}

/// Forgets earlier requests. Our kernel does it before each cell; a program does it before it
/// starts the next work.
pub fn reset() {
    flag().reset();
}

/// Lets Ctrl-C ask for a stop instead of ending the process. A second Ctrl-C, before the first was
/// seen, ends it.
pub fn catch_ctrl_c() {
    extern "C" fn on_sigint(_: libc::c_int) {
        // Only atomics and `_exit`: both may be used in a signal handler.
        if OWN.request() > OWN.seen() {
            // SAFETY: `_exit` is async-signal-safe and does not return.
            unsafe { libc::_exit(130) }
        }
    }
    handle(libc::SIGINT, on_sigint);
}

/// Lets the signals by which a machine that is taken back, a scheduler or a closed terminal end a
/// process (SIGTERM, SIGHUP) ask for a stop, too. They come several times at once, to the process and to
/// its group, so none of them ends the process. A SIGHUP that is ignored (`nohup`) stays so.
pub fn catch_termination() {
    extern "C" fn on_signal(_: libc::c_int) {
        OWN.request(); // an atomic
    }
    handle(libc::SIGTERM, on_signal);
    // SAFETY: an action that is null is only asked for; the other is written before it is read.
    let ignored = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut action);
        action.sa_sigaction == libc::SIG_IGN
    };
    if !ignored {
        handle(libc::SIGHUP, on_signal);
    }
}

/// Calls `handler` at a signal. It may do what is allowed in a signal handler.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handlers of this module touch atomics only, or end the process with `_exit`, and the
    // action is fully initialised.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

fn flag() -> &'static Flag {
    static FLAG: OnceLock<&'static Flag> = OnceLock::new();
    FLAG.get_or_init(|| {
        match std::env::var(FLAG_VAR).ok().and_then(|value| shared_address(&value)) {
            // SAFETY: the kernel that runs this very process wrote the address of a `Flag` that
            // lives as long as it.
            Some(address) => unsafe { &*(address as *const Flag) },
            None => &OWN,
        }
    })
}

/// The address in `pid:address`, unless it is another process's (the variable is inherited by child
/// processes).
fn shared_address(value: &str) -> Option<usize> {
    let (pid, address) = value.split_once(':')?;
    if pid.parse::<u32>().ok()? != std::process::id() {
        return None;
    }
    let address = usize::from_str_radix(address, 16).ok()?;
    (address != 0 && address.is_multiple_of(align_of::<Flag>())).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_found_by_its_address() {
        static FLAG: Flag = Flag::new();
        let address = shared_address(&FLAG.address()).expect("this process's address");
        // SAFETY: the address of a static of this type.
        let found = unsafe { &*(address as *const Flag) };
        assert_eq!((FLAG.request(), FLAG.request()), (0, 1));
        assert_eq!(FLAG.seen(), 0);
        assert!(found.look());
        assert_eq!(FLAG.seen(), 2);
        found.reset();
        assert!(!FLAG.look());
        assert_eq!(FLAG.seen(), 0);
    }

    #[test]
    fn an_address_counts_only_in_the_process_that_it_was_made_for() {
        let pid = std::process::id();
        assert_eq!(shared_address(&format!("{pid}:1000")), Some(0x1000));
        assert_eq!(shared_address(&format!("{}:1000", pid + 1)), None);
        assert_eq!(shared_address(&format!("{pid}:1001")), None);
        assert_eq!(shared_address(&format!("{pid}:0")), None);
        assert_eq!(shared_address("nonsense"), None);
    }
}
