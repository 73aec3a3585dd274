//! A process that takes training steps when asked, and the figures that it answers with.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};

/// A pause between turns: OpenMP's threads spin for a while after their last work.
const PAUSE: Duration = Duration::from_millis(300);

/// A process that answers each line with one line of JSON.
pub(super) struct Side {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    /// Starts it and waits until it has loaded its model.
    pub(super) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program, source })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Other("a process was started without its pipes".to_owned()));
        };
        let mut side = Self { name: name.to_owned(), child, input, output: BufReader::new(output) };
        side.answer()?;
        Ok(side)
    }

    /// Asks for something and waits for the answer.
    pub(super) fn ask(&mut self, what: &str) -> Result<Value> {
        std::thread::sleep(PAUSE);
        // Should the process be gone, its answer is missed below.
        let _ = writeln!(self.input, "{what}").and_then(|()| self.input.flush());
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap_or(0);
        serde_json::from_str(&line).map_err(|_| {
            Error::Other(match read {
                0 => format!(
                    "the bench's process ({}) ended early; what it wrote is above",
                    self.name
                ),
                _ => format!("the bench's process ({}) answered `{}`", self.name, line.trim()),
            })
        })
    }

    /// Ends it; its last words are its peak memory and versions.
    pub(super) fn end(mut self) -> Result<Value> {
        let last = self.ask("end")?;
        let _ = self.child.wait();
        Ok(last)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A number of an answer.
pub(super) fn number(value: &Value, key: &str) -> Result<f64> {
    value[key]
        .as_f64()
        .ok_or_else(|| Error::Other(format!("expected a number `{key}`, found {value}")))
}

/// The middle value, the mean of the two middle ones of an even number.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3., 1., 2.]), 2.);
        assert_eq!(median(&[4., 1., 2., 3.]), 2.5);
    }
}
