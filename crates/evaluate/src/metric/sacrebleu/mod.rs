//! BLEU, chrF and TER as sacreBLEU computes them, to the last settings:
//! <https://github.com/mjpost/sacrebleu>. `tests/golden/sacrebleu` holds its scores.

pub(super) mod bleu;
pub(super) mod chrf;
pub(super) mod ter;
mod ter_edits;
mod ter_tokenizer;
pub(super) mod tokenizer;

/// The version of sacreBLEU whose scores these metrics reproduce, and which signatures name.
const SACREBLEU_VERSION: &str = "2.6.0";

/// `lc` or `mixed`, as sacreBLEU's signatures write case.
fn case(lowercase: bool) -> &'static str {
    if lowercase { "lc" } else { "mixed" }
}
