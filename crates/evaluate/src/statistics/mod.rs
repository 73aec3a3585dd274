//! Intervals and tests: whether a difference is more than chance.
//!
//! - [`wilson`]: an interval for one rate.
//! - [`mcnemar`]: whether two models are right on the same rows equally often.
//! - [`Bootstrap`]: intervals for any score that is a function of sums over rows, and for the
//!   difference of two models on the same rows. Rows that belong together are resampled together
//!   ([`cluster_sums`]).
//! - [`holm`]: p-values of several tests at once.
//! - [`smallest_difference`], [`smallest_rate_difference`]: the smallest difference that so many
//!   rows can show.
//!
//! The values equal those of scipy and statsmodels.

mod bootstrap;
mod clusters;
mod distribution;
mod holm;
mod interval;
mod mcnemar;
mod power;

use crate::{Error, Result};

pub use bootstrap::{Bootstrap, PairedBootstrap};
pub use clusters::cluster_sums;
pub use holm::holm;
pub(crate) use interval::number_or_nan;
pub use interval::{Interval, clustered_rate, wilson};
pub use mcnemar::{McNemar, mcnemar, mcnemar_rows};
pub use power::{smallest_difference, smallest_rate_difference};

/// Checks that a level lies between 0 and 1.
fn check_level(field: &'static str, level: f64) -> Result<()> {
    if level > 0.0 && level < 1.0 {
        return Ok(());
    }
    Err(Error::Setting { field, value: level.to_string(), expected: "more than 0, less than 1" })
}

/// Checks that two models have the same number of rows.
fn check_pairs(first: usize, second: usize) -> Result<()> {
    if first == second {
        return Ok(());
    }
    Err(Error::Lengths {
        left_name: "the first model",
        left: first,
        right_name: "the second",
        right: second,
    })
}
