//! A side of a bench, or the reason why it is not there.

use serde_json::{Value, json};

use super::side::{Side, number};
use crate::error::{Error, Result};

/// A side, or why it is not there.
pub(crate) struct Seat {
    /// What it is called in the results.
    pub name: &'static str,
    side: std::result::Result<Side, String>,
}

impl Seat {
    /// A side that has started, or the reason why not.
    pub(crate) fn new(name: &'static str, side: std::result::Result<Side, String>) -> Self {
        Self { name, side }
    }

    /// One answer. A side that fails once is gone, with its reason.
    pub(crate) fn ask(&mut self, request: &Value) -> std::result::Result<Value, String> {
        let side = self.side.as_mut().map_err(|reason| reason.clone())?;
        let answer = side.ask(&request.to_string()).map_err(|error| error.to_string());
        if let Err(reason) = &answer {
            self.side = Err(reason.clone());
        }
        answer
    }

    /// Ends it; peak memory and versions.
    pub(crate) fn end(mut self) -> Value {
        let end = self.ask(&json!({"do": "end"}));
        json!({"side": self.name, "end": end.unwrap_or_else(|reason| json!({"reason": reason}))})
    }

    /// A number that it told when it was ready.
    pub(crate) fn told(&self, key: &str) -> Result<f64> {
        match &self.side {
            Ok(side) => number(&side.ready, key),
            Err(reason) => Err(Error::Other(reason.clone())),
        }
    }
}
