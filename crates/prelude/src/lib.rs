//! What a notebook uses: `use tunebook::prelude::*;`.
//!
//! This crate adds no logic of its own. It names the crates of the workspace in one place, joins
//! data to training ([`DataSets`]), and says how each value looks as the result of a cell
//! ([`EvcxrDisplay`]). It is built as a dynamic library, so that a cell links to one compiled copy
//! of everything, and as an rlib, which rustdoc needs for its examples. Importing it runs nothing:
//! thread pools start when they are first used, with as many threads as the process may use
//! (`RAYON_NUM_THREADS` and `POLARS_MAX_THREADS` change that).
//!
//! ```no_run
//! use tunebook::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clean = Dataset::read("datasets/support/tickets_raw.jsonl")?.clean(&Cleaning::standard())?;
//! let split = clean.split(&Split::holdout(0.12))?;
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::best()?)?;
//! model.add_adapter("support", &Lora { r: 8, lora_alpha: 32.0, ..Default::default() })?;
//! let run = Trainer::new(&model, &TrainingArgs::default()).train(&split)?;
//! run.loss_curve().save_svg("loss.svg")?;
//! # Ok(())
//! # }
//! ```

pub use tunebook_charts as charts;
pub use tunebook_data as data;
pub use tunebook_evaluate as evaluation;
pub use tunebook_models as models;
pub use tunebook_progress as progress;
pub use tunebook_runs as runs;
pub use tunebook_serve as serve;
pub use tunebook_tune as tune;

/// Hands on what it gets. The kernel puts a `let` of closures into it, which evcxr would otherwise
/// keep for the next cell.
#[doc(hidden)]
#[macro_export]
macro_rules! within_cell {
    ($($tokens:tt)*) => { $($tokens)* };
}

mod compare;
mod course;
mod evaluate;
mod history;
mod live;
mod live_server;
pub mod prelude;
mod rank_map;
mod report;
mod seen;
mod show;
mod strategies;
mod summary;
mod tradeoff;
mod train;
#[doc(hidden)]
pub mod variables;
mod views;

pub use compare::{compare_runs, side_by_side};
pub use course::{Scale, UnknownScale};
pub use evaluate::{ComparisonViews, DataFile, EvaluationViews};
pub use history::{History, LrCurve};
pub use report::{Report, ReportPart};
pub use seen::{See, Seen, SeenToken};
pub use show::EvcxrDisplay;
pub use strategies::{Candidate, StrategyComparison, StrategyResult, compare_strategies};
pub use summary::Summary;
pub use tradeoff::forgetting_chart;
pub use train::{DataSets, Examples, LossCurve};
