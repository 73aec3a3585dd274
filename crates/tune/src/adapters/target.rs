//! Which projections of a model an adapter goes to: PEFT's `target_modules`.
//!
//! | written as | matches |
//! |---|---|
//! | `["q_proj", "v_proj"]` | every projection whose path ends in one of these names |
//! | `["model.layers.0.self_attn.q_proj"]` | that one |
//! | `r".*\.(0\|1)\.mlp\..*"` (a string) | every path that the regular expression matches from end to end |
//! | `"all-linear"` | every projection of the decoder blocks; the output head is left out |
//!
//! ```
//! use tunebook_tune::TargetModules;
//! let paths = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"];
//! let targets: TargetModules = ["q_proj"].into();
//! assert_eq!(targets.resolve(&paths)?, [0]);
//! assert!(TargetModules::from(["query"]).resolve(&paths).unwrap_err().to_string().contains("q_proj, up_proj"));
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The projections an adapter goes to. Made with `.into()` from an array of names, a `Vec`, or one
/// string (a regular expression, or `"all-linear"`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of names, a regular expression or all-linear")]
pub enum TargetModules {
    /// Names that a path ends in, or whole paths.
    Names(Vec<String>),
    /// A regular expression over whole paths, or `all-linear`.
    Pattern(String),
}

impl TargetModules {
    /// Every projection of the decoder blocks.
    pub fn all_linear() -> Self {
        Self::Pattern(ALL_LINEAR.to_owned())
    }

    /// Whether the module at `path` is among them.
    ///
    /// # Errors
    /// A regular expression that does not parse.
    pub(crate) fn matches(&self, path: &str) -> Result<bool> {
        Ok(match self {
            Self::Names(names) => names.iter().any(|name| ends_in(path, name)),
            Self::Pattern(pattern) if pattern == ALL_LINEAR => path != "lm_head",
            Self::Pattern(pattern) => is_match(&whole(pattern)?, pattern, path)?,
        })
    }

    /// The indices of the paths that match, in the order of `paths`.
    ///
    /// # Errors
    /// A name or pattern that matches no path (the error lists those that exist), no name at all,
    /// or a regular expression that does not parse.
    pub fn resolve(&self, paths: &[impl AsRef<str>]) -> Result<Vec<usize>> {
        let unknown = |target: &str| Error::UnknownTarget {
            target: target.to_owned(),
            available: short_names(paths),
            example: paths.first().map(|path| path.as_ref().to_owned()).unwrap_or_default(),
            is_pattern: matches!(self, Self::Pattern(_)),
        };
        let matched: Vec<usize> = match self {
            Self::Names(names) => {
                if names.is_empty() {
                    return Err(Error::Config {
                        field: "target_modules",
                        value: "empty".to_owned(),
                        expected: "at least one name, a regular expression, or \"all-linear\"",
                    });
                }
                if let Some(missing) =
                    names.iter().find(|name| !paths.iter().any(|path| ends_in(path.as_ref(), name)))
                {
                    return Err(unknown(missing));
                }
                filter(paths, |path| names.iter().any(|name| ends_in(path, name)))
            }
            Self::Pattern(pattern) if pattern == ALL_LINEAR => {
                filter(paths, |path| path != "lm_head")
            }
            Self::Pattern(pattern) => {
                let regex = whole(pattern)?;
                let mut matched = Vec::new();
                for (index, path) in paths.iter().enumerate() {
                    if is_match(&regex, pattern, path.as_ref())? {
                        matched.push(index);
                    }
                }
                matched
            }
        };
        match self {
            Self::Pattern(pattern) if matched.is_empty() => Err(unknown(pattern)),
            _ => Ok(matched),
        }
    }
}

/// Which modules an adapter goes to: PEFT's `target_modules`, narrowed by the fields that stand
/// beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) target_modules: &'a TargetModules,
    pub(crate) exclude_modules: Option<&'a TargetModules>,
    pub(crate) layers_to_transform: Option<&'a [usize]>,
    /// What a block's number follows: `layers`. Empty: the first number in a path counts.
    pub(crate) layers_pattern: &'a [String],
    pub(crate) modules_to_save: &'a [String],
}

