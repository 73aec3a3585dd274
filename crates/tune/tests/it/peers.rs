//! Adapters exchanged with Python PEFT itself. Runs where `TUNEBOOK_PEERS` names a Python
//! environment that has torch, transformers and peft (`tests/peers/requirements.txt`), and says so
//! where it does not.

use std::ffi::OsStr;

use tunebook_models::{Device, Model};
use tunebook_testing::Python;
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, Bias, Example, Ia3, Lora, LoraInit, Trainer, TrainingArgs,
};

use crate::common::*;

const IDS: [u32; 12] = [1, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 250];

fn python() -> Option<Python> {
    Python::peers("torch, transformers, peft")
}

fn peft<A: AsRef<OsStr>>(python: &Python, arguments: &[A]) -> String {
    python.run("peft_adapter.py", arguments)
}

fn peft_logits(python: &Python, model: &str, adapter: &str) -> Vec<f32> {
    let ids = serde_json::to_string(&IDS).unwrap();
    serde_json::from_str(peft(python, &["logits", model, adapter, &ids]).lines().last().unwrap())
        .unwrap()
}

fn train(model: &Model) {
    let train = [Example::new("a question", "an answer"), Example::new("another", "one more")];
    let args = TrainingArgs {
        max_steps: Some(3),
        warmup_steps: Some(0),
        learning_rate: 5e-3,
        ..Default::default()
    };
    Trainer::new(model, &args).train(&train).unwrap();
}

/// Adapters that were trained and saved here, with the logits that they gave.
#[derive(Default)]
struct Saved {
    dirs: Vec<tempfile::TempDir>,
    arguments: Vec<String>,
    expected: Vec<(String, Vec<f32>)>,
}

impl Saved {
    /// Trains an adapter of this configuration, saves it, and takes it off again.
    fn add(&mut self, model: &Model, path: &str, config: impl Into<AdapterConfig>) {
        let dir = tempfile::tempdir().unwrap();
        let base = logits(model, &IDS);
        let info = model.add_adapter("support", config).unwrap();
        train(model);
        let expected = logits(model, &IDS);
        assert!(relative_error(&expected, &base) > 1e-3, "{info}: does nothing");
        self.save(model, path, "support", &info.to_string(), expected, dir);
        assert_eq!(logits(model, &IDS), base);
    }

    fn save(
        &mut self,
        model: &Model,
        path: &str,
        name: &str,
        said: &str,
        expected: Vec<f32>,
        dir: tempfile::TempDir,
    ) {
        let folder = model.save_adapter(name, dir.path()).unwrap();
        model.delete_adapter(name).unwrap();
        let ids = serde_json::to_string(&IDS).unwrap();
        self.arguments.extend([path.to_owned(), folder.to_str().unwrap().to_owned(), ids]);
        self.expected.push((said.to_owned(), expected));
        self.dirs.push(dir);
    }

    /// One start of Python for all of them.
    fn check_in_peft(self, python: &Python, bound: f64) {
        let arguments: Vec<&str> =
            ["logits"].into_iter().chain(self.arguments.iter().map(String::as_str)).collect();
        let output = peft(python, &arguments);
        let lines: Vec<&str> = output.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(lines.len(), self.expected.len());
        for (line, (said, expected)) in lines.into_iter().zip(&self.expected) {
            let found: Vec<f32> = serde_json::from_str(line).unwrap();
            let error = relative_error(&found, expected);
            eprintln!("{said}\n  largest relative difference of a logit: {error:.1e}");
            assert!(error < bound, "{said}: logits differ by {error}");
        }
    }
}

fn ours_in_peft(python: &Python, model: &Model, path: &str, config: &Lora) {
    let mut saved = Saved::default();
    saved.add(model, path, config);
    saved.check_in_peft(python, 1e-3);
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
    let mut saved = Saved::default();
    saved.add(&tiny(), &tiny_path(), &all_linear);
    let patterns = Lora {
        r: 2,
        lora_alpha: 4.0,
        target_modules: r"model\.layers\.\d\.mlp\.(up|down)_proj".into(),
        rank_pattern: [("up_proj".to_owned(), 5)].into(),
        alpha_pattern: [("model.layers.1.mlp.down_proj".to_owned(), 9.0)].into(),
        ..Default::default()
    };
    saved.add(&tiny(), &tiny_path(), &patterns);
    let dora = Lora { r: 3, lora_alpha: 7.0, use_dora: true, ..Default::default() };
    saved.add(&tiny(), &tiny_path(), &dora);
    for lora_init in [LoraInit::Pissa, LoraInit::Olora] {
        for use_rslora in [false, true] {
            let config =
                Lora { r: 3, lora_alpha: 7.0, lora_init, use_rslora, ..Default::default() };
            saved.add(&tiny(), &tiny_path(), &config);
        }
    }
    saved.check_in_peft(&python, 1e-3);
}

