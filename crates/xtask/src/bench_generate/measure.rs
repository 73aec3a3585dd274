//! Asks the sides in turn and makes rows of what they answer.

use serde_json::{Value, json};

use super::case::{Case, Kind, LONG, NEW, OURS, PEERS, PROMPT};
use crate::bench::rows::row;
use crate::bench::seat::Seat;
use crate::bench::side::{median, number};
use crate::error::{Error, Result};

/// What a case came to.
pub(crate) struct Measured {
    /// One object for each metric.
    pub rows: Vec<Value>,
    /// How it came about: every answer.
    pub about: Value,
}

impl Measured {
    /// A case that could not be measured, and why.
    pub(crate) fn without(case: &Case, reason: &str) -> Self {
        let rows = vec![json!({
            "case": case.name, "metric": metric(case.kind), "ours": null, "peer": null, "ratio": null,
            "reason": reason,
        })];
        Self { rows, about: json!({"case": case.name, "reason": reason}) }
    }
}

/// What is asked for in one turn, one run after the other.
fn requests(kind: Kind, adapters: usize) -> Vec<Value> {
    let generate = |prompts: &str, rows: usize, new: usize| json!({"do": "generate", "prompts": prompts, "rows": rows, "new": new, "adapters": adapters});
    match kind {
        Kind::Decode { rows } | Kind::Lora { rows, .. } => {
            NEW.map(|new| generate("plain", rows, new)).to_vec()
        }
        Kind::Prefill => vec![generate("long", 1, 1)],
        Kind::Short { rows, new } => vec![generate("chat", rows, new)],
    }
}

fn metric(kind: Kind) -> &'static str {
    if matches!(kind, Kind::Short { .. }) { "seconds" } else { "tokens_per_s" }
}

/// Turns before measuring; many questions are long enough without.
fn warm_up(kind: Kind) -> usize {
    usize::from(!matches!(kind, Kind::Short { .. }))
}

/// The figure of one turn: answers stand in the order of [`requests`].
fn figure(kind: Kind, answers: &[Value]) -> Result<f64> {
    let of = |index: usize, key: &str| number(answers.get(index).unwrap_or(&Value::Null), key);
    Ok(match kind {
        Kind::Decode { .. } | Kind::Lora { .. } => {
            (of(1, "tokens")? - of(0, "tokens")?) / (of(1, "secs")? - of(0, "secs")?)
        }
        Kind::Prefill => LONG as f64 / of(0, "secs")?,
        // Who answers fewer of the questions, one at a time, would need so much longer for all.
        Kind::Short { rows, .. } => of(0, "secs")? * rows as f64 / of(0, "rows")?,
    })
}

/// Whether a side has done what it was asked for.
fn check(request: &Value, answer: &Value, any_rows: bool) -> std::result::Result<(), String> {
    let of = |value: &Value, key: &str| number(value, key).map_err(|error| error.to_string());
    let (rows, tokens) = (of(answer, "rows")?, of(answer, "tokens")?);
    let expected = rows * of(request, "new")?;
    if (any_rows || rows == of(request, "rows")?) && rows > 0. && tokens == expected {
        return Ok(());
    }
    Err(format!("asked for {request} it generated {tokens} tokens in {rows} rows"))
}

/// Tokens a second if a step took no longer than reading, once, the weights and each row's keys and
/// values.
fn limit(bytes_per_s: f64, weights: f64, key_values: f64, rows: usize, positions: f64) -> f64 {
    let rows = rows as f64;
    rows * bytes_per_s / (weights + rows * positions * key_values)
}

/// The answers of one side, or why there are none.
struct Taken {
    name: String,
    answers: std::result::Result<Vec<Vec<Value>>, String>,
}

impl Taken {
    fn new(name: String) -> Self {
        Self { name, answers: Ok(Vec::new()) }
    }

    /// One turn.
    fn take(&mut self, seat: &mut Seat, requests: &[Value], any_rows: bool) {
        let Ok(turns) = &mut self.answers else { return };
        let ask = |request| {
            let answer = seat.ask(request)?;
            check(request, &answer, any_rows).map(|()| answer)
        };
        match requests.iter().map(ask).collect() {
            Ok(answers) => turns.push(answers),
            Err(reason) => self.answers = Err(reason),
        }
    }

