//! Runs and adapters.

use tunebook_charts::{Cell, Table, format_number};
use tunebook_progress::{MimeBundle, escape_html};
use tunebook_tune::{AdapterInfo, Run};

use super::data::image;
use crate::live::evaluations;
use crate::train::LossCurve as _;

pub(super) fn run(run: &Run) -> MimeBundle {
    let figure = run.loss_curve();
    let table = evaluations(&run.evals, &run.loss_points());
    let mut html =
        format!("<p style=\"margin:0.4em 0\">{}</p>{}", escape_html(&run.to_string()), image(&figure));
    let mut text = run.to_string();
    if !table.is_empty() {
        html.push_str(&table.html());
        text = format!("{text}\n{}", table.text());
    }
    MimeBundle::text(text).html(html)
}

pub(super) fn adapters(adapters: &[AdapterInfo]) -> MimeBundle {
    let mut table =
        Table::new(["adapter", "active", "r", "lora_alpha", "modules", "trainable parameters", "share"]);
    for info in adapters {
        let share = 100.0 * info.trainable_parameters as f64 / info.all_parameters.max(1) as f64;
        table.row([
            Cell::from(info.name.as_str()),
            Cell::from(if info.active { "yes" } else { "" }),
            info.config.r.into(),
            Cell::Right(format_number(info.config.lora_alpha)),
            info.modules.len().into(),
            info.trainable_parameters.into(),
            Cell::Right(format!("{share:.3} %")),
        ]);
    }
    table.bundle()
}
