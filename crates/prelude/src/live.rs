//! What a cell shows while a run trains: a bar, the loss curve and the evaluations, replaced in
//! place a few times a second.
//!
//! The final state stays in the saved notebook. Where nothing can be replaced (a stock kernel, a
//! terminal) a plain progress bar stands in.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tunebook_charts::{Cell, LossPoint, Table};
use tunebook_evaluate::{Diagnosis, Finding};
use tunebook_progress::sink::Place;
use tunebook_progress::{Display, MimeBundle, ProgressBar, display, escape_html};
use tunebook_runs::Samples;
use tunebook_tune::{Callback, EvalRecord, Plan, Result, Run, RunRecord, StepRecord};

use crate::history::curves;
use crate::rank_map::{self, RankMap as _};
use crate::train::LossCurve;

/// The shortest pause between two redraws.
const PAUSE: Duration = Duration::from_millis(500);
/// The evaluations that the table shows, the latest ones.
const EVALS: usize = 8;

/// Draws a run as it goes.
pub(crate) struct Live {
    screen: Screen,
    points: Vec<LossPoint>,
    steps: Vec<StepRecord>,
    evals: Vec<EvalRecord>,
    plan: Option<Plan>,
    evaluating: Option<(usize, usize)>,
    /// Tokens and time of the steps seen here.
    tokens: usize,
    secs: f64,
    started: Instant,
    drawn: Option<Instant>,
    /// Answers of the latest evaluation.
    samples: Samples,
}

enum Screen {
    /// Our kernel: one output, replaced in place.
    Notebook(Option<Display>),
    /// Elsewhere.
    Bar(Option<ProgressBar>),
}

impl Live {
    pub(crate) fn new() -> Self {
        let screen = match Place::current() {
            Place::Channel { .. } => Screen::Notebook(None),
            Place::Stock | Place::Terminal { .. } => Screen::Bar(None),
        };
        Self {
            screen,
            points: Vec::new(),
            steps: Vec::new(),
            evals: Vec::new(),
            plan: None,
            evaluating: None,
            tokens: 0,
            secs: 0.0,
            started: Instant::now(),
            drawn: None,
            samples: Samples::default(),
        }
    }

    /// Shows these answers beside the curve.
    pub(crate) fn with_samples(self, samples: Samples) -> Self {
        Self { samples, ..self }
    }

    /// For a run that goes on: its losses are shown from its first step.
    pub(crate) fn going_on(run: &Run) -> Self {
        let (points, steps) = (run.loss_points(), run.steps.clone());
        Self { points, steps, evals: run.evals.clone(), ..Self::new() }
    }

    fn draw(&mut self, now: bool) {
        let due = now || self.drawn.is_none_or(|drawn| drawn.elapsed() >= PAUSE);
        if !due {
            return;
        }
        self.drawn = Some(Instant::now());
        let status = self.status();
        if let Screen::Notebook(_) = self.screen {
            let bundle = self.bundle(&status, None);
            self.show(bundle);
        }
    }

    fn show(&mut self, bundle: MimeBundle) {
        if let Screen::Notebook(shown) = &mut self.screen {
            match shown {
                Some(shown) => shown.update(bundle),
                None => *shown = Some(display(bundle)),
            }
        }
    }

    /// `step 12/90 · epoch 0.40 · loss 2.113 · learning rate 1.9e-4 · 210 tokens/s · 00:48 left`
    fn status(&self) -> String {
        let total = self.plan.as_ref().map_or(0, |plan| plan.total_steps);
        let Some(last) = self.steps.last() else {
            return match self.evaluating {
                Some((done, rows)) => format!("evaluating {done}/{rows} rows"),
                None => format!("step 0/{total}"),
            };
        };
        let mut status = format!(
            "step {}/{total} · epoch {:.2} · loss {:.3} · learning rate {:.1e} · {:.0} tokens/s",
            last.step,
            last.epoch,
            last.loss,
            last.learning_rate,
            self.tokens as f64 / self.secs.max(1e-9),
        );
        let seen = last.step - self.plan.as_ref().map_or(0, |plan| plan.done_steps).min(last.step);
        if seen > 0 && last.step < total {
            // Evaluations count: the time since the start, not that of the steps alone.
            let left =
                self.started.elapsed().as_secs_f64() / seen as f64 * (total - last.step) as f64;
            let _ = write!(status, " · {} left", clock(left));
        }
        if let Some((done, rows)) = self.evaluating {
            let _ = write!(status, " · evaluating {done}/{rows} rows");
        }
        status
    }

