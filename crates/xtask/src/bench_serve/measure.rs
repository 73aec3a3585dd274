//! Asks the sides in turn and makes rows of what they answer.

use serde_json::{Value, json};

use super::case::{Case, LONG_SECS, SECS, TURNS};
use crate::bench::rows::row;
use crate::bench::seat::Seat;
use crate::bench::side::{median, number};
use crate::error::{Error, Result};

/// Seconds of the first load of a side, which is not measured.
const WARM_UP_SECS: f64 = 2.0;

/// What a case came to.
pub(crate) struct Measured {
    /// One object for each metric.
    pub rows: Vec<Value>,
    /// How it came about: every answer.
    pub about: Value,
}

/// A case that could not be measured, and why.
pub(crate) fn without(case: &Case, reason: &str) -> Measured {
    let metrics = ["tokens_per_s_llama_cpp", "tokens_per_s_mistralrs", "tokens_per_s_one_client"];
    let row = |metric| {
        json!({
            "case": case.name, "metric": metric, "ours": null, "peer": null, "ratio": null,
            "reason": reason,
        })
    };
    let rows = metrics.map(row).to_vec();
    Measured { rows, about: json!({"case": case.name, "reason": reason}) }
}

/// All sides.
pub(crate) struct Seats {
    /// Our server.
    pub ours: Seat,
    /// llama.cpp without HTTP.
    pub llama_cpp: Seat,
    /// mistral.rs' own engine.
    pub mistralrs: Seat,
}

/// One kind of load of one side: its answers, or why there are none.
struct Taken {
    name: String,
    request: Value,
    answers: std::result::Result<Vec<Value>, String>,
}

impl Taken {
    fn new(name: &str, clients: usize, adapters: usize) -> Self {
        Self::of_secs(SECS, name, clients, adapters)
    }

    fn of_secs(secs: f64, name: &str, clients: usize, adapters: usize) -> Self {
        let request = json!({"do": "load", "clients": clients, "adapters": adapters, "secs": secs});
        Self { name: name.to_owned(), request, answers: Ok(Vec::new()) }
    }

    /// One turn, after a short one the first time.
    fn take(&mut self, seat: &mut Seat) {
        let Ok(answers) = &mut self.answers else { return };
        if answers.is_empty() {
            let mut short = self.request.clone();
            short["secs"] = json!(WARM_UP_SECS);
            if let Err(reason) = seat.ask(&short) {
                self.answers = Err(reason);
                return;
            }
        }
        match seat.ask(&self.request) {
            // It goes on with other requests.
            Ok(answer) if answer["cannot"].is_string() => {
                self.answers = Err(answer["cannot"].as_str().unwrap_or_default().to_owned());
            }
            Ok(answer) if answer["tokens"] == 0 => {
                self.answers = Err(format!("no token came in {} s", self.request["secs"]));
            }
            Ok(answer) => answers.push(answer),
            Err(reason) => self.answers = Err(reason),
        }
    }

    /// The median of the turns.
    fn median(&self, of: impl Fn(&Value) -> Result<f64>) -> std::result::Result<f64, String> {
        let answers = self.answers.as_ref().map_err(String::clone)?;
        let figures: Result<Vec<f64>> = answers.iter().map(of).collect();
        figures.map(|figures| median(&figures)).map_err(|error| error.to_string())
    }

    fn about(&self) -> Value {
        match &self.answers {
            Ok(turns) => json!({"side": self.name, "request": self.request, "turns": turns}),
            Err(reason) => json!({"side": self.name, "request": self.request, "reason": reason}),
        }
    }
}

fn rate(answer: &Value) -> Result<f64> {
    Ok(number(answer, "tokens")? / number(answer, "secs")?)
}

/// A row of two sides. Ours must be there.
fn compared(
    case: &Case,
    metric: &str,
    [ours, peer]: [&Taken; 2],
    of: impl Fn(&Value) -> Result<f64>,
) -> Result<Value> {
    let figure = ours.median(&of).map_err(|why| Error::Other(format!("{}: {why}", ours.name)))?;
    let theirs = peer.median(&of);
    let mut row = row(case.name, metric, figure, theirs.as_ref().ok().copied());
    if let Err(reason) = theirs {
        row["reason"] = json!(reason);
    }
    Ok(row)
}

/// The times of a token, in milliseconds: where an answer has them, what they are called, which
/// share of them.
const TIMES: [(&str, &str, &str); 4] = [
    ("first_ms", "p50", "first_token_p50_ms"),
    ("first_ms", "p99", "first_token_p99_ms"),
    ("between_ms", "p50", "between_tokens_p50_ms"),
    ("between_ms", "p99", "between_tokens_p99_ms"),
];

