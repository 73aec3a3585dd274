//! The registry as a notebook, three processes, a killed one and a server use it.

#![allow(clippy::unwrap_used, missing_docs)] // the helpers of tests are tests

mod common;
mod disks;
mod index;
mod lineage;
mod processes;
mod promotion;
mod recording;
mod serving;
mod speed;