    /// The median of the turns after the warm-up.
    fn figure(&self, kind: Kind) -> std::result::Result<f64, String> {
        let turns = self.answers.as_ref().map_err(String::clone)?;
        let warm = turns.get(warm_up(kind)..).unwrap_or_default();
        let figures: Result<Vec<f64>> = warm.iter().map(|turn| figure(kind, turn)).collect();
        figures.map(|figures| median(&figures)).map_err(|error| error.to_string())
    }

    fn ours(&self, kind: Kind) -> Result<f64> {
        self.figure(kind).map_err(|reason| Error::Other(format!("{}: {reason}", self.name)))
    }

    fn about(&self) -> Value {
        match &self.answers {
            Ok(turns) => json!({"side": self.name, "turns": turns}),
            Err(reason) => json!({"side": self.name, "reason": reason}),
        }
    }
}

/// All turns of a case.
pub(crate) fn measure(seats: &mut [Seat], case: &Case) -> Result<Measured> {
    let mut bandwidths = Vec::new();
    let (kind, turns) = (case.kind, warm_up(case.kind) + case.turns);
    let bandwidth = json!({"do": "bandwidth"});
    if let Kind::Lora { adapters, beside, .. } = kind {
        // The same process with and without, one after the other.
        let mut taken: Vec<[Taken; 2]> = OURS
            .iter()
            .map(|form| [adapters, beside].map(|n| Taken::new(format!("{form}, {n} LoRAs"))))
            .collect();
        for turn in 0..turns {
            for (seat, taken) in seats.iter_mut().zip(&mut taken) {
                for (taken, adapters) in taken.iter_mut().zip([adapters, beside]) {
                    taken.take(seat, &requests(kind, adapters), false);
                }
            }
            progress(turn, turns, taken.iter().flatten(), kind);
        }
        let mut rows = Vec::new();
        for (form, [with, without]) in OURS.iter().zip(&taken) {
            let suffix = if *form == OURS[0] { String::new() } else { format!("_{form}") };
            let name = format!("{}{suffix}", metric(kind));
            rows.push(row(case.name, &name, with.ours(kind)?, Some(without.ours(kind)?)));
        }
        let sides: Vec<Value> = taken.iter().flatten().map(Taken::about).collect();
        return Ok(Measured { rows, about: json!({"case": case.name, "sides": sides}) });
    }
    let mut taken: Vec<Taken> = seats.iter().map(|seat| Taken::new(seat.name.to_owned())).collect();
    // Ours and its peer, then the next of ours and its.
    let mut order: Vec<usize> = Vec::new();
    for (at, peer) in PEERS.iter().enumerate() {
        let ours = position(OURS.iter().copied(), peer.beside)?;
        if !order.contains(&ours) {
            order.push(ours);
        }
        order.push(OURS.len() + at);
    }
    for turn in 0..turns {
        let answer = seats[0].ask(&bandwidth).map_err(Error::Other)?;
        bandwidths.push(number(&answer, "bytes_per_s")?);
        for at in &order {
            let any_rows = at.checked_sub(OURS.len()).is_some_and(|at| PEERS[at].one_at_a_time);
            taken[*at].take(&mut seats[*at], &requests(kind, 0), any_rows);
        }
        progress(turn, turns, taken.iter(), kind);
    }
    let mut rows = Vec::new();
    for (at, peer) in PEERS.iter().enumerate() {
        let ours = position(OURS.iter().copied(), peer.beside)?;
        let theirs = taken[OURS.len() + at].figure(kind);
        let name = format!("{}{}", metric(kind), peer.suffix);
        let figure = taken[ours].ours(kind)?;
        let mut row = row(case.name, &name, figure, theirs.as_ref().ok().copied());
        if let Kind::Decode { rows } = kind {
            let [weights, key_values] =
                [seats[ours].told("weights_bytes")?, seats[ours].told("key_value_bytes")?];
            // In the mean of all steps.
            let positions = PROMPT as f64 + (NEW[0] + NEW[1]) as f64 / 2.;
            let limit = limit(median(&bandwidths), weights, key_values, rows, positions);
            row["limit"] = json!(limit);
            row["of_limit"] = json!(figure / limit);
        }
        if let Err(reason) = theirs {
            row["reason"] = json!(reason);
        }
        rows.push(row);
    }
    let about = json!({
        "case": case.name,
        "bandwidth_bytes_per_s": bandwidths,
        "sides": taken.iter().map(Taken::about).collect::<Vec<_>>(),
    });
    Ok(Measured { rows, about })
}