impl Seats {
    /// All turns of a case.
    ///
    /// # Errors
    /// When our side fails.
    pub(crate) fn measure(&mut self, case: &Case) -> Result<Measured> {
        let &Case { clients, adapters, .. } = case;
        let mut ours = Taken::new("ours", clients, adapters);
        let mut llama_cpp = Taken::new("llama.cpp", clients, adapters);
        let mut mistralrs = Taken::of_secs(LONG_SECS, "mistral.rs", clients, adapters);
        let mut one_client = Taken::new("ours, one client", 1, adapters);
        let mut base = Taken::new("ours, the base", clients, 0);
        for turn in 0..TURNS {
            ours.take(&mut self.ours);
            llama_cpp.take(&mut self.llama_cpp);
            mistralrs.take(&mut self.mistralrs);
            if clients > 1 {
                one_client.take(&mut self.ours);
            }
            if adapters > 0 {
                base.take(&mut self.ours);
            }
            let shown: Vec<String> = [&ours, &llama_cpp, &mistralrs, &one_client, &base]
                .into_iter()
                .filter_map(|taken| {
                    let last = rate(taken.answers.as_ref().ok()?.last()?).ok()?;
                    Some(format!("{} {last:.1}", taken.name))
                })
                .collect();
            println!("  turn {} of {TURNS}: {}", turn + 1, shown.join(", "));
        }
        let mut rows = vec![
            compared(case, "tokens_per_s_llama_cpp", [&ours, &llama_cpp], rate)?,
            compared(case, "tokens_per_s_mistralrs", [&ours, &mistralrs], rate)?,
        ];
        if clients > 1 {
            rows.push(compared(case, "tokens_per_s_one_client", [&ours, &one_client], rate)?);
        }
        if adapters > 0 {
            rows.push(compared(case, "tokens_per_s_base", [&ours, &base], rate)?);
        }
        for (peer, suffix) in [(&llama_cpp, "llama_cpp"), (&mistralrs, "mistralrs")] {
            for (times, share, metric) in TIMES {
                let of = |answer: &Value| number(&answer[times], share);
                rows.push(compared(case, &format!("{metric}_{suffix}"), [&ours, peer], of)?);
            }
        }
        let sides = [&ours, &llama_cpp, &mistralrs, &one_client, &base];
        let about = sides.map(Taken::about);
        Ok(Measured { rows, about: json!({"case": case.name, "sides": about}) })
    }

    /// Ends all; peak memory and versions.
    pub(crate) fn end(self) -> Vec<Value> {
        [self.ours, self.llama_cpp, self.mistralrs].into_iter().map(Seat::end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case { name: "clients-8", clients: 8, adapters: 0 };

    #[test]
    fn a_peer_that_is_missing_has_a_row_with_the_reason() {
        let mut ours = Taken::new("ours", 8, 0);
        let answer =
            |tokens: f64| json!({"tokens": tokens, "secs": 10.0, "first_ms": {"p50": 7.0}});
        ours.answers = Ok([100.0, 300.0, 200.0].map(answer).to_vec());
        let mut peer = Taken::new("llama.cpp", 8, 0);
        peer.answers = Err("no such package".to_owned());
        let row = compared(&CASE, "tokens_per_s_llama_cpp", [&ours, &peer], rate).ok();
        let expected = json!({
            "case": "clients-8", "metric": "tokens_per_s_llama_cpp", "ours": 20.0, "peer": null,
            "ratio": null, "reason": "no such package",
        });
        assert_eq!(row, Some(expected));
        let first = |answer: &Value| number(&answer["first_ms"], "p50");
        peer.answers = Ok(vec![json!({"first_ms": {"p50": 14.0}})]);
        let row = compared(&CASE, "first_token_p50_ms", [&ours, &peer], first).ok();
        assert_eq!(row.map(|row| row["ratio"].clone()), Some(json!(0.5)));
        assert!(compared(&CASE, "x", [&peer, &ours], rate).is_err(), "ours must be there");
    }

    #[test]
    fn a_side_that_is_not_there_is_not_asked_again() {
        let mut seat = Seat::new("mistral.rs", Err("not built for this processor".to_owned()));
        let mut taken = Taken::new("mistral.rs", 8, 0);
        taken.take(&mut seat);
        assert_eq!(taken.median(rate), Err("not built for this processor".to_owned()));
        assert_eq!(without(&CASE, "failed: it").rows.len(), 3);
    }
}
