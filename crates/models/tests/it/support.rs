//! What the tests share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tunebook_models::{DEFAULT_MODEL, Device, Gguf, Model, Overlay, Tensor, models_dir};

/// A file under `tests/golden/`.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// The tensors of a golden file.
pub(crate) fn tensors(path: &str) -> HashMap<String, Tensor> {
    let path = golden(path);
    candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A handle on the model with an overlay of its own.
pub(crate) fn overlaid(model: &Model, fill: impl FnOnce(&mut Overlay)) -> Model {
    let mut overlay = Overlay::default();
    fill(&mut overlay);
    model.with_overlay(overlay.into())
}

/// The default model's file.
pub(crate) fn default_file() -> PathBuf {
    let folder = models_dir().join(DEFAULT_MODEL);
    let file = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        file.is_file(),
        "{} is missing: `cargo xtask test` fetches it before the tests",
        file.display()
    );
    file
}

pub(crate) fn default_gguf() -> Gguf {
    Gguf::open(default_file()).unwrap()
}

/// The largest difference of a row, relative to the row's largest reference value.
pub(crate) fn relative_error(ours: &[f32], reference: &[f32], scale: f32) -> f32 {
    assert_eq!(ours.len(), reference.len());
    assert!(ours.iter().all(|x| x.is_finite()), "not finite");
    ours.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}
