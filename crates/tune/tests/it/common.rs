//! What the tests share: the models and the golden files.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tunebook_models::{Device, Model, Tensor};
use tunebook_tune::peft::{CONFIG_FILE, TENSORS_FILE};
use tunebook_tune::{Adapters, Batch, Example, Lora, TokenizedExample};

/// `tests/golden/…` of the repository.
pub(crate) fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// The 2-layer Llama of `tests/golden/lora_tiny`.
pub(crate) fn tiny_path() -> String {
    golden("lora_tiny/model").to_str().unwrap().to_owned()
}

pub(crate) fn tiny() -> Model {
    Model::load(tiny_path(), &Device::Cpu).unwrap()
}

/// The course's base model. `cargo xtask test` fetches it.
pub(crate) fn smollm() -> Model {
    Model::load("SmolLM2-135M-Instruct", &Device::Cpu).unwrap()
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

#[derive(Deserialize)]
pub(crate) struct Row {
    pub ids: Vec<u32>,
    pub labels: Vec<i64>,
}

#[derive(Deserialize)]
pub(crate) struct GoldenStep {
    pub loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
}

pub(crate) fn examples(pairs: &[(String, String)]) -> Vec<Example> {
    pairs.iter().map(|(prompt, completion)| Example::new(prompt, completion)).collect()
}

/// A batch of some rows.
pub(crate) fn batch(rows: &[Row], indices: &[usize]) -> Batch {
    let rows: Vec<_> = indices
        .iter()
        .map(|&row| TokenizedExample {
            row,
            ids: rows[row].ids.clone(),
            labels: rows[row].labels.clone(),
        })
        .collect();
    Batch::new(&rows.iter().collect::<Vec<_>>(), 0, &Device::Cpu).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest value expected.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference =
        found.iter().zip(expected).fold(0f32, |largest, (a, b)| largest.max((a - b).abs()));
    f64::from(difference / largest)
}

/// A logits row for a few ids.
pub(crate) fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    values(&model.forward(&Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()).unwrap())
}

/// A folder with a copy of a golden adapter.
pub(crate) fn copy_of_adapter(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in [CONFIG_FILE, TENSORS_FILE] {
        std::fs::copy(golden("strategies").join(case).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// Loads it as `a`; the error as a text.
pub(crate) fn load_copy(model: &Model, dir: &Path) -> Result<(), String> {
    model.load_adapter(dir, "a").map(|_| ()).map_err(|error| error.to_string())
}

/// A LoRA on all linear layers that has an effect from the start.
pub(crate) fn random_lora() -> Lora {
    Lora {
        r: 3,
        lora_alpha: 5.0,
        target_modules: "all-linear".into(),
        init_lora_weights: false,
        ..Default::default()
    }
}