    fn bundle(&self, status: &str, end: Option<&RunRecord>) -> MimeBundle {
        let points = match end {
            Some(run) => run.loss_points(),
            None => self.points.clone(),
        };
        let (steps, evals) = end.map_or((&self.steps, &self.evals), |run| (&run.steps, &run.evals));
        let found = Diagnosis::of(steps, evals);
        // More evaluations may come.
        let waits = end.is_none() && matches!(found.finding, Finding::TooFewEvaluations { .. });
        let diagnosis = (!waits).then(|| found.to_string());
        let figure = curves(steps, points.clone(), String::new(), found.gap);
        let mut html = String::new();
        let total = self.plan.as_ref().map_or(0, |plan| plan.total_steps);
        let step = steps.last().map_or(0, |last| last.step);
        if end.is_none() {
            let _ = write!(
                html,
                "<progress value=\"{step}\" max=\"{}\" style=\"width:100%;max-width:720px\"></progress>",
                total.max(1)
            );
        }
        let _ = write!(
            html,
            "<p style=\"margin:0.4em 0;font-variant-numeric:tabular-nums\">{}</p>",
            escape_html(status)
        );
        if let Some(diagnosis) = &diagnosis {
            let _ = write!(html, "<p style=\"margin:0.4em 0\">{}</p>", escape_html(diagnosis));
        }
        html.push_str(
            figure.bundle().get("text/html").and_then(|image| image.as_str()).unwrap_or_default(),
        );
        let ranks = match (end, &self.plan, steps.first(), steps.last()) {
            (Some(run), ..) => run.rank_map(),
            (None, Some(plan), Some(first), Some(last)) => rank_map::after(plan, first, last),
            _ => None,
        };
        if let Some(ranks) = &ranks {
            let bundle = ranks.bundle();
            html.push_str(
                bundle.get("text/html").and_then(|image| image.as_str()).unwrap_or_default(),
            );
        }
        let table = evaluations(evals, &points);
        let mut text = status.to_owned();
        if let Some(diagnosis) = diagnosis {
            let _ = write!(text, "\n{diagnosis}");
        }
        if !table.is_empty() {
            html.push_str(&table.html());
            let _ = write!(text, "\n{}", table.text());
        }
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !samples.is_empty() {
            let mut table = Table::new(["question", "reference", "answer"]);
            samples.into_iter().for_each(|sample| table.row(sample));
            html.push_str(&table.html());
            let _ = write!(text, "\n{}", table.text());
        }
        let _ = write!(text, "\n{}", figure.text());
        if let Some(ranks) = ranks {
            let _ = write!(text, "\n{}", ranks.text());
        }
        MimeBundle::text(text).html(html)
    }
}

