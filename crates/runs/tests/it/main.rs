//! The registry as a notebook, three processes, a killed one and a server use it.

// The helpers of tests are tests, and some say what they have measured.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod card;
mod common;
mod damage;
mod disks;
mod index;
mod lineage;
mod names;
mod page;
mod processes;
mod promotion;
mod recipe;
mod recording;
mod results;
mod serving;
mod speed;
