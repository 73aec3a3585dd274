//! Runs and adapters.

use tunebook_charts::{Cell, Table};
use tunebook_progress::{MimeBundle, escape_html};
use tunebook_tune::{AdapterInfo, Preflight, Run, TrainingSummary};

use super::data::image;
use crate::live::evaluations;
use crate::rank_map::RankMap as _;
use crate::train::LossCurve as _;

pub(super) fn run(run: &Run) -> MimeBundle {
    let figure = run.loss_curve();
    let table = evaluations(&run.evals, &run.loss_points());
    let mut html = format!(
        "<p style=\"margin:0.4em 0\">{}</p>{}",
        escape_html(&run.to_string()),
        image(&figure)
    );
    let mut text = run.to_string();
    if let Some(ranks) = run.rank_map() {
        html.push_str(&image(&ranks));
        text = format!("{text}\n{}", ranks.text());
    }
    if !table.is_empty() {
        html.push_str(&table.html());
        text = format!("{text}\n{}", table.text());
    }
    MimeBundle::text(text).html(html)
}

pub(super) fn adapters(adapters: &[AdapterInfo]) -> MimeBundle {
    let mut table =
        Table::new(["adapter", "active", "type", "modules", "trainable parameters", "share"]);
    for info in adapters {
        let share = 100.0 * info.trainable_parameters as f64 / info.all_parameters.max(1) as f64;
        table.row([
            Cell::from(info.name.as_str()),
            Cell::from(match (info.active, info.merged) {
                (_, true) => "merged",
                (true, false) => "yes",
                (false, false) => "",
            }),
            Cell::from(info.config.to_string()),
            info.modules.len().into(),
            info.trainable_parameters.into(),
            Cell::Right(format!("{share:.3} %")),
        ]);
    }
    table.bundle()
}

/// What a run will train and take.
pub(super) fn training(summary: &TrainingSummary) -> Table {
    let mut table = Table::new(["", "value"]).caption(format!("{}, before the run", summary.name));
    for (name, value) in summary.lines() {
        table.row([Cell::from(name), Cell::Right(value)]);
    }
    table
}

/// What a run is expected to take.
pub(super) fn preflight(flight: &Preflight) -> Table {
    let mut table = Table::new(["", "value"]).caption("before the run".to_owned());
    let mut line = |name: &str, value: String| table.row([Cell::from(name), Cell::Right(value)]);
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    line("rows of a micro-batch", flight.batch_size.to_string());
    line("micro-batches of a step", flight.gradient_accumulation_steps.to_string());
    line("blocks run again", format!("{} of {}", flight.checkpointed_blocks, flight.blocks));
    line("peak memory", flight.peak_bytes.map_or("unknown on this system".to_owned(), gigabytes));
    if let Some(budget) = flight.memory_budget {
        line("memory budget", gigabytes(budget));
    }
    line("steps", flight.total_steps.to_string());
    line("time of a step", format!("{:.2} s", flight.secs_per_step));
    line("time of the run", format!("{:.0} s", flight.secs));
    table
}
