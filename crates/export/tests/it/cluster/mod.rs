//! Recipes for other engines.

mod axolotl;
mod files;
mod hosted;
mod imported;
mod plan;
mod trl;
mod unmapped;

use std::path::{Path, PathBuf};

use serde_json::json;
use tunebook_export::cluster::{self, ClusterExport, Engine, ExportOptions};
use tunebook_export::folder;
use tunebook_runs::{DataRecipe, ModelRecipe, Recipe, StrategyRecipe};
use tunebook_tune::{EvalStrategy, Lora, LrScheduler, TrainingArgs};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// The tiny Llama with a context of 64 tokens, one for each byte.
fn tiny() -> String {
    std::fs::canonicalize(golden("lora_tiny/model")).unwrap().to_str().unwrap().to_owned()
}

/// Thirteen short rows, one of them a conversation with a turn that is not trained on, in a folder.
fn rows(folder: &Path) -> String {
    let mut lines: Vec<String> = (0..12)
        .map(|i| {
            let turn = |role, content| json!({ "role": role, "content": content });
            let (asked, answer) = (format!("what is {i}?"), format!("it is {}", i * i));
            json!({ "messages": [turn("user", asked), turn("assistant", answer)] }).to_string()
        })
        .collect();
    lines.push(
        concat!(
            r#"{"messages": [{"role": "user", "content": "a"}, "#,
            r#"{"role": "assistant", "content": "b", "weight": 0}, "#,
            r#"{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#
        )
        .to_owned(),
    );
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A run in float32 without anything random: steps of 4 of 13 rows, so that the last step of each
/// epoch has one.
fn recipe(folder: &Path) -> Recipe {
    let mut recipe = recipe_of(&rows(folder));
    recipe.data.validation = Some(tunebook_data::Pipeline::new(
        &recipe.data.path,
        &tunebook_data::ReadOptions::default(),
    ));
    recipe
}

fn recipe_of(data: &str) -> Recipe {
    let mut recipe = Recipe {
        version: 1,
        name: Some("squares".to_owned()),
        data: DataRecipe::new(data),
        model: ModelRecipe::new(&tiny()),
        strategy: StrategyRecipe::new(Lora {
            r: 4,
            lora_alpha: 8.0,
            target_modules: "all-linear".into(),
            ..Default::default()
        }),
        training: TrainingArgs {
            epochs: 3,
            batch_size: 2,
            gradient_accumulation_steps: 2,
            learning_rate: 5e-3,
            lr_scheduler: LrScheduler::Linear,
            warmup_steps: Some(2),
            eval_strategy: EvalStrategy::Steps(4),
            ..Default::default()
        },
    };
    recipe.strategy.adapter_name = "squares".to_owned();
    recipe
}

fn export(recipe: &Recipe, options: &ExportOptions) -> ClusterExport {
    cluster::export(recipe, options).unwrap_or_else(|error| panic!("{error}"))
}

fn text(export: &ClusterExport, file: &str) -> String {
    String::from_utf8(export.files[file].clone()).unwrap()
}

/// Writes the files of an export into a folder of their own.
fn written(recipe: &Recipe, options: &ExportOptions, folder: &Path) -> PathBuf {
    let out = folder.join("cluster");
    folder::write_files(&export(recipe, options).files, "recipe.yaml", &out).unwrap();
    out
}

/// Where an engine writes to, in the folder of an export.
fn results(folder: &Path) -> PathBuf {
    let manifest = std::fs::read(folder.join("tunebook.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    folder.join("out").join(manifest["id"].as_str().unwrap())
}

fn trl() -> ExportOptions {
    ExportOptions::new(Engine::Trl)
}

fn axolotl() -> ExportOptions {
    ExportOptions::new(Engine::Axolotl)
}