impl Choice<'_> {
    /// The indices of the modules among `paths`, in their order.
    ///
    /// # Errors
    /// As [`TargetModules::resolve`]; a block that does not exist or has no target, or nothing that
    /// is left.
    pub(crate) fn resolve(&self, paths: &[impl AsRef<str>]) -> Result<Vec<usize>> {
        let mut matched = self.target_modules.resolve(paths)?;
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if let Some(excluded) = self.exclude_modules {
            let excluded = excluded.resolve(paths)?;
            matched.retain(|index| !excluded.contains(index));
            if matched.is_empty() {
                return refuse(
                    "exclude_modules",
                    "every target module".to_owned(),
                    "fewer, so that one is left",
                );
            }
        }
        // A module that is trained whole needs no update beside it.
        let saved = |index: &usize| {
            self.modules_to_save.iter().any(|name| lies_in(paths[*index].as_ref(), name))
        };
        matched.retain(|index| !saved(index));
        if let Some(blocks) = self.layers_to_transform {
            let of = |index: &usize| self.block(paths[*index].as_ref());
            if let Some(missing) =
                blocks.iter().find(|block| !matched.iter().any(|index| of(index) == Some(**block)))
            {
                return refuse(
                    "layers_to_transform",
                    format!("{blocks:?}, of which {missing} has no target module"),
                    "numbers of blocks of this model, counted from 0, that hold a target module",
                );
            }
            matched.retain(|index| of(index).is_some_and(|block| blocks.contains(&block)));
        }
        match matched.is_empty() {
            true => refuse(
                "modules_to_save",
                format!("{:?}", self.modules_to_save),
                "other modules than all targets",
            ),
            false => Ok(matched),
        }
    }

    /// The number of the block that a path lies in.
    fn block(&self, path: &str) -> Option<usize> {
        if self.layers_pattern.is_empty() {
            return block_index(path);
        }
        let parts: Vec<&str> = path.split('.').collect();
        self.layers_pattern.iter().find_map(|pattern| {
            let pattern: Vec<&str> = pattern.split('.').collect();
            let at = parts.windows(pattern.len()).position(|window| window == pattern)?;
            parts.get(at + pattern.len())?.parse().ok()
        })
    }
}

const ALL_LINEAR: &str = "all-linear";

/// PEFT's default for the Llama family.
impl Default for TargetModules {
    fn default() -> Self {
        ["q_proj", "v_proj"].into()
    }
}

impl<const N: usize> From<[&str; N]> for TargetModules {
    fn from(names: [&str; N]) -> Self {
        Self::Names(names.iter().map(ToString::to_string).collect())
    }
}

impl From<Vec<String>> for TargetModules {
    fn from(names: Vec<String>) -> Self {
        Self::Names(names)
    }
}

impl From<&str> for TargetModules {
    fn from(pattern: &str) -> Self {
        Self::Pattern(pattern.to_owned())
    }
}

/// The index of the decoder block in a path: 3 for `model.layers.3.self_attn.q_proj`. The first
/// number in the path, as PEFT takes it.
pub(crate) fn block_index(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// PEFT's `get_pattern_key`: whether a key of `rank_pattern` or `alpha_pattern` means this path.
pub(crate) fn pattern_matches(key: &str, path: &str) -> Result<bool> {
    let pattern = format!(r"(.*\.)?({key})");
    is_match(&whole(&pattern)?, &pattern, path)
}

fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| Error::Config {
        field: "target_modules",
        value: format!("`{pattern}` ({error})"),
        expected: "a regular expression over full paths, or \"all-linear\"",
    })
}

/// Look-around makes a match a search, which has a limit.
fn is_match(regex: &Regex, pattern: &str, path: &str) -> Result<bool> {
    regex.is_match(path).map_err(|error| Error::Config {
        field: "target_modules",
        value: format!("`{pattern}` ({error})"),
        expected: "a regular expression that is matched in a bounded number of steps",
    })
}

/// Whether the module at `path` is one of that name, or a part of one.
fn lies_in(path: &str, name: &str) -> bool {
    let mut end = path;
    loop {
        if ends_in(end, name) {
            return true;
        }
        match end.rsplit_once('.') {
            Some((before, _)) => end = before,
            None => return false,
        }
    }
}

pub(crate) fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn filter(paths: &[impl AsRef<str>], keep: impl Fn(&str) -> bool) -> Vec<usize> {
    paths
        .iter()
        .enumerate()
        .filter(|(_, path)| keep(path.as_ref()))
        .map(|(index, _)| index)
        .collect()
}

