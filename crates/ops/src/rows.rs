//! Which kernel linear maps take, for the calling thread.
//!
//! The fastest kernel depends on the number of rows, and two kernels add up in different orders. A
//! text that is generated must not depend on how many others are generated with it, so generation
//! names the kernel by what the rows are for instead.

use std::cell::Cell;

/// What the rows of linear maps are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// Anything: the fastest kernel for their number.
    #[default]
    Any,
    /// Tokens of prompts, many at a time. Each row's results are the same bits whichever rows are
    /// computed with it. Where the processor multiplies bf16, quantised weights and what they meet
    /// are rounded to it.
    Prefill,
    /// The last token of each of some texts. Each row's results are the same bits whichever rows
    /// are computed with it, though not those of [`Rows::Prefill`]; quantised weights are rounded
    /// as there.
    Decode,
    /// Tokens of texts to be scored: as [`Rows::Prefill`], with quantised weights as exact as they
    /// are in training.
    Score,
}

thread_local! {
    static ROWS: Cell<Rows> = const { Cell::new(Rows::Any) };
}

impl Rows {
    /// What the calling thread's rows are for now.
    pub fn current() -> Self {
        ROWS.get()
    }

    /// Runs `work` with its linear maps computed so.
    ///
    /// ```
    /// use tunebook_ops::Rows;
    /// assert_eq!(Rows::Decode.during(Rows::current), Rows::Decode);
    /// assert_eq!(Rows::current(), Rows::Any);
    /// ```
    pub fn during<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore(Rows);
        impl Drop for Restore {
            fn drop(&mut self) {
                ROWS.set(self.0);
            }
        }
        let _before = Restore(ROWS.replace(self));
        work()
    }
}
