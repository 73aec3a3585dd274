//! Stop.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::running::{Phase, Running};
use crate::shim;

/// How long running code has to see the stop flag before its process is ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stops what runs: a compiler is ended, which loses nothing; a cell's code is asked to stop, and
/// ended by force when it does not answer or when Stop is pressed again.
pub(crate) fn interrupt(running: &Running, dir: &Path) {
    let Some((cell, presses)) = running.count_interrupt() else { return };
    let stop = || {
        // From here on nothing is compiled for this cell.
        let _ = fs::write(dir.join(shim::STOP_FILE), "");
        stop_compiler(dir);
    };
    loop {
        match running.stop_compiling(cell, stop) {
            Phase::Over => return,
            Phase::Code => break,
            Phase::Compiling => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    let Some(child) = running.child().and_then(|pid| i32::try_from(pid).ok()) else { return };
    if presses == 1 {
        // SAFETY: the process is our child, which is not reaped before the pump has seen its end.
        unsafe { libc::kill(child, libc::SIGINT) };
        if running.wait_for_acknowledgement(cell, PATIENCE) {
            return;
        }
    }
    running.note_killed();
    // SAFETY: as above.
    unsafe { libc::kill(child, libc::SIGKILL) };
}

/// Ends the compiler, if one runs.
pub(crate) fn stop_compiler(dir: &Path) -> bool {
    let file = dir.join(shim::COMPILER_FILE);
    let Some(group) =
        fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok())
    else {
        return false;
    };
    let _ = fs::remove_file(file);
    // SAFETY: the group is the compiler's own.
    group > 1 && unsafe { libc::kill(-group, libc::SIGKILL) } == 0
}
