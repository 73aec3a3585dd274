//! Differences between an adapter in a model and in its files: modules written out by name, and a
//! table that is the output head as well, which files hold twice.

use std::collections::BTreeMap;
use std::path::Path;

use tunebook_models::Model;

use crate::adapters::config::AdapterConfig;
use crate::adapters::target::{Choice, TargetModules};
use crate::error::{Error, Result};
use crate::files::peft::AdapterFiles;
use crate::files::stored::StoredTensor;

const HEAD: &str = "lm_head.weight";

/// The embedding table's name, if it is the output head as well.
fn tied_table(model: &Model) -> Option<String> {
    let table = model.weights().into_iter().find(|weight| model.is_embedding(weight.name()))?;
    model.config().tie_word_embeddings.then(|| table.name().to_owned())
}

/// Adds the output head of a model whose head is its embedding table, if that is among the tensors:
/// PEFT writes both.
pub(crate) fn add_tied_head(model: &Model, tensors: &mut BTreeMap<String, StoredTensor>) {
    if let Some(table) = tied_table(model).and_then(|table| tensors.get(&table).cloned()) {
        tensors.insert(HEAD.to_owned(), table);
    }
}

/// Takes the second copy of a tied table out of what a file holds.
///
/// # Errors
/// The copies differ: the file's model has an output head of its own.
pub(crate) fn drop_tied_head(model: &Model, files: &mut AdapterFiles, path: &Path) -> Result<()> {
    let Some(table) = tied_table(model) else { return Ok(()) };
    if let (Some(head), Some(embedding)) = (files.tensors.get(HEAD), files.tensors.get(&table)) {
        if head != embedding {
            return Err(Error::AdapterFile {
                path: path.to_path_buf(),
                problem: format!(
                    "`{HEAD}` and `{table}` differ, expected them to be the one table that they are in this model: the adapter was trained on a \
                     base with an output head of its own"
                ),
            });
        }
        files.tensors.remove(HEAD);
    }
    Ok(())
}

/// Lets the configuration name the embedding table and the output head that a file holds without it:
/// PEFT writes them by itself when the vocabulary was changed, or with `save_embedding_layers`.
///
/// # Errors
/// A table of another number of rows than the model's.
pub(crate) fn name_tables(model: &Model, files: &mut AdapterFiles, path: &Path) -> Result<()> {
    let mut untied = false;
    let (modules, tying) = match &mut files.config {
        AdapterConfig::Lora(lora) => (&mut lora.modules_to_save, &mut lora.ensure_weight_tying),
        AdapterConfig::AdaLora(lora) => (&mut lora.modules_to_save, &mut lora.ensure_weight_tying),
        AdapterConfig::Ia3(ia3) => (&mut ia3.modules_to_save, &mut untied),
        _ => return Ok(()),
    };
    for weight in model.weights() {
        let name = weight.name();
        let is_table = model.is_embedding(name);
        let Some(found) = files.tensors.get(name).filter(|_| is_table || name == HEAD) else {
            continue;
        };
        let dims = weight.matrix().dims().to_vec();
        if found.shape.get(1) == dims.get(1) && found.shape.first() != dims.first() {
            return Err(Error::AdapterFile {
                path: path.to_path_buf(),
                problem: format!(
                    "`{name}` is {:?}, expected {dims:?} on this model: the vocabulary was resized for the adapter. Merge it in PEFT \
                     (`merge_and_unload`), save that model with its tokenizer, and load it as a model",
                    found.shape
                ),
            });
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if !modules.iter().any(|given| module.ends_with(given.as_str())) {
            modules.push(module.to_owned());
            *tying |= is_table && model.config().tie_word_embeddings;
        }
    }
    Ok(())
}

/// Short names where they mean exactly these modules, whole paths otherwise.
pub(crate) fn written_out(
    model: &Model,
    modules: &[String],
    config: &AdapterConfig,
) -> TargetModules {
    let mut names: Vec<String> = Vec::new();
    for module in modules {
        let short = module.rsplit('.').next().unwrap_or_default().to_owned();
        if !names.contains(&short) {
            names.push(short);
        }
    }
    let short = TargetModules::Names(names);
    let slots = model.slots();
    let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
    let choice =
        config.as_type().choice().map(|choice| Choice { target_modules: &short, ..choice });
    match choice.map(|choice| choice.resolve(&paths)) {
        Some(Ok(matched)) if matched.len() == modules.len() => short,
        _ => TargetModules::Names(modules.to_vec()),
    }
}

/// Writes `all-linear` out, as PEFT does, and a pattern beside a list of blocks, which PEFT refuses.
/// `given` is the configuration that `modules` were chosen by.
pub(crate) fn write_out_targets(
    model: &Model,
    config: &mut AdapterConfig,
    given: &AdapterConfig,
    modules: &[String],
) {
    let Some((target_modules, layers_to_transform)) = config.as_type_mut().choice_mut() else {
        return;
    };
    let pattern = matches!(target_modules, TargetModules::Pattern(_));
    let blocks = layers_to_transform.as_ref().is_some_and(|blocks| blocks.is_some());
    if *target_modules != TargetModules::all_linear() && !(pattern && blocks) {
        return;
    }
    *target_modules = written_out(model, modules, given);
    let whole_paths =
        matches!(target_modules, TargetModules::Names(names) if names.as_slice() == modules);
    if let Some(blocks) = layers_to_transform.filter(|_| whole_paths) {
        *blocks = None;
    }
}
