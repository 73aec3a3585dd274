//! Work in the background beside a running cell. The display channel and the stop flag are one per
//! process, so each test starts this file again as a child process.

use std::process::{Command, Output};

use tunebook_progress::channel::NONCE_VAR;
use tunebook_progress::interrupt::{self, FLAG_VAR, Flag};
use tunebook_progress::{ProgressBar, Stop, quiet};

const CHILD_VAR: &str = "TUNEBOOK_TEST_CHILD";

fn is_child() -> bool {
    std::env::var_os(CHILD_VAR).is_some()
}

fn child(test: &str) -> Output {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(CHILD_VAR, "1")
        .env(NONCE_VAR, "n0nce")
        .output()
        .expect("this program starts")
}

#[test]
fn only_the_cells_token_acknowledges_the_cells_stop() {
    if !is_child() {
        let output = child("only_the_cells_token_acknowledges_the_cells_stop");
        assert!(output.status.success(), "{output:?}");
        return;
    }
    static FLAG: Flag = Flag::new();
    // SAFETY: no other thread of this process reads the environment yet.
    unsafe { std::env::set_var(FLAG_VAR, FLAG.address()) };
    FLAG.request();

    let request = Stop::new();
    let of_server = request.clone();
    let saw = std::thread::spawn(move || of_server.requested() || Stop::never().requested());
    assert!(!saw.join().expect("no panic"));
    assert_eq!(FLAG.seen(), 0);

    request.stop();
    assert!(request.requested());
    assert_eq!(FLAG.seen(), 0);

    // A cell that stops for both reasons acknowledges its own in any case.
    assert!(request.either(&Stop::cell()).requested());
    assert_eq!(FLAG.seen(), 1);

    interrupt::reset();
    assert!(!Stop::cell().requested());
    assert!(request.requested());
    Stop::default().stop();
    assert!(interrupt::requested());
    assert_eq!(FLAG.seen(), 1);
}

#[test]
fn bars_are_drawn_unless_the_caller_is_quiet() {
    if is_child() {
        let bar = quiet(|| ProgressBar::new("hidden", Some(2)));
        // The thread that made it decides, not the one that advances it.
        bar.advance(1);
        drop(bar);
        let bar = ProgressBar::new("shown", Some(2));
        quiet(|| bar.advance(1));
        return;
    }
    let output = child("bars_are_drawn_unless_the_caller_is_quiet");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\u{1e}n0nce") && text.contains("shown"), "{text}");
    assert!(!text.contains("hidden"), "{text}");
}