impl Callback for Live {
    fn on_start(&mut self, plan: &Plan) -> Result<()> {
        self.started = Instant::now();
        self.plan = Some(plan.clone());
        if let Screen::Bar(bar) = &mut self.screen {
            let new = ProgressBar::new("Training", Some(plan.total_steps as u64)).unit("step");
            new.set(plan.done_steps as u64);
            *bar = Some(new);
        }
        self.draw(true);
        Ok(())
    }

    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        self.evaluating = None;
        self.tokens += record.tokens;
        self.secs += record.secs;
        self.points.push(LossPoint {
            step: record.step,
            train: Some(record.loss),
            validation: None,
        });
        self.steps.push(record.clone());
        if let Screen::Bar(Some(bar)) = &self.screen {
            let validation = self
                .evals
                .last()
                .map(|eval| format!(", validation {:.3}", eval.loss))
                .unwrap_or_default();
            bar.message(format!("loss {:.3}{validation}", record.loss));
            bar.set(record.step as u64);
        }
        self.draw(false);
        Ok(())
    }

    fn on_eval_progress(&mut self, done: usize, total: usize) -> Result<()> {
        self.evaluating = (done < total).then_some((done, total));
        self.draw(false);
        Ok(())
    }

    fn on_eval(&mut self, record: &EvalRecord) -> Result<()> {
        self.evaluating = None;
        self.points.push(LossPoint {
            step: record.step,
            train: None,
            validation: Some(record.loss),
        });
        self.evals.push(record.clone());
        self.draw(true);
        Ok(())
    }

    fn on_end(&mut self, run: &RunRecord) -> Result<()> {
        if let Screen::Bar(Some(bar)) = &self.screen {
            bar.finish();
        }
        let bundle = self.bundle(&run.to_string(), Some(run));
        self.show(bundle);
        Ok(())
    }
}

/// The latest evaluations, each beside the mean training loss of the steps since the one before.
pub(crate) fn evaluations(evals: &[EvalRecord], points: &[LossPoint]) -> Table {
    let measured: BTreeSet<&String> = evals.iter().flat_map(|eval| eval.metrics.keys()).collect();
    let columns = ["step", "epoch", "mean training loss", "validation loss", "perplexity"];
    let columns = columns.into_iter().chain(measured.iter().map(|name| name.as_str()));
    let mut table = Table::new(columns);
    let first = evals.len().saturating_sub(EVALS);
    for (i, eval) in evals.iter().enumerate().skip(first) {
        let since = if i == 0 { 0 } else { evals[i - 1].step };
        let losses: Vec<f64> = points
            .iter()
            .filter(|point| point.step > since && point.step <= eval.step)
            .filter_map(|point| point.train)
            .collect();
        let mean = match losses.len() {
            0 => Cell::Right("–".into()),
            n => Cell::Right(format!("{:.4}", losses.iter().sum::<f64>() / n as f64)),
        };
        let mut row = vec![
            Cell::from(eval.step),
            Cell::Right(format!("{:.2}", eval.epoch)),
            mean,
            Cell::Right(format!("{:.4}", eval.loss)),
            Cell::Right(format!("{:.2}", eval.loss.exp())),
        ];
        row.extend(measured.iter().map(|name| match eval.metrics.get(*name) {
            Some(value) => Cell::Right(format!("{value:.4}")),
            None => Cell::Right("–".into()),
        }));
        table.row(row);
    }
    table
}

