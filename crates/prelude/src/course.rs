//! How much the notebooks of the course train.

use std::fmt;

/// The variable that [`Scale::from_env`] reads.
const VARIABLE: &str = "TUNEBOOK_SCALE";

/// How much a notebook of the course trains, as `TUNEBOOK_SCALE` says.
///
/// The notebooks are written for [`Scale::Small`] and take their numbers of rows and steps by
/// [`Scale::of`].
///
/// ```
/// use tunebook::prelude::*;
/// assert_eq!(Scale::Small.of(18), 18);
/// assert_eq!(Scale::Workshop.of(18), 54);
/// assert_eq!(Scale::Check.of(18), 3);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// `check`: a sixth. Every cell runs, and nothing is learnt: for tests.
    Check,
    /// `small`, and the default: minutes on a laptop's CPU.
    #[default]
    Small,
    /// `workshop`: three times as much.
    Workshop,
    /// `full`: ten times as much, for a GPU.
    Full,
}

impl Scale {
    /// The scale that `TUNEBOOK_SCALE` names; [`Scale::Small`] where it is not set.
    ///
    /// # Errors
    /// [`UnknownScale`] for any other word.
    pub fn from_env() -> Result<Self, UnknownScale> {
        match std::env::var_os(VARIABLE) {
            Some(word) => Self::named(&word.to_string_lossy()),
            None => Ok(Self::default()),
        }
    }

    fn named(word: &str) -> Result<Self, UnknownScale> {
        match word {
            "check" => Ok(Self::Check),
            "small" | "" => Ok(Self::Small),
            "workshop" => Ok(Self::Workshop),
            "full" => Ok(Self::Full),
            other => Err(UnknownScale(other.to_owned())),
        }
    }

    /// The number that stands for `small` at this scale; at least 1 where `small` is.
    pub const fn of(self, small: usize) -> usize {
        match self {
            Self::Check => small.div_ceil(6),
            Self::Small => small,
            Self::Workshop => 3 * small,
            Self::Full => 10 * small,
        }
    }
}

/// `TUNEBOOK_SCALE` is a word that is no [`Scale`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownScale(String);

impl fmt::Display for UnknownScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = &self.0;
        write!(f, "{VARIABLE}={word}: expected check, small, workshop or full")
    }
}

impl std::error::Error for UnknownScale {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_scale_is_refused_with_those_that_are() {
        assert_eq!(Scale::named("workshop"), Ok(Scale::Workshop));
        assert_eq!(Scale::named(""), Ok(Scale::Small));
        let error = Scale::named("fulll").unwrap_err().to_string();
        assert_eq!(error, "TUNEBOOK_SCALE=fulll: expected check, small, workshop or full");
    }

    #[test]
    fn a_scale_never_makes_nothing_of_something() {
        for scale in [Scale::Check, Scale::Small, Scale::Workshop, Scale::Full] {
            assert_eq!(scale.of(0), 0);
            assert!((1..50).all(|small| scale.of(small) >= 1));
        }
    }
}
