//! A process that works when asked, and the figures that it answers with.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};

/// A pause between turns: OpenMP's threads spin for a while after their last work.
const PAUSE: Duration = Duration::from_millis(300);

/// A process that answers each line with one line of JSON.
pub(crate) struct Side {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Side {
    /// Starts it and waits until it has loaded its model, or says the `reason` why it cannot.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program, source })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Other("a process was started without its pipes".to_owned()));
        };
        let (name, output) = (name.to_owned(), BufReader::new(output));
        let mut side = Self { name, child, input, output, ready: Value::Null };
        side.ready = side.answer()?;
        Ok(side)
    }

    /// Asks for something and waits for the answer, which may be the `reason` why there is none.
    pub(crate) fn ask(&mut self, what: &str) -> Result<Value> {
        std::thread::sleep(PAUSE);
        // Should the process be gone, its answer is missed below.
        let _ = writeln!(self.input, "{what}").and_then(|()| self.input.flush());
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap_or(0);
        let answer: Value = serde_json::from_str(&line).map_err(|_| {
            Error::Other(match read {
                0 => format!(
                    "the bench's process ({}) ended early; what it wrote is above",
                    self.name
                ),
                _ => format!("the bench's process ({}) answered `{}`", self.name, line.trim()),
            })
        })?;
        match answer["reason"].as_str() {
            Some(reason) => Err(Error::Other(reason.to_owned())),
            None => Ok(answer),
        }
    }

    /// Ends it; its last words are its peak memory and versions.
    pub(crate) fn end(mut self) -> Result<Value> {
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
pub(crate) fn number(value: &Value, key: &str) -> Result<f64> {
    value[key]
        .as_f64()
        .ok_or_else(|| Error::Other(format!("expected a number `{key}`, found {value}")))
}

/// The middle value, the mean of the two middle ones of an even number.
pub(crate) fn median(values: &[f64]) -> f64 {
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
    fn a_side_that_cannot_start_says_why() {
        let start = |answer: &str| {
            Side::start("it", Command::new("sh").arg("-c").arg(format!("echo '{answer}'; read x")))
        };
        let reason = start(r#"{"reason": "no such package"}"#).err().map(|error| error.to_string());
        assert_eq!(reason.as_deref(), Some("no such package"));
        let ready = start(r#"{"ready": true, "bytes": 7}"#).map(|side| side.ready["bytes"].clone());
        assert_eq!(ready.ok(), Some(7.into()));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3., 1., 2.]), 2.);
        assert_eq!(median(&[4., 1., 2., 3.]), 2.5);
    }
}
