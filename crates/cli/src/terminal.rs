//! Standard output and standard error. Whoever reads them may have gone (`tunebook plan … | head -1`, a
//! terminal that was closed): that ends no command, and hours of training last of all. `std`'s macros
//! panic there, so these stand in their places for all of the program.

use std::error::Error;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

/// Why standard output is not whole: a full disk, and not a reader who has enough.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Text on standard output.
macro_rules! print {
    ($($text:tt)*) => { $crate::terminal::out(format_args!($($text)*)) };
}

/// A line on standard output.
macro_rules! println {
    ($($text:tt)*) => { $crate::terminal::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// A line on standard error.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::terminal::err(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) fn out(text: Arguments<'_>) {
    note(io::stdout().lock().write_fmt(text));
}

pub(crate) fn err(text: Arguments<'_>) {
    // There is no other place to say that it cannot be said.
    let _ = io::stderr().lock().write_fmt(text);
}

/// Writes what is left of standard output.
///
/// # Errors
/// Not all of it could be written, for another reason than that nobody reads it.
pub(crate) fn finish() -> Result<(), Box<dyn Error>> {
    note(io::stdout().lock().flush());
    match LOST.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(()),
        Some(error) => Err(format!("standard output is not whole: {error}").into()),
    }
}

fn note(written: io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() != ErrorKind::BrokenPipe {
        LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}
