//! Questions to the user.
//!
//! In our kernel a question is a frame of the display channel ([`crate::channel`]), so that no text
//! that a cell prints can ask one, and the answer comes on a pipe of its own: a cell's standard
//! input is empty. A stock evcxr kernel has its control words, a terminal its two streams.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::channel::{Frame, unescape};
use crate::sink::{Place, sink};

/// The environment variable with the number of the descriptor on which answers come. Only our
/// kernel sets it.
pub const INPUT_VAR: &str = "TUNEBOOK_INPUT_FD";

/// Asks the user for a line of text. Empty where nobody can be asked, as when a notebook is
/// executed without a front end, and when Stop is pressed before the answer.
///
/// ```no_run
/// let name = tunebook_progress::input("What is your name?");
/// ```
pub fn input(prompt: &str) -> String {
    ask(prompt, false)
}

/// The same for a secret, which is not shown while it is typed.
pub fn password(prompt: &str) -> String {
    ask(prompt, true)
}

fn ask(prompt: &str, password: bool) -> String {
    /// One question at a time: an answer does not say what it answers.
    static ASKING: Mutex<()> = Mutex::new(());
    let _asking = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = sink().place().clone();
    let answer = match place {
        Place::Channel { .. } => {
            let Some(fd) = std::env::var(INPUT_VAR).ok().and_then(|fd| fd.parse::<RawFd>().ok())
            else {
                return String::new();
            };
            sink().frame(&Frame::Ask { prompt: prompt.to_owned(), password });
            // SAFETY: the kernel keeps the descriptor open as long as this process; it is not closed
            // here.
            let mut answers = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
            read_line(&mut *answers).map(|line| unescape(&line.unwrap_or_default()))
        }
        Place::Stock => {
            let word =
                if password { "EVCXR_INPUT_REQUEST_PASSWORD" } else { "EVCXR_INPUT_REQUEST" };
            sink().text(&format!("{word}:{}\n", prompt.replace('\n', " ")));
            let _ = io::stdout().flush();
            standard_input()
        }
        Place::Terminal { .. } => {
            sink().text(&format!("{prompt} "));
            standard_input()
        }
    };
    answer.unwrap_or_default().trim_end_matches(['\r', '\n']).to_owned()
}

fn standard_input() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map(|_| line)
}

/// Reads a line byte by byte, since what follows it is for another reader; without its newline.
/// `None` at the end.
///
/// # Errors
/// The descriptor cannot be read.
pub fn read_line(from: &mut impl Read) -> io::Result<Option<String>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    loop {
        match from.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(None),
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_no_byte_more() {
        let mut from = io::Cursor::new("é\n\nrest".as_bytes());
        assert_eq!(read_line(&mut from).unwrap().as_deref(), Some("é"));
        assert_eq!(from.position(), 3);
        assert_eq!(read_line(&mut from).unwrap().as_deref(), Some(""));
        assert_eq!(read_line(&mut from).unwrap().as_deref(), Some("rest"));
        assert_eq!(read_line(&mut from).unwrap(), None);
    }
}
