//! The stop flag is one per process, so its tests have a process of their own and run in one
//! function.

use tunebook_progress::{interrupt, progress};

#[test]
fn a_request_ends_the_iteration_and_stays_until_reset() {
    let mut seen = Vec::new();
    for i in progress(0..10, "counting") {
        seen.push(i);
        if i == 3 {
            interrupt::request();
        }
    }
    assert_eq!(seen, [0, 1, 2, 3]);
    assert!(interrupt::requested());
    assert_eq!(interrupt::check(), Err(interrupt::Interrupted));

    interrupt::reset();
    assert!(!interrupt::requested());
    assert_eq!(interrupt::check(), Ok(()));

    interrupt::catch_ctrl_c();
    // SAFETY: the handler has just been installed.
    unsafe { libc::raise(libc::SIGINT) };
    assert!(interrupt::requested());
}