fn position(mut names: impl Iterator<Item = &'static str>, name: &str) -> Result<usize> {
    names.position(|known| known == name).ok_or_else(|| Error::Other(format!("no side `{name}`")))
}

/// The figures of the turn that has ended.
fn progress<'t>(turn: usize, turns: usize, taken: impl Iterator<Item = &'t Taken>, kind: Kind) {
    let last = |taken: &Taken| {
        let turns = taken.answers.as_ref().ok()?;
        figure(kind, turns.last()?).ok()
    };
    let figures: Vec<String> = taken
        .map(|taken| match last(taken) {
            Some(figure) => format!("{} {figure:.1}", taken.name),
            None => format!("{} -", taken.name),
        })
        .collect();
    let what = if turn < warm_up(kind) { "warm-up" } else { "turn" };
    println!("  {what} {} of {turns}: {}", turn + 1, figures.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(secs: f64, rows: usize, tokens: usize) -> Value {
        json!({"secs": secs, "rows": rows, "tokens": tokens})
    }

    #[test]
    fn decoding_is_what_more_tokens_take_longer() {
        let kind = Kind::Decode { rows: 8 };
        assert_eq!(figure(kind, &[answer(0.5, 8, 8), answer(4.5, 8, 520)]).ok(), Some(128.0));
        assert_eq!(figure(Kind::Prefill, &[answer(0.5, 1, 1)]).ok(), Some(2048.0));
        let kind = Kind::Short { rows: 200, new: 12 };
        assert_eq!(figure(kind, &[answer(3.0, 200, 2400)]).ok(), Some(3.0));
        assert_eq!(figure(kind, &[answer(3.0, 10, 120)]).ok(), Some(60.0));
        assert!(figure(Kind::Prefill, &[]).is_err());
    }

    #[test]
    fn a_side_that_does_less_is_refused() {
        let request = &requests(Kind::Decode { rows: 8 }, 0)[1];
        assert_eq!((request["rows"].as_u64(), request["new"].as_u64()), (Some(8), Some(65)));
        assert!(check(request, &answer(1.0, 8, 520), false).is_ok());
        assert!(check(request, &answer(1.0, 8, 519), false).is_err());
        assert!(check(request, &answer(1.0, 2, 130), false).is_err());
        assert!(check(request, &answer(1.0, 2, 130), true).is_ok());
        assert!(check(request, &answer(1.0, 0, 0), true).is_err());
    }

    #[test]
    fn the_limit_counts_the_weights_once_and_each_row_s_keys_and_values() {
        assert_eq!(limit(20e9, 100e6, 0., 1, 64.), 200.);
        assert_eq!(limit(20e9, 100e6, 50e3, 8, 50.), 8. * 20e9 / 120e6);
    }

    #[test]
    fn the_first_turn_warms_up_and_a_missing_side_has_its_reason() {
        let turns = [9., 1., 2., 4.].map(|secs| vec![answer(secs, 1, 1)]).to_vec();
        let taken = Taken { name: "ours".to_owned(), answers: Ok(turns) };
        assert_eq!(taken.figure(Kind::Prefill), Ok(512.0));

        let mut seat = Seat::new("llama.cpp", Err("no such package".to_owned()));
        let mut taken = Taken::new("llama.cpp".to_owned());
        taken.take(&mut seat, &requests(Kind::Prefill, 0), false);
        assert_eq!(taken.figure(Kind::Prefill), Err("no such package".to_owned()));
        assert_eq!(seat.end()["end"]["reason"], "no such package");
    }
}
