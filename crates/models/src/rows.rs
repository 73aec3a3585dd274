//! Which texts the rows of the batch in hand are.
//!
//! Generation puts prompts together by length and drops rows that have ended, so a layer that
//! treats texts differently (an adapter for each) has to be told, for each call, which prompt a row
//! belongs to. What is told holds for this thread.

use std::cell::RefCell;
use std::rc::Rc;

thread_local! {
    static ROWS: RefCell<Option<Rc<[usize]>>> = const { RefCell::new(None) };
}

/// For each row of the batch in hand the number of its text, if somebody said so.
pub fn current() -> Option<Rc<[usize]>> {
    ROWS.with_borrow(Clone::clone)
}

/// Does `work` with the rows of its batches being these texts.
pub fn with<T>(rows: &[usize], work: impl FnOnce() -> T) -> T {
    /// Puts the rows before back, however the work ends.
    struct Back(Option<Rc<[usize]>>);
    impl Drop for Back {
        fn drop(&mut self) {
            ROWS.set(self.0.take());
        }
    }
    let _back = Back(ROWS.replace(Some(rows.into())));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_while_the_work_lasts() {
        assert_eq!(current(), None);
        with(&[3, 1], || {
            with(&[2], || assert_eq!(current().as_deref(), Some(&[2][..])));
            assert_eq!(current().as_deref(), Some(&[3, 1][..]));
        });
        let panicked = std::panic::catch_unwind(|| with(&[1], || assert!(current().is_none())));
        assert!(panicked.is_err() && current().is_none());
    }
}
