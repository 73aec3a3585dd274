//! Tests of the whole crate: against sacreBLEU, rouge-score, scikit-learn, scipy and statsmodels
//! (by golden values), and of what must hold for every text and every set of rows.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)] // the helpers of tests are tests

mod answers;
mod classes;
mod coverage;
mod diagnosis;
mod forgetting;
mod golden;
mod intervals;
mod invariants;
mod lm_eval;
mod memorisation;
mod run;
mod soundness;
mod spot_checks;
mod texts;