/// The tiny Llama with biases and an output head of its own.
fn biased_path() -> String {
    golden("strategies/biased/model").to_str().unwrap().to_owned()
}

#[test]
fn our_adapters_of_every_type_give_our_logits_in_peft() {
    let Some(python) = python() else { return };
    let biased = Model::load(biased_path(), &Device::Cpu).unwrap();
    let mut saved = Saved::default();
    let mut check = |config: AdapterConfig| saved.add(&biased, &biased_path(), config);
    // Three steps with two allocations: rows are missing from the file.
    let adalora = AdaLora {
        init_r: 5,
        target_r: 2,
        lora_alpha: 3000.0, // the factors begin small
        init_lora_weights: false,
        target_modules: ["q_proj", "o_proj", "up_proj"].into(),
        ..Default::default()
    };
    check(adalora.into());
    check(
        Ia3 {
            target_modules: ["k_proj", "q_proj", "up_proj", "down_proj"].into(),
            ..Default::default()
        }
        .into(),
    );
    check(
        Lora {
            r: 3,
            target_modules: ["k_proj", "up_proj"].into(),
            bias: Bias::All,
            ..Default::default()
        }
        .into(),
    );
    check(
        Lora {
            r: 3,
            target_modules: ["k_proj", "up_proj"].into(),
            bias: Bias::LoraOnly,
            ..Default::default()
        }
        .into(),
    );
    let modules_to_save = vec!["lm_head".to_owned(), "embed_tokens".to_owned(), "norm".to_owned()];
    check(Lora { r: 3, modules_to_save: modules_to_save.clone(), ..Default::default() }.into());
    check(Ia3 { modules_to_save, ..Default::default() }.into());
    let exclude_modules = Some(["model.layers.0.mlp.up_proj"].into());
    check(
        Lora { r: 3, target_modules: "all-linear".into(), exclude_modules, ..Default::default() }
            .into(),
    );
    let tied = Lora {
        r: 3,
        modules_to_save: vec!["embed_tokens".to_owned()],
        ensure_weight_tying: true,
        ..Default::default()
    };
    saved.add(&tiny(), &tiny_path(), &tied);
    saved.check_in_peft(&python, 1e-4);
}

#[test]
fn pefts_adapters_of_every_type_give_their_logits_here() {
    let Some(python) = python() else { return };
    let ids = serde_json::to_string(&IDS).unwrap();
    let model = Model::load(biased_path(), &Device::Cpu).unwrap();
    let base = logits(&model, &IDS);
    let kinds = ["lora", "adalora", "ia3", "bias", "saved"];
    let dir = tempfile::tempdir().unwrap();
    let path = biased_path();
    let arguments =
        [&["save", &path, dir.path().to_str().unwrap(), "default", &ids][..], &kinds].concat();
    let output = peft(&python, &arguments);
    let lines: Vec<&str> = output.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(lines.len(), kinds.len());
    let mut again = Saved::default();
    for (kind, line) in kinds.into_iter().zip(lines) {
        let expected: Vec<f32> = serde_json::from_str(line).unwrap();
        assert!(relative_error(&expected, &base) > 1e-3, "{kind}: the adapter does something");
        let info = model.load_adapter(dir.path().join(kind), "default").unwrap();
        let error = relative_error(&logits(&model, &IDS), &expected);
        eprintln!("{kind}: largest relative difference of a logit {error:.1e}");
        assert!(error < 1e-4, "{kind}: logits differ by {error}");
        assert!(info.warnings.iter().all(|warning| warning.contains("trained on")), "{info}");
        // And back: what is written of it here is the same adapter in PEFT.
        again.save(&model, &path, "default", kind, expected, tempfile::tempdir().unwrap());
        assert_eq!(logits(&model, &IDS), base);
    }
    again.check_in_peft(&python, 1e-4);
}

#[test]
fn pefts_dora_gives_its_logits_here() {
    let Some(python) = python() else { return };
    let adapter = golden("strategies/dora/final");
    let adapter = adapter.to_str().unwrap();
    let expected = peft_logits(&python, &tiny_path(), adapter);
    let model = tiny();
    model.load_adapter(adapter, "default").unwrap();
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
        let info = model.load_adapter(dir, name).unwrap();
        assert_eq!(info.modules.len(), 14);
        let error = relative_error(&logits(&model, &IDS), &expected);
        assert!(error < 1e-4, "logits differ by {error}");
    }
}
