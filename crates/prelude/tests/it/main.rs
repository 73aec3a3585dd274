//! The tests of the prelude, in one program: linking it to everything takes long.

mod cells;
