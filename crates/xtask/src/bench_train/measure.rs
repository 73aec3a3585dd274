//! Runs the sides of a case against one another and makes rows of what they answer.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::Bench;
use super::case::{Case, Other, Steps};
use crate::bench::rows::{row, write};
use crate::bench::side::{Side, median, number};
use crate::bench::{self, THREADS, peer};
use crate::error::{Error, Result};

/// Steps before measuring: allocators, thread pools and optimizer states have then settled.
const WARM_UP: usize = 2;
/// Tokens of the vocabulary, which the random ids are drawn from.
const VOCABULARY: u64 = 49152;

/// The result of a case.
pub(crate) struct Measured {
    /// One object for each metric.
    pub rows: Vec<Value>,
    /// How it came about: every step's time, losses, versions.
    pub about: Value,
}

/// A case that could not be measured, and why.
pub(super) fn without(case: &str, reason: &str) -> Measured {
    let row = json!({
        "case": case, "metric": "tokens_per_s", "ours": null, "peer": null, "ratio": null, "reason": reason,
    });
    Measured { rows: vec![row], about: json!({"case": case, "reason": reason}) }
}

/// The times of one side.
#[derive(Default)]
struct Times {
    secs: Vec<f64>,
    cpu_secs: Vec<f64>,
    losses: Vec<f64>,
}

