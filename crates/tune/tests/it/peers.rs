//! Adapters exchanged with Python PEFT itself. Runs where `TUNEBOOK_PEERS` names a Python environment that has torch, transformers and
//! peft (`tests/peers/requirements.txt`), and says so where it does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use tunebook_models::Model;
use tunebook_tune::{Adapters, Example, Lora, LoraInit, Trainer, TrainingArgs};

use crate::common::*;

const IDS: [u32; 12] = [1, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 250];

/// The interpreter, or `None` with a line that says why.
fn python() -> Option<PathBuf> {
    let found = std::env::var_os("TUNEBOOK_PEERS").map(|peers| Path::new(&peers).join("bin/python"));
    let Some(python) = found else {
        eprintln!("SKIPPED: TUNEBOOK_PEERS is not set, so there is no Python PEFT to compare with");
        return None;
    };
    let imports = Command::new(&python).args(["-c", "import torch, transformers, peft"]).output();
    match imports {
        Ok(output) if output.status.success() => Some(python),
        _ => {
            eprintln!("SKIPPED: `{}` cannot import torch, transformers and peft", python.display());
            None
        }
    }
}

/// Runs `tests/peers/peft_adapter.py`.
fn peft(python: &Path, arguments: &[&str]) -> String {
    let script = golden("../peers/peft_adapter.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn peft_logits(python: &Path, model: &str, adapter: &str) -> Vec<f32> {
    let ids = serde_json::to_string(&IDS).unwrap();
    serde_json::from_str(peft(python, &["logits", model, adapter, &ids]).lines().last().unwrap()).unwrap()
}

fn train(model: &Model) {
    let train = [Example::new("a question", "an answer"), Example::new("another", "one more")];
    let args =
        TrainingArgs { max_steps: Some(3), warmup_steps: Some(0), learning_rate: 5e-3, ..Default::default() };
    Trainer::new(model, &args).fit(&train, &[]).unwrap();
}

fn ours_in_peft(python: &Path, model: &Model, path: &str, config: &Lora) {
    let dir = tempfile::tempdir().unwrap();
    let base = logits(model, &IDS);
    model.add_adapter("support", config).unwrap();
    train(model);
    let expected = logits(model, &IDS);
    assert!(relative_error(&expected, &base) > 1e-3, "the adapter does something");
    let folder = model.save_adapter("support", dir.path().to_str().unwrap()).unwrap();
    let found = peft_logits(python, path, folder.to_str().unwrap());
    let error = relative_error(&found, &expected);
    eprintln!("largest relative difference of a logit: {error:.1e}");
    assert!(error < 1e-3, "logits differ by {error}");
}

#[test]
fn our_adapter_gives_our_logits_in_peft() {
    let Some(python) = python() else { return };
    let all_linear = Lora {
        r: 3,
        lora_alpha: 7.5,
        target_modules: "all-linear".into(),
        use_rslora: true,
        ..Default::default()
    };
    ours_in_peft(&python, &tiny(), &tiny_path(), &all_linear);
    let patterns = Lora {
        r: 2,
        lora_alpha: 4.0,
        target_modules: r"model\.layers\.\d\.mlp\.(up|down)_proj".into(),
        rank_pattern: [("up_proj".to_owned(), 5)].into(),
        alpha_pattern: [("model.layers.1.mlp.down_proj".to_owned(), 9.0)].into(),
        ..Default::default()
    };
    ours_in_peft(&python, &tiny(), &tiny_path(), &patterns);
    let dora = Lora { r: 3, lora_alpha: 7.0, use_dora: true, ..Default::default() };
    ours_in_peft(&python, &tiny(), &tiny_path(), &dora);
    for lora_init in [LoraInit::Pissa, LoraInit::Olora] {
        for use_rslora in [false, true] {
            let config = Lora { r: 3, lora_alpha: 7.0, lora_init, use_rslora, ..Default::default() };
            ours_in_peft(&python, &tiny(), &tiny_path(), &config);
        }
    }
}

#[test]
fn pefts_dora_gives_its_logits_here() {
    let Some(python) = python() else { return };
    let adapter = golden("strategies/dora/final");
    let adapter = adapter.to_str().unwrap();
    let expected = peft_logits(&python, &tiny_path(), adapter);
    let model = tiny();
    model.load_adapter("default", adapter).unwrap();
    let error = relative_error(&logits(&model, &IDS), &expected);
    eprintln!("largest relative difference of a logit: {error:.1e}");
    assert!(error < 1e-4, "logits differ by {error}");
}

#[test]
fn our_adapter_gives_our_logits_in_peft_on_the_base_model() {
    let Some(python) = python() else { return };
    let model = smollm();
    let path = model.path().to_str().unwrap().to_owned();
    ours_in_peft(&python, &model, &path, &Lora { r: 8, lora_alpha: 16.0, ..Default::default() });
}

#[test]
fn pefts_adapter_gives_its_logits_here() {
    let Some(python) = python() else { return };
    for name in ["default", "poet"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        let ids = serde_json::to_string(&IDS).unwrap();
        let output = peft(&python, &["save", &tiny_path(), dir, name, &ids]);
        let expected: Vec<f32> = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        let model = tiny();
        let info = model.load_adapter(name, dir).unwrap();
        assert_eq!(info.modules.len(), 14);
        let error = relative_error(&logits(&model, &IDS), &expected);
        assert!(error < 1e-4, "logits differ by {error}");
    }
}
