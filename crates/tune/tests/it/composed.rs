//! The whole path that a GPU takes by default, on the CPU: the golden run and the invariants with
//! every operation composed on tensors (`TUNEBOOK_OPS=composed`), in a process of their own, as the
//! switch is read once.

use std::process::Command;

fn run(filters: &[&str], at_least: usize) {
    if std::env::var_os("TUNEBOOK_OPS").is_some() {
        return;
    }
    let tests = Command::new(std::env::current_exe().unwrap())
        .args(filters)
        // Stop is one flag for the process.
        .args(["--test-threads=1"])
        .env("TUNEBOOK_OPS", "composed")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success(), "{text}");
    let passed =
        text.lines().filter(|line| line.starts_with("test ") && line.ends_with("... ok")).count();
    assert!(passed >= at_least, "{passed} tests ran: {text}");
}

#[test]
fn the_golden_run_holds_with_composed_operations() {
    run(&["tiny::"], 4);
}

#[test]
fn the_invariants_hold_with_composed_operations() {
    run(&["invariants::", "--skip", "early_stopping", "--skip", "training_learns"], 15);
}
