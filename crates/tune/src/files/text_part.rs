//! Adapters of models that read pictures, too, such as Gemma 3 from 4B on: their text part is the
//! text model, under longer names.
//!
//! | in the file | in the text model |
//! |---|---|
//! | `language_model.model.layers.0.self_attn.q_proj` | `model.layers.0.self_attn.q_proj` |
//! | `model.language_model.layers.0.self_attn.q_proj` (transformers 4.52 and later) | the same |

use std::collections::BTreeMap;
use std::path::Path;

use tunebook_models::Model;

use crate::adapters::config::AdapterConfig;
use crate::adapters::target::{TargetModules, pattern_matches};
use crate::error::{Error, Result};
use crate::files::peft::AdapterFiles;

/// The name of the text part before the path of the text model.
const OUTSIDE: &str = "language_model.";
/// The name of the text part within the model.
const INSIDE: &str = "model.language_model.";

/// Where the text part stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Outside,
    Inside,
}

impl Spelling {
    fn of(files: &AdapterFiles) -> Option<Self> {
        let holds = |part: &str| files.tensors.keys().any(|key| key.starts_with(part));
        match (holds(INSIDE), holds(OUTSIDE)) {
            (true, _) => Some(Self::Inside),
            (false, true) => Some(Self::Outside),
            (false, false) => None,
        }
    }

    /// A path of the text model as the whole model has it.
    fn whole(self, path: &str) -> String {
        match (self, path.strip_prefix("model.")) {
            (Self::Outside, _) => format!("{OUTSIDE}{path}"),
            (Self::Inside, Some(rest)) => format!("{INSIDE}{rest}"),
            (Self::Inside, None) => path.to_owned(),
        }
    }

    /// A path of the whole model as the text model has it; `None` outside the text part.
    fn text(self, path: &str) -> Option<String> {
        match self {
            Self::Outside => path.strip_prefix(OUTSIDE).map(str::to_owned),
            Self::Inside => path.strip_prefix(INSIDE).map(|rest| format!("model.{rest}")),
        }
        .or_else(|| path.starts_with("lm_head.").then(|| path.to_owned()))
    }
}

/// Gives tensors and configuration the names of the text model. Tensors of the other parts, which
/// no text comes by, are left out with a warning.
///
/// # Errors
/// The configuration's target modules are none of this model's.
pub(crate) fn rename(model: &Model, files: &mut AdapterFiles, path: &Path) -> Result<()> {
    let Some(spelling) = Spelling::of(files) else { return Ok(()) };
    let all = std::mem::take(&mut files.tensors);
    let count = all.len();
    files.tensors =
        all.into_iter().filter_map(|(key, tensor)| Some((spelling.text(&key)?, tensor))).collect();
    let others = count - files.tensors.len();
    if others > 0 {
        files.warnings.push(format!(
            "{others} of {count} tensors belong to the part of the base that reads pictures, which this model has not: they were left out"
        ));
    }
    targets(model, files, spelling, path)?;
    match &mut files.config {
        AdapterConfig::Lora(lora) => {
            let slots = model.slots();
            let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
            by_path(&mut lora.rank_pattern, &paths, spelling)?;
            by_path(&mut lora.alpha_pattern, &paths, spelling)?;
        }
        AdapterConfig::AdaLora(lora) => {
            if let Some(masks) = lora.rank_pattern.take() {
                let masks = masks
                    .into_iter()
                    .filter_map(|(key, mask)| Some((spelling.text(&key)?, mask)))
                    .collect();
                lora.rank_pattern = Some(masks);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Puts the paths of the text model in place of target modules that mean others on it.
fn targets(model: &Model, files: &mut AdapterFiles, spelling: Spelling, path: &Path) -> Result<()> {
    let slots = model.slots();
    let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
    let of = |targets: &TargetModules| -> Result<Vec<&str>> {
        let mut found = Vec::new();
        for path in &paths {
            if targets.matches(&spelling.whole(path))? || targets.matches(path)? {
                found.push(*path);
            }
        }
        Ok(found)
    };
    let named = |paths: Vec<&str>| -> TargetModules {
        TargetModules::Names(paths.into_iter().map(str::to_owned).collect())
    };
    let (targets, excluded, layers_pattern, feedforward) = match &mut files.config {
        AdapterConfig::Lora(lora) => {
            let fields = (&mut lora.exclude_modules, &mut lora.layers_pattern);
            (&mut lora.target_modules, Some(fields.0), Some(fields.1), None)
        }
        AdapterConfig::AdaLora(lora) => {
            let fields = (&mut lora.exclude_modules, &mut lora.layers_pattern);
            (&mut lora.target_modules, Some(fields.0), Some(fields.1), None)
        }
        AdapterConfig::Ia3(ia3) => {
            let feedforward = Some(&mut ia3.feedforward_modules);
            (&mut ia3.target_modules, Some(&mut ia3.exclude_modules), None, feedforward)
        }
        _ => return Ok(()),
    };
    let mut chosen = of(targets)?;
    if let Some(excluded) = excluded.and_then(Option::take) {
        let excluded = of(&excluded)?;
        chosen.retain(|path| !excluded.contains(path));
    }
    if chosen.is_empty() {
        return Err(Error::AdapterFile {
            path: path.to_path_buf(),
            problem: format!(
                "expected target modules in the text part of its base, found none for {targets:?}"
            ),
        });
    }
    let is_same = targets.resolve(&paths).is_ok_and(|matched| {
        matched.into_iter().map(|index| paths[index]).eq(chosen.iter().copied())
    });
    if !is_same {
        *targets = named(chosen.clone());
        if let Some(feedforward) = feedforward {
            let mut inner = of(feedforward)?;
            inner.retain(|path| chosen.contains(path));
            *feedforward = named(inner);
        }
    }
    for pattern in layers_pattern.into_iter().flatten() {
        *pattern = pattern.replace(OUTSIDE, "");
    }
    Ok(())
}

/// A pattern's values by the paths that its keys mean.
fn by_path<T: Copy>(
    pattern: &mut BTreeMap<String, T>,
    paths: &[&str],
    spelling: Spelling,
) -> Result<()> {
    if !pattern.keys().any(|key| key.contains("language_model")) {
        return Ok(());
    }
    let mut values = BTreeMap::new();
    for path in paths {
        for (key, value) in pattern.iter() {
            if pattern_matches(key, &spelling.whole(path))? {
                values.insert((*path).to_owned(), *value);
                break;
            }
        }
    }
    *pattern = values;
    Ok(())
}
