//! No code, only dependencies: it makes every crate of the workspace ask for shared dependencies
//! with the same features.
//!
//! Cargo unifies features over the packages of one command. `cargo test -p tunebook-data` would
//! therefore choose fewer features for, say, `serde` than a build of the whole prelude does, and
//! since polars is built on `serde`, compile polars a second time. With this crate among the
//! dependencies of each, every selection of packages, the kernel's cells included, resolves to the
//! same set, and polars and candle are compiled once.
//!
//! `Cargo.toml` is written by `cargo xtask features` after a change of dependencies.
//! `cargo xtask test` fails when it is out of date.
