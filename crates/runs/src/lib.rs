//! What made an adapter, and what comes next: the registry of runs.
//!
//! The truth is files: a folder for each run, with a log of JSON lines that only grows, adapters by
//! content, evaluations, and a file of generations for each alias. SQLite is an index of them, which
//! is made again whenever it is lost ([`Registry::rebuild`]).
//!
//! ```text
//! registry/
//!   runs/ID/log.jsonl        begin, step, eval, save, adapter, end: written by the run
//!   runs/ID/recipe.yaml      data, model, strategy and arguments
//!   runs/ID/notes.jsonl      notes and tags: written by anybody
//!   runs/ID/manifest.json    hashes, when the run has ended
//!   rows/HASH.txt            ids of training rows
//!   adapters/ID/             PEFT's files; ID is their hash
//!   adapters/ID.jsonl        where they come from
//!   evaluations/ID.json      scores and settings of what answered
//!   aliases/NAME.jsonl       one line a generation
//!   serving/NAME             a link to the files of the last generation
//!   index.sqlite             made of all these
//! ```
//!
//! - [`Registry::record`] gives the callback that records a run, [`Registry::runs`] the table of all,
//!   [`Registry::compare`] what differs between some.
//! - [`Registry::recipe`] gives a run's [`Recipe`], one YAML file, which `tunebook train` reads.
//! - [`Registry::why`] tells where an adapter comes from, [`Registry::adapters_touched_by`] which
//!   adapters saw a row.
//! - [`Registry::promote`] lets an alias stand for another adapter if a paired evaluation says that it
//!   is better, [`Registry::rollback`] brings the generation before back; a server that watches
//!   [`Registry::serving_folder`] follows.

mod adapters;
mod aliases;
mod card;
mod compare;
mod data;
mod disk;
mod error;
mod evaluations;
mod examples;
mod garbage;
mod ids;
mod index;
mod judge;
mod names;
mod recipe;
mod recorder;
mod registry;
mod summary;
mod table;
mod touched;
mod verify;
mod why;
mod yaml;

// `serde-saphyr` brings it along with fewer features than the program's `clap`: with two sets of them
// everything above it would be compiled twice.
use anstyle as _;

pub use aliases::{Alias, AliasGeneration, ComparisonRecord, PromotionKind};
pub use card::{Benchmark, CardArgs, CardError, License, ModelCard, hub_name};
pub use compare::RunComparison;
pub use data::{DataRecord, RunData, SetRecord, row_id};
pub use error::{Error, Result};
pub use evaluations::EvaluationRecord;
pub use examples::{evaluation_examples, message, training_examples};
pub use garbage::{Garbage, GarbageArgs, GarbageItem};
pub use judge::{Samples, answer_measures};
pub use recipe::{
    DataRecipe, ModelDtype, ModelRecipe, Recipe, RecipeArgs, StrategyRecipe, TrainedRecipe, to_yaml,
};
pub use recorder::Recorder;
pub use registry::Registry;
pub use summary::RunNote;
pub use touched::{Touched, TouchedAdapter};
pub use verify::DamagedFile;
pub use why::{Why, WhyLink};
