//! TER.

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{SACREBLEU_VERSION, case, ter_edits, ter_tokenizer};
use crate::Result;
use crate::metric::{TextMetric, required, yes_no};

/// TER, the translation edit rate in per cent: the edits that make the answer the reference, by 100
/// words of the reference (Snover et al. 2006, <https://aclanthology.org/2006.amta-papers.25>), as
/// sacreBLEU computes it after Tercom. Lower is better; 0 is equality, and values over 100 occur.
///
/// An edit is the insertion, deletion or substitution of a word, or the shift of several words that
/// stand together. Of several references the one with the fewest edits counts, over the mean length
/// of all.
///
/// ```
/// use tunebook_evaluate::metric::{Ter, TextMetric};
///
/// // One shift, in eight words.
/// let reference = ["On Monday we will ship the parcel today".to_owned()];
/// let answer = "we will ship the parcel today On Monday";
/// assert_eq!(Ter::default().row_score(answer, &reference)?, 12.5);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ter {
    /// Separate punctuation from words, and resolve XML escapes. Default: no.
    pub normalized: bool,
    /// Remove punctuation. Default: no.
    pub no_punct: bool,
    /// Treat Asian characters, too, where `normalized` (ideographs are words) or `no_punct` is on.
    /// Default: no.
    pub asian_support: bool,
    /// Keep upper and lower case apart. Default: no.
    pub case_sensitive: bool,
}

impl TextMetric for Ter {
    fn metric(&self) -> Metric {
        Metric::lower_is_better("ter").unit("%")
    }

    fn settings(&self) -> String {
        format!(
            "case:{}|tok:tercom|norm:{}|punct:{}|asian:{}|version:{SACREBLEU_VERSION}",
            case(!self.case_sensitive),
            yes_no(self.normalized),
            yes_no(!self.no_punct),
            yes_no(self.asian_support),
        )
    }

    /// Edits, mean length of the references in words.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let references = required(&self.metric(), answer, references)?;
        let answer = ter_tokenizer::words(self, answer);
        let mut fewest = usize::MAX;
        let mut lengths = 0;
        for reference in references {
            // sacreBLEU tokenises references twice, which parts the possessive in `dog's,`.
            let once = ter_tokenizer::words(self, reference).join(" ");
            let reference = ter_tokenizer::words(self, &once);
            fewest = fewest.min(ter_edits::edits(&answer, &reference));
            lengths += reference.len();
        }
        Ok(vec![fewest as f64, lengths as f64 / references.len() as f64])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        match sums {
            [edits, length] if *length > 0.0 => 100.0 * (edits / length),
            [edits, _] if *edits > 0.0 => 100.0,
            _ => 0.0,
        }
    }
}