fn short_names(paths: &[impl AsRef<str>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for path in paths {
        let short = path.as_ref().rsplit('.').next().unwrap_or_default();
        if !names.iter().any(|name| name == short) {
            names.push(short.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 6] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
        "lm_head",
    ];

    #[test]
    fn names_paths_patterns_and_all_linear() {
        let resolve = |targets: TargetModules| targets.resolve(&PATHS).unwrap();
        assert_eq!(resolve(["q_proj", "v_proj"].into()), [0, 1, 3, 4]);
        assert_eq!(resolve(["self_attn.q_proj"].into()), [0, 3]);
        assert_eq!(resolve([PATHS[2]].into()), [2]);
        assert_eq!(resolve(r"model\.layers\.1\..*".into()), [3, 4]);
        assert_eq!(resolve("all-linear".into()), [0, 1, 2, 3, 4]);
        // As Python's `re` has them.
        assert_eq!(resolve(r"(?!.*lm_head)(?!.*\.0\.).*".into()), [3, 4]);
        assert_eq!(resolve(r".*(?<=self_attn\.)v_proj".into()), [1, 4]);
        assert_eq!(resolve(TargetModules::all_linear()), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_name_matches_whole_parts_of_a_path_only() {
        for targets in [TargetModules::from(["proj"]), "q_proj".into(), ["q_proj", "query"].into()]
        {
            let error = targets.resolve(&PATHS).unwrap_err();
            assert!(matches!(error, Error::UnknownTarget { .. }), "{error}");
            assert!(error.to_string().contains("q_proj, v_proj, up_proj, lm_head"), "{error}");
        }
        // A single string is a pattern, which PEFT matches with whole paths.
        let error = TargetModules::from("q_proj").resolve(&PATHS).unwrap_err().to_string();
        for part in ["regular expression", r#"`["q_proj"].into()`"#, r#"`".*q_proj".into()`"#] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(TargetModules::from(".*q_proj").resolve(&PATHS).unwrap(), [0, 3]);
        let error = TargetModules::from("query|value").resolve(&PATHS).unwrap_err().to_string();
        assert!(error.contains(PATHS[0]) && error.contains(r#"`["q_proj"].into()`"#), "{error}");
        let error = TargetModules::from(["query"]).resolve(&PATHS).unwrap_err().to_string();
        assert!(error.contains("Give one of these names"), "{error}");
    }

    #[test]
    fn nothing_and_broken_patterns_are_refused() {
        assert!(
            TargetModules::Names(vec![])
                .resolve(&PATHS)
                .unwrap_err()
                .to_string()
                .contains("at least one")
        );
        assert!(
            TargetModules::from("(")
                .resolve(&PATHS)
                .unwrap_err()
                .to_string()
                .contains("regular expression")
        );
    }

    #[test]
    fn a_choice_is_narrowed_as_pefts() {
        let all = TargetModules::all_linear();
        let whole = Choice {
            target_modules: &all,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: &[],
            modules_to_save: &[],
        };
        let v_proj: TargetModules = ["v_proj"].into();
        assert_eq!(
            Choice { exclude_modules: Some(&v_proj), ..whole }.resolve(&PATHS).unwrap(),
            [0, 2, 3]
        );
        assert_eq!(
            Choice { layers_to_transform: Some(&[1]), ..whole }.resolve(&PATHS).unwrap(),
            [3, 4]
        );
        let mlp = ["mlp".to_owned()];
        assert_eq!(
            Choice { modules_to_save: &mlp, ..whole }.resolve(&PATHS).unwrap(),
            [0, 1, 3, 4]
        );
        let pattern = |name: &str| [name.to_owned()];
        let (layers, other) = (pattern("model.layers"), pattern("blocks"));
        let chosen = Choice { layers_to_transform: Some(&[0]), layers_pattern: &layers, ..whole };
        assert_eq!(chosen.resolve(&PATHS).unwrap(), [0, 1, 2]);
        let error =
            Choice { layers_pattern: &other, ..chosen }.resolve(&PATHS).unwrap_err().to_string();
        assert!(
            error.contains("layers_to_transform") && error.contains("0 has no target"),
            "{error}"
        );
        let error = Choice { exclude_modules: Some(&all), ..whole }
            .resolve(&PATHS)
            .unwrap_err()
            .to_string();
        assert!(error.contains("exclude_modules"), "{error}");
    }

    #[test]
    fn block_index_is_the_first_number() {
        assert_eq!(block_index("model.layers.12.mlp.experts.3.up_proj"), Some(12));
        assert_eq!(block_index("lm_head"), None);
    }

    #[test]
    fn is_written_as_peft_writes_it() {
        let json = |targets: TargetModules| serde_json::to_string(&targets).unwrap();
        assert_eq!(json(["q_proj"].into()), r#"["q_proj"]"#);
        assert_eq!(json("all-linear".into()), r#""all-linear""#);
        assert_eq!(serde_json::from_str::<TargetModules>(r#"["a"]"#).unwrap(), ["a"].into());
        assert_eq!(serde_json::from_str::<TargetModules>(r#"".*q""#).unwrap(), ".*q".into());
    }
}
