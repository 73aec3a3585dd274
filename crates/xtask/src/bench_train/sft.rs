//! The case `banking77-sft`: a fine-tune as a user would set it up, compared with TRL's
//! `SFTTrainer`.
//!
//! The data are the customer messages of `$TUNEBOOK_DATA/banking77/train.csv`, the message the
//! prompt and its intent the completion.

use std::path::Path;

use serde_json::{Value, json};

use super::Bench;
use super::case::Case;
use super::measure::{Measured, without};
use crate::bench::rows::{row, write};
use crate::bench::side::{Side, median, number};
use crate::bench::{self, THREADS, peer};
use crate::error::{Error, Result};

/// Rows of a batch.
const BATCH: usize = 8;
const STEPS: usize = 60;
const WARM_UP: usize = 2;
const VALIDATION: usize = 96;

impl Bench<'_> {
    /// Both sides train on the same messages, step by step in turns, and are judged by the same
    /// validation messages.
    pub(super) fn sft(&self, case: &Case) -> Result<Measured> {
        let Some(folder) = std::env::var_os("TUNEBOOK_DATA") else {
            return Ok(without(
                case.name,
                "TUNEBOOK_DATA is not set: no banking77/train.csv to train on",
            ));
        };
        let path = Path::new(&folder).join("banking77/train.csv");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let mut pairs = pairs(&text);
        if pairs.len() < VALIDATION + BATCH * STEPS {
            return Err(Error::Other(format!(
                "{} holds {} messages only",
                path.display(),
                pairs.len()
            )));
        }
        shuffle(&mut pairs);
        let validation = pairs.split_off(pairs.len() - VALIDATION);
        pairs.truncate(BATCH * STEPS);
        let data = self.setup.target.join("tunebook/bench-banking77.json");
        write(&data, &json!({"steps": STEPS, "train": pairs, "validation": validation}))?;
        println!("{}: {STEPS} steps of {BATCH} messages each", case.name);

        bench::build(self.setup, "tunebook-tune", "bench_sft")?;
        let mut ours = bench::program(self.setup, "bench_sft");
        ours.args([&self.gguf, &data]);
        let mut peer = peer::script(self.setup, &self.python, "bench_sft.py", THREADS);
        peer.args([&self.peer_model, &self.gguf, &data]).arg(THREADS.to_string());
        let mut sides = [Side::start("ours", &mut ours)?, Side::start("TRL", &mut peer)?];

        let mut answers: [Vec<Value>; 2] = Default::default();
        for step in 0..STEPS {
            for (side, answers) in sides.iter_mut().zip(&mut answers) {
                answers.push(side.ask("step")?);
            }
            if step % 10 == 9 {
                let last = |side: usize| number(&answers[side][step], "secs");
                println!("  step {:2}: {:.2} s, {:.2} s", step + 1, last(0)?, last(1)?);
            }
        }
        let [ours, peer] = sides;
        let ends = [ours.end()?, peer.end()?];
        let column = |side: usize, key: &str| -> Result<Vec<f64>> {
            answers[side][WARM_UP..].iter().map(|answer| number(answer, key)).collect()
        };
        let speed =
            |side: usize, key: &str| Ok::<_, Error>(BATCH as f64 / median(&column(side, key)?));
        // The sides shuffle differently, so the batches' lengths differ step by step: over the
        // whole run they do not.
        let whole = |side: usize| -> Result<f64> {
            let secs = column(side, "secs")?;
            Ok((BATCH * secs.len()) as f64 / secs.iter().sum::<f64>())
        };
        let end = |side: usize, key: &str| number(&ends[side], key);
        if end(0, "eval_tokens")? != end(1, "eval_tokens")? {
            return Err(Error::Other(format!(
                "the sides' validation sets bear losses on {} and {} tokens: this would compare two different things",
                ends[0]["eval_tokens"], ends[1]["eval_tokens"]
            )));
        }
        let name = case.name;
        let rows = vec![
            row(name, "examples_per_s", speed(0, "secs")?, Some(speed(1, "secs")?)),
            row(name, "examples_per_s_whole_run", whole(0)?, Some(whole(1)?)),
            row(name, "examples_per_cpu_s", speed(0, "cpu_secs")?, Some(speed(1, "cpu_secs")?)),
            row(name, "peak_rss_mb", end(0, "peak_rss_mb")?, Some(end(1, "peak_rss_mb")?)),
            row(name, "eval_loss", end(0, "eval_loss")?, Some(end(1, "eval_loss")?)),
        ];
        let about =
            json!({"case": name, "batch": BATCH, "steps": STEPS, "answers": answers, "ends": ends});
        Ok(Measured { rows, about })
    }
}

/// Message and intent of each line; a message may be quoted and hold commas, doubled quotes and
/// line breaks.
fn pairs(text: &str) -> Vec<(String, String)> {
    let (mut rows, mut row, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            other => field.push(other),
        }
    }
    let pair = |row: Vec<String>| <[String; 2]>::try_from(row).ok();
    let pairs = rows.into_iter().skip(1).filter_map(pair);
    pairs.map(|[message, intent]| (message.trim().to_owned(), intent.replace('_', " "))).collect()
}

/// The file is sorted by intent. SplitMix64, seeded.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 77u64;
    for i in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        items.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_messages_are_read_whole() {
        let text = "text,category\nWhere is it?,card_arrival\n\"I said \"\"now\"\", twice\nplease\",lost_card\n";
        let expected =
            [("Where is it?", "card arrival"), ("I said \"now\", twice\nplease", "lost card")];
        assert_eq!(pairs(text), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let mut items: Vec<usize> = (0..50).collect();
        shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