/// `mm:ss`, with hours when there are any.
fn clock(secs: f64) -> String {
    let secs = secs.clamp(0.0, 3.6e6) as u64;
    let (hours, minutes, seconds) = (secs / 3600, secs / 60 % 60, secs % 60);
    match hours {
        0 => format!("{minutes:02}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize, loss: f64) -> StepRecord {
        StepRecord {
            step,
            epoch: step as f64 / 10.0,
            loss,
            learning_rate: 2e-4,
            grad_norm: 1.0,
            loss_scale: None,
            skipped: false,
            kl: None,
            tokens: 100,
            label_tokens: 40,
            secs: 0.5,
            memory_bytes: None,
            rows: Vec::new(),
            ranks: Vec::new(),
        }
    }

    fn plan(total_steps: usize) -> Plan {
        Plan {
            total_steps,
            done_steps: 0,
            steps_per_epoch: 10,
            examples: 40,
            validation_examples: 8,
            trainable_parameters: 1000,
            truncated: 0,
            without_labels: 0,
            packed_rows: None,
            preflight: None,
            rank_modules: Vec::new(),
        }
    }

    #[test]
    fn the_status_tells_where_the_run_stands() -> Result<()> {
        let mut live = Live::new();
        live.on_start(&plan(20))?;
        assert_eq!(live.status(), "step 0/20");
        live.on_step(&step(1, 2.5))?;
        live.on_step(&step(2, 2.25))?;
        let status = live.status();
        assert!(
            status.starts_with(
                "step 2/20 · epoch 0.20 · loss 2.250 · learning rate 2.0e-4 · 200 tokens/s · 00:0"
            ),
            "{status}"
        );
        live.on_eval_progress(3, 8)?;
        assert!(live.status().ends_with("evaluating 3/8 rows"));
        live.on_eval(&EvalRecord {
            step: 2,
            epoch: 0.2,
            loss: 2.0,
            label_tokens: 80,
            secs: 1.0,
            metrics: Default::default(),
        })?;
        let bundle = live.bundle(&live.status(), None);
        let html = bundle.get("text/html").and_then(|html| html.as_str()).unwrap_or_default();
        assert!(
            html.contains("<progress value=\"2\" max=\"20\"")
                && html.contains("2.0000")
                && html.contains("2.3750"),
            "{html}"
        );
        assert!(bundle.plain().contains("validation"), "{}", bundle.plain());
        Ok(())
    }

    #[test]
    fn the_losses_are_judged_under_the_status() -> Result<()> {
        let mut live = Live::new();
        live.on_start(&plan(60))?;
        let shown = |live: &Live| live.bundle(&live.status(), None).plain().to_owned();
        for at in 1..=60 {
            live.on_step(&step(at, 2.0 - 0.02 * at as f64 + (at % 7) as f64 / 50.0))?;
            if at % 10 == 0 {
                let loss = 1.5 + 0.1 * (at as f64 / 10.0 - 3.0).powi(2);
                live.on_eval(&EvalRecord {
                    step: at,
                    epoch: at as f64 / 10.0,
                    loss,
                    label_tokens: 80,
                    secs: 1.0,
                    metrics: Default::default(),
                })?;
            }
            match at {
                20 => assert!(
                    !shown(&live).contains("learning\n") && !shown(&live).contains("since step")
                ),
                40 => assert!(
                    shown(&live).contains("learning; lowest validation loss 1.500 at step 30")
                ),
                _ => {}
            }
        }
        let told = "overfitting since step 30: validation loss 1.500 there, 2.400 now";
        assert!(shown(&live).contains(told), "{}", shown(&live));
        let bundle = live.bundle(&live.status(), None);
        assert!(bundle.get("text/html").is_some_and(|html| html.to_string().contains(told)));
        Ok(())
    }

    /// A long run does not send all its points each time.
    #[test]
    fn the_display_does_not_grow_with_the_run() -> Result<()> {
        let size = |steps: usize| -> Result<usize> {
            let mut live = Live::new();
            live.on_start(&plan(steps))?;
            for at in 1..=steps {
                live.on_step(&step(at, 2.0 + (at % 97) as f64 / 97.0))?;
                if at % (steps / 100) == 0 {
                    live.on_eval(&EvalRecord {
                        step: at,
                        epoch: 0.2,
                        loss: 2.0,
                        label_tokens: 80,
                        secs: 1.0,
                        metrics: Default::default(),
                    })?;
                }
            }
            Ok(serde_json::to_string(&live.bundle(&live.status(), None).data)
                .map_or(0, |text| text.len()))
        };
        let (short, long) = (size(2_000)?, size(50_000)?);
        assert!(long < short + short / 5, "{short} bytes after 2,000 steps, {long} after 50,000");
        assert!(long < 120_000, "{long} bytes");
        Ok(())
    }

    #[test]
    fn times_are_read_at_a_glance() {
        assert_eq!(clock(5.4), "00:05");
        assert_eq!(clock(3725.0), "1:02:05");
        assert_eq!(clock(f64::INFINITY), "1000:00:00");
    }
}