impl Bench<'_> {
    /// The sides take turns, step by step, so that what else the machine does falls on all alike.
    pub(super) fn steps(&self, case: &Case, what: &Steps) -> Result<Measured> {
        println!(
            "{}: {} x {} tokens, {} steps each",
            case.name, what.rows, what.length, what.steps
        );
        let ids = self.ids(what.rows, what.length, WARM_UP + what.steps)?;
        let mut sides = vec![Side::start("ours", &mut self.our_command(&ids, what.ours))?];
        for other in what.others {
            sides.push(Side::start(&self.name_of(other), &mut self.command_of(other, &ids))?);
        }
        // A process of its own, so that its matrices are no part of our peak memory.
        let mut ceiling_side = Side::start("sgemm", &mut self.our_command(&ids, what.ours))?;
        let mut times: Vec<Times> = sides.iter().map(|_| Times::default()).collect();
        let mut ceilings = Vec::new();
        for step in 0..WARM_UP + what.steps {
            for (side, times) in sides.iter_mut().zip(&mut times) {
                let answer = side.ask("step")?;
                times.losses.push(number(&answer, "loss")?);
                if step >= WARM_UP {
                    times.secs.push(number(&answer, "secs")?);
                    times.cpu_secs.push(number(&answer, "cpu_secs")?);
                }
            }
            ceilings.push(ceiling_side.ask("sgemm")?);
            self.check_losses(case, what, &times, step)?;
            if step >= WARM_UP {
                let each: Vec<String> = times
                    .iter()
                    .map(|t| format!("{:.2} s", t.secs.last().unwrap_or(&f64::NAN)))
                    .collect();
                println!("  step {:2}: {}", step + 1, each.join(", "));
            }
        }
        drop(ceiling_side);
        let ends = sides.into_iter().map(Side::end).collect::<Result<Vec<_>>>()?;
        self.rows(case, what, &times, &ends, &ceilings)
    }

    fn rows(
        &self,
        case: &Case,
        what: &Steps,
        times: &[Times],
        ends: &[Value],
        ceilings: &[Value],
    ) -> Result<Measured> {
        let tokens = (what.rows * what.length) as f64;
        let speed = |times: &Times| tokens / median(&times.secs);
        let mut rows = Vec::new();
        for (index, other) in what.others.iter().enumerate() {
            // Our program is the first of the sides.
            let (left, right) = match other.beside {
                Some(beside) => (index + 1, beside + 1),
                None => (0, index + 1),
            };
            let (ours, peer) = (&times[left], &times[right]);
            let metric = |name: &str| format!("{name}{}", other.suffix);
            let name = case.name;
            rows.push(row(name, &metric("tokens_per_s"), speed(ours), Some(speed(peer))));
            let cpu = |times: &Times| tokens / median(&times.cpu_secs);
            rows.push(row(name, &metric("tokens_per_cpu_s"), cpu(ours), Some(cpu(peer))));
            let memory = |end: &Value| number(end, "peak_rss_mb");
            rows.push(row(
                name,
                &metric("peak_rss_mb"),
                memory(&ends[left])?,
                Some(memory(&ends[right])?),
            ));
            if let (Some(ours), Some(peer)) =
                (ends[left]["base_weights_mb"].as_f64(), ends[right]["base_weights_mb"].as_f64())
                && ours != peer
            {
                rows.push(row(name, &metric("base_weights_mb"), ours, Some(peer)));
            }
        }
        // Median against median: both suffer alike from what else the machine does.
        let key = ceiling_key(what);
        let speeds =
            |key: &str| ceilings.iter().map(|value| number(value, key)).collect::<Result<Vec<_>>>();
        let warm = |speeds: &[f64]| median(&speeds[WARM_UP.min(speeds.len() - 1)..]);
        let gflops = speeds(key)?;
        let flops_per_token = number(&ceilings[0], "flops_per_token")?;
        let best = gflops.iter().copied().fold(0., f64::max);
        let fastest = times[0].secs.iter().copied().fold(f64::INFINITY, f64::min);
        let part = |speed: f64, gflops: f64| speed * flops_per_token / (gflops * 1e9);
        rows.push(row(case.name, "of_gemm_ceiling", part(speed(&times[0]), warm(&gflops)), None));
        rows.push(row(case.name, "of_gemm_ceiling_best", part(tokens / fastest, best), None));
        if key == "f32" {
            // Where f32 products take another way than f32's multiplications, they may pass that
            // ceiling; this is theirs.
            let own = warm(&speeds("default")?);
            rows.push(row(case.name, "of_own_products", part(speed(&times[0]), own), None));
        }
        let side = |name: String, times: &Times, end: &Value| {
            json!({
                "side": name,
                "secs": times.secs,
                "cpu_secs": times.cpu_secs,
                "losses": times.losses,
                "end": end,
            })
        };
        let names =
            std::iter::once("ours".to_owned()).chain(what.others.iter().map(|o| self.name_of(o)));
        let about = json!({
            "case": case.name,
            "rows": what.rows,
            "length": what.length,
            "ours": what.ours,
            "sides": names.zip(times.iter().zip(ends)).map(|(n, (t, e))| side(n, t, e)).collect::<Vec<_>>(),
            "gemm": ceilings,
            "gemm_gflops": median(&gflops),
            "profile_secs": ends[0]["profile_secs"],
        });
        Ok(Measured { rows, about })
    }

    /// Whether the sides compute the same thing: adapters start without effect, so the first losses
    /// must be equal; later ones drift with A's random start.
    fn check_losses(&self, case: &Case, what: &Steps, times: &[Times], step: usize) -> Result<()> {
        let ours = times[0].losses[step];
        for (other, times) in what.others.iter().zip(&times[1..]) {
            let theirs = times.losses[step];
            let tolerance = if step == 0 { what.first_loss } else { 5e-2 };
            // So written that a NaN is refused, too.
            let same = (ours - theirs).abs() <= tolerance * theirs.abs();
            if !same && !other.other_loss {
                return Err(Error::Other(format!(
                    "{}, step {}: our loss is {ours}, that of {} {theirs}: this would compare two different things",
                    case.name,
                    step + 1,
                    self.name_of(other)
                )));
            }
        }
        Ok(())
    }

    /// Peak memory of one row of each length: linear growth is the most that is allowed.
    pub(super) fn memory(&self, case: &Case, lengths: &[usize]) -> Result<Measured> {
        println!("{}: 1 x {lengths:?} tokens", case.name);
        let mut peaks = Vec::new();
        let mut weights = 0.;
        for &length in lengths {
            let ids = self.ids(1, length, 2)?;
            let mut side = Side::start(
                "ours",
                &mut self.our_command(&ids, &["--dtype=f32", "--method=lora"]),
            )?;
            side.ask("step")?;
            side.ask("step")?;
            let end = side.end()?;
            weights = number(&end, "base_weights_mb")?;
            peaks.push(number(&end, "peak_rss_mb")?);
            println!("  {length:5} tokens: {:.0} MB", peaks[peaks.len() - 1]);
        }
        let mut rows = Vec::new();
        for (length, peak) in lengths.iter().zip(&peaks) {
            rows.push(row(case.name, &format!("peak_rss_mb_{length}"), *peak, None));
        }
        // Without the weights, which do not grow: the stricter reading.
        let above: Vec<f64> = peaks.iter().map(|peak| peak - weights).collect();
        for (metric, values) in [("peak_rss_mb", &peaks), ("above_weights_mb", &above)] {
            let all = lengths.iter().copied().zip(values.iter().copied());
            let points: Vec<(usize, f64)> = all.collect();
            if let ([first, .., last], Some((from, to))) = (&points[..], steepest(&points)) {
                let linear =
                    |from: &(usize, f64), to: &(usize, f64)| from.1 * to.0 as f64 / from.0 as f64;
                rows.push(row(
                    case.name,
                    &format!("{metric}_against_linear"),
                    last.1,
                    Some(linear(first, last)),
                ));
                // Between which of the lengths it grows most: nowhere may it be faster than they
                // do.
                let name = format!("{metric}_against_linear_steepest_{}_to_{}", from.0, to.0);
                rows.push(row(case.name, &name, to.1, Some(linear(&from, &to))));
            }
        }
        let about = json!({"case": case.name, "lengths": lengths, "peaks": peaks, "base_weights_mb": weights});
        Ok(Measured { rows, about })
    }

    fn name_of(&self, other: &Other) -> String {
        format!("{}{}", if other.peer { "peer" } else { "ours " }, other.options.join(" "))
    }

    fn command_of(&self, other: &Other, ids: &PathBuf) -> Command {
        if !other.peer {
            return self.our_command(ids, other.options);
        }
        let mut command = peer::script(self.setup, &self.python, "bench_train.py", THREADS);
        command
            .arg("serve")
            .args([&self.peer_model, ids])
            .arg(format!("--threads={THREADS}"))
            .args(other.options);
        command
    }

    fn our_command(&self, ids: &PathBuf, options: &[&str]) -> Command {
        let mut command = bench::program(self.setup, "bench_train");
        command.args([&self.gguf, ids]).arg(format!("--threads={THREADS}")).args(options);
        command
    }

    fn ids(&self, rows: usize, length: usize, steps: usize) -> Result<PathBuf> {
        self.ids_of(VOCABULARY, rows, length, steps)
    }

    /// A file with the batches' token ids, below `vocabulary`.
    pub(super) fn ids_of(
        &self,
        vocabulary: u64,
        rows: usize,
        length: usize,
        steps: usize,
    ) -> Result<PathBuf> {
        let name = format!("bench-{vocabulary}-{rows}x{length}x{steps}.json");
        let path = self.setup.target.join("tunebook").join(name);
        write(&path, &batches(vocabulary, rows, length, steps))?;
        Ok(path)
    }
}

