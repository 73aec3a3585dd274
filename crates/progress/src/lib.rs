//! What a long-running call shows while it runs, and how it is asked to stop.
//!
//! This crate is the leaf of the workspace: data passes, downloads, training and generation all
//! report through it, and none of them knows where the report ends up. There are three places (see
//! [`sink`]): our kernel's display channel, a stock evcxr kernel, and a plain terminal.
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
pub mod interrupt;
pub mod sink;
mod stream;

pub use bar::{Progress, ProgressBar, progress};
pub use bundle::{MimeBundle, escape_html};
pub use display::{Display, clear, display, result};
pub use interrupt::Interrupted;
pub use stream::stream;
