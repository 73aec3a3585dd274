//! Checks that several types of adapters share: each refuses a value with its field and what is
//! accepted.

use tunebook_models::{Model, Projection};

use crate::error::{Error, Result};

/// # Errors
/// The numerator of a scaling is not a finite number above 0.
pub(crate) fn alpha(field: &'static str, alpha: f64) -> Result<()> {
    let expected = "a finite number above 0 (r or 2·r are usual)";
    require(field, alpha, alpha.is_finite() && alpha > 0.0, expected)
}

/// # Errors
/// The value is no probability below 1.
pub(crate) fn dropout(field: &'static str, dropout: f64) -> Result<()> {
    let expected = "a probability, at least 0 and below 1";
    require(field, dropout, (0.0..1.0).contains(&dropout), expected)
}

/// # Errors
/// A list of blocks is given and names none.
pub(crate) fn blocks(field: &'static str, blocks: Option<&Vec<usize>>) -> Result<()> {
    let expected = "at least one block, or None for all";
    require(field, "empty", !blocks.is_some_and(Vec::is_empty), expected)
}

/// # Errors
/// The rank is above the smaller side of the matrix.
pub(crate) fn rank(field: &'static str, r: usize, path: &str, base: &dyn Projection) -> Result<()> {
    let (input, output) = (base.in_features(), base.out_features());
    require(
        field,
        format!("{r} for `{path}`, which maps {input} to {output}"),
        r <= input.min(output),
        "a rank of at most the smaller side of the matrix: beyond it nothing more can be learned",
    )
}

/// # Errors
/// There is no virtual token.
pub(crate) fn virtual_tokens(field: &'static str, count: usize) -> Result<()> {
    require(field, count, count > 0, "at least 1 virtual token (8 to 100 are usual)")
}

/// # Errors
/// The virtual tokens leave no room for a text; the error names both numbers.
pub(crate) fn context(field: &'static str, model: &Model, count: usize) -> Result<()> {
    let context = model.config().max_position_embeddings;
    require(
        field,
        format!("{count}, and the model's context is {context} tokens (max_position_embeddings)"),
        count.saturating_add(2) <= context,
        "so few that a text of at least 2 tokens fits behind them",
    )
}

/// The numbers that the configuration of a prompt or a prefix records of its model: the size of a
/// virtual token, blocks and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) token_dim: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_attention_heads: usize,
}

impl Shape {
    /// Refuses a configuration that was made for another model.
    ///
    /// # Errors
    /// A number that is given is not this model's; the error names both.
    pub(crate) fn check(self, given: [Option<usize>; 3]) -> Result<()> {
        let here = [self.token_dim, self.num_layers, self.num_attention_heads];
        let fields = ["token_dim", "num_layers", "num_attention_heads"];
        for ((field, given), here) in fields.into_iter().zip(given).zip(here) {
            let given = given.unwrap_or(here);
            let value = format!("{given}, and this model's is {here}");
            let expected = "the same: the adapter is for another base";
            require(field, value, given == here, expected)?;
        }
        Ok(())
    }
}

fn require(
    field: &'static str,
    value: impl ToString,
    holds: bool,
    expected: &'static str,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Config { field, value: value.to_string(), expected }) }
}