/// The two neighbours between which the value grows most for what the length does.
fn steepest(points: &[(usize, f64)]) -> Option<((usize, f64), (usize, f64))> {
    let growth =
        |pair: &[(usize, f64)]| (pair[1].1 / pair[0].1) / (pair[1].0 as f64 / pair[0].0 as f64);
    let pair = points.windows(2).max_by(|a, b| growth(a).total_cmp(&growth(b)))?;
    Some((pair[0], pair[1]))
}

/// Which of the ceilings is the case's: products in bf16 have another.
fn ceiling_key(what: &Steps) -> &'static str {
    if what.ours.contains(&"--dtype=bf16") { "bf16" } else { "f32" }
}

/// The same pseudo-random ids for all sides (SplitMix64): `[step][row][position]`.
pub(super) fn batches(vocabulary: u64, rows: usize, length: usize, steps: usize) -> Value {
    let mut state = 42u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % vocabulary
    };
    let mut row = || -> Vec<u64> { (0..length).map(|_| next()).collect() };
    let mut batch = || -> Vec<Vec<u64>> { (0..rows).map(|_| row()).collect() };
    json!((0..steps).map(|_| batch()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_the_case_s_shape_and_do_not_change() {
        let value = batches(VOCABULARY, 4, 128, 7);
        assert_eq!(value.as_array().map(Vec::len), Some(7));
        assert_eq!(value[0].as_array().map(Vec::len), Some(4));
        assert_eq!(value[0][0].as_array().map(Vec::len), Some(128));
        assert_eq!(value, batches(VOCABULARY, 4, 128, 7));
        assert!(value[1][2][3].as_u64().is_some_and(|id| id < VOCABULARY));
    }

    #[test]
    fn growth_is_steepest_where_the_value_gains_on_the_length() {
        let points = [(512, 100.0), (1024, 150.0), (2048, 350.0), (4096, 500.0)];
        assert_eq!(steepest(&points), Some(((1024, 150.0), (2048, 350.0))));
        assert_eq!(steepest(&points[..1]), None);
    }

    #[test]
    fn a_case_that_cannot_run_has_a_row_with_its_reason() {
        let rows = without("h100-lora-1b", "no CUDA device").rows;
        assert!(rows[0]["ratio"].is_null() && rows[0]["reason"] == "no CUDA device");
    }
}
