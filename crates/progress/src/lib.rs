//! What a long-running call shows while it runs, and how it is asked to stop.
//!
//! This crate is the leaf of the workspace: data passes, downloads, training and generation all
//! report through it, and none of them knows where the report ends up. There are three places (see
//! [`sink`]): our kernel's display channel, a stock evcxr kernel, and a plain terminal.
//!
//! # For libraries
//!
//! Libraries do not print; who calls them decides what is shown and what stops them.
//!
//! - **Progress.** A [`ProgressBar`] is drawn under the running cell, so a library makes one only
//!   in functions that a cell calls and waits for; the functions below them take a callback. Work
//!   in the background runs inside [`quiet`], which keeps every bar of its thread undrawn.
//! - **Stop.** Long work looks at a [`Stop`] that its caller gives: [`Stop::cell`] (the default) for
//!   a cell, [`Stop::new`] for a request. [`interrupt::check`] and [`interrupt::requested`] are
//!   short for [`Stop::cell`], for loops in a notebook.
//!
//! # Example
//!
//! ```
//! use tunebook_progress::{MimeBundle, ProgressBar, display, interrupt, progress, stream};
//!
//! // A bar over an iterator. It ends early when the user presses Stop.
//! let sum: u32 = progress(0..10u32, "Adding").sum();
//! assert_eq!(sum, 45);
//!
//! // A bar driven by hand, and a place where long work can be stopped.
//! let bar = ProgressBar::new("Training", Some(3)).unit("step");
//! for step in 0..3 {
//!     interrupt::check()?;
//!     bar.message(format!("loss {}", 3 - step));
//!     bar.advance(1);
//! }
//! bar.finish();
//!
//! // A picture that is replaced in place.
//! let picture = display(MimeBundle::text("first").html("<b>first</b>"));
//! picture.update(MimeBundle::text("second").html("<b>second</b>"));
//!
//! stream("text as it comes\n");
//! # Ok::<(), interrupt::Interrupted>(())
//! ```

mod bar;
mod bundle;
pub mod channel;
mod display;
pub mod files;
pub mod interrupt;
mod printable;
pub mod questions;
mod quiet;
pub mod sink;
pub mod stop;
mod stream;

pub use bar::{Progress, ProgressBar, progress};
pub use bundle::{MimeBundle, escape_html};
pub use display::{Display, clear, display, result};
pub use interrupt::Interrupted;
pub use printable::{is_unseen, printable};
pub use questions::{input, password};
pub use quiet::quiet;
pub use stop::Stop;
pub use stream::stream;
