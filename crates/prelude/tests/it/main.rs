//! The tests of the prelude, one program: linking it to everything takes long.

#![allow(clippy::panic)]

mod api;
mod cells;
mod judging;
mod source;
mod tokens;
