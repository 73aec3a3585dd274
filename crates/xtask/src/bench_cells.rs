//! The `cells` bench; not measured yet.

use std::path::Path;

use crate::error::{Error, Result};
use crate::setup::Setup;

pub fn run(_setup: &Setup, _cases: &[String], _json: Option<&Path>) -> Result<()> {
    Err(Error::Other("this bench is not built yet".to_owned()))
}
