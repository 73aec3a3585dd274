//! The module of an exported crate that does what the kernel does: it names the cell that failed, and
//! keeps what the cells show.

use std::fmt::Write as _;

use crate::parameters::{Parameter, is_secret};
use crate::program::Uses;

/// The module's name.
pub(crate) const MODULE: &str = "exported_notebook";

const BEGIN: &str = include_str!("support/begin.rs.txt");
const RUN: &str = include_str!("support/run.rs.txt");
const RUN_WITH_FLAGS: &str = include_str!("support/run_with_flags.rs.txt");
const SHOW: &str = include_str!("support/show.rs.txt");
const SHOW_BY_DEBUG: &str = include_str!("support/show_by_debug.rs.txt");
const RUNTIME: &str = include_str!("support/runtime.rs.txt");
const KEEP: &str = include_str!("support/keep.rs.txt");
const RUNTIME_KEEP: &str = include_str!("support/runtime_keep.rs.txt");

/// The module's text.
pub(crate) fn module(
    notebook: &str,
    package: &str,
    parameters: &[Parameter],
    uses: &Uses,
) -> String {
    let stem = package.strip_prefix("notebook-").unwrap_or(package).replace('-', "_");
    let mut text = BEGIN
        .replace("@NOTEBOOK@", &format!("{notebook:?}"))
        .replace("@OUT@", &format!("{:?}", format!("out/{stem}")));
    if parameters.is_empty() {
        text.push_str(RUN);
    } else {
        text.push_str(&RUN_WITH_FLAGS.replace("@NAME@", &format!("{package:?}")));
        for parameter in parameters {
            let Parameter { name, of, default, help } = parameter;
            let default = if is_secret(name) { "the notebook's" } else { default };
            let help = format!("{help} [default: {default}]");
            let _ = write!(
                text,
                "    #[arg(long, value_name = {:?}, allow_hyphen_values = true, help = {:?})]\n    \
                 pub {name}: Option<{of}>,\n",
                of.rsplit("::").next().unwrap_or(of).to_uppercase(),
                help.trim_start(),
            );
        }
        text.push_str("}\n");
    }
    text.push_str(if uses.tunebook { SHOW } else { SHOW_BY_DEBUG });
    if uses.awaits {
        text.push_str(RUNTIME);
    }
    if uses.keeps {
        text.push_str(KEEP);
        if uses.awaits {
            text.push_str(RUNTIME_KEEP);
        }
    }
    text
}
