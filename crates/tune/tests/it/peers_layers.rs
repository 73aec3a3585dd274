//! Soft prompts, prefixes and bottleneck adapters exchanged with Python's PEFT and AdapterHub's
//! package themselves. Runs where `TUNEBOOK_PEERS` and `TUNEBOOK_ADAPTERHUB` name Python
//! environments that have them, and says so where they do not.

use std::path::PathBuf;

use tunebook_models::Model;
use tunebook_testing::Python;
use tunebook_tune::{
    AdapterConfig, Adapters, Bottleneck, Example, PrefixTuning, PromptTuning, Trainer, TrainingArgs,
};

use crate::common::*;

const IDS: [u32; 12] = [1, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 250];

fn peft() -> Option<Python> {
    Python::peers("torch, transformers, peft")
}

fn adapterhub() -> Option<Python> {
    Python::adapterhub("torch, transformers, adapters")
}

/// The lines that a script of `tests/peers` prints.
fn run(python: &Python, script: &str, arguments: &[&str]) -> Vec<String> {
    python.run(script, arguments).lines().map(str::to_owned).collect()
}

fn parse(line: &str) -> Vec<f32> {
    serde_json::from_str(line).unwrap()
}

fn ids() -> String {
    serde_json::to_string(&IDS).unwrap()
}

/// A trained adapter of ours, saved: its folder's guard, the folder, and its logits.
fn ours(
    model: &Model,
    config: impl Into<AdapterConfig>,
    name: &str,
) -> (tempfile::TempDir, PathBuf, Vec<f32>) {
    let base = logits(model, &IDS);
    model.add_adapter(name, config).unwrap();
    let train = [Example::new("a question", "an answer"), Example::new("another", "one more")];
    let args = TrainingArgs {
        max_steps: Some(3),
        warmup_steps: Some(0),
        learning_rate: 5e-2,
        ..Default::default()
    };
    Trainer::new(model, &args).train(&train).unwrap();
    let expected = logits(model, &IDS);
    assert!(relative_error(&expected, &base) > 1e-3, "the adapter does something");
    let dir = tempfile::tempdir().unwrap();
    let folder = model.save_adapter(name, dir.path()).unwrap();
    model.delete_adapter(name).unwrap();
    (dir, folder, expected)
}

#[test]
fn our_virtual_tokens_give_our_logits_in_peft() {
    let Some(python) = peft() else { return };
    let (model, path) = (tiny(), tiny_path());
    let falcon = golden("logits/falcon-7b");
    let falcon = Model::load(&falcon, &tunebook_models::Device::Cpu).unwrap();
    let text = PromptTuning {
        num_virtual_tokens: 4,
        prompt_tuning_init: tunebook_tune::PromptTuningInit::Text,
        prompt_tuning_init_text: Some("answer in rhyme".to_owned()),
        ..Default::default()
    };
    let prefix = PrefixTuning { num_virtual_tokens: 3, ..Default::default() };
    let projected = PrefixTuning { prefix_projection: true, ..prefix.clone() };
    let cases: [(&Model, &str, AdapterConfig); 4] = [
        (&model, &path, text.into()),
        (&model, &path, prefix.clone().into()),
        (&model, &path, projected.into()),
        // One key for all queries, which PEFT knows from the file alone.
        (&falcon, falcon.path().to_str().unwrap(), prefix.into()),
    ];
    for (model, path, config) in cases {
        let said = config.to_string();
        let falcon = path != tiny_path();
        let (_dir, folder, expected) =
            if falcon { random(model, config) } else { ours(model, config, "support") };
        let lines = match falcon {
            false => run(
                &python,
                "peft_virtual_tokens.py",
                &["logits", path, folder.to_str().unwrap(), &ids()],
            ),
            true => run(
                &python,
                "peft_virtual_tokens.py",
                &["logits", path, folder.to_str().unwrap(), "[3, 5, 9, 11]"],
            ),
        };
        let error = relative_error(&parse(lines.last().unwrap()), &expected);
        eprintln!("{said}: largest relative difference of a logit: {error:.1e}");
        assert!(error < 1e-4, "{said}: logits differ by {error}");
    }
}

/// The same without training, for a model whose vocabulary is too small for texts.
fn random(model: &Model, config: AdapterConfig) -> (tempfile::TempDir, PathBuf, Vec<f32>) {
    model.add_adapter("support", config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = model.save_adapter("support", dir.path()).unwrap();
    (dir, folder, logits(model, &[3, 5, 9, 11]))
}

#[test]
fn our_prompt_gives_our_logits_in_peft_on_the_base_model() {
    let Some(python) = peft() else { return };
    let model = smollm();
    let path = model.path().to_str().unwrap().to_owned();
    let configs: [AdapterConfig; 2] = [
        PromptTuning { num_virtual_tokens: 8, ..Default::default() }.into(),
        PrefixTuning { num_virtual_tokens: 8, ..Default::default() }.into(),
    ];
    for config in configs {
        let said = config.to_string();
        let (_dir, folder, expected) = ours(&model, config, "support");
        let lines = run(
            &python,
            "peft_virtual_tokens.py",
            &["logits", &path, folder.to_str().unwrap(), &ids()],
        );
        let error = relative_error(&parse(lines.last().unwrap()), &expected);
        eprintln!("{said}: largest relative difference of a logit: {error:.1e}");
        assert!(error < 1e-3, "{said}: logits differ by {error}");
    }
}

#[test]
fn pefts_virtual_tokens_give_its_logits_here() {
    let Some(python) = peft() else { return };
    for kind in ["prompt", "prefix", "prefix-projection"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        let lines =
            run(&python, "peft_virtual_tokens.py", &["save", &tiny_path(), folder, kind, &ids()]);
        let model = tiny();
        let info = model.load_adapter(folder, "default").unwrap();
        assert_eq!(
            info.warnings.iter().any(|warning| warning.contains("projection")),
            kind == "prefix-projection"
        );
        let error = relative_error(&logits(&model, &IDS), &parse(lines.last().unwrap()));
        eprintln!("{kind}: largest relative difference of a logit: {error:.1e}");
        assert!(error < 1e-4, "{kind}: logits differ by {error}");
    }
}

#[test]
fn our_bottlenecks_give_our_logits_in_adapterhub() {
    let Some(python) = adapterhub() else { return };
    let model = tiny();
    for config in [
        Bottleneck { reduction_factor: 8.0.into(), ..Bottleneck::seq_bn() },
        Bottleneck {
            reduction_factor: 4.0.into(),
            leave_out: vec![0],
            ..Bottleneck::double_seq_bn()
        },
        Bottleneck::par_bn(),
        Bottleneck {
            mh_adapter: true,
            non_linearity: "gelu".to_owned(),
            scaling: 0.7,
            ..Bottleneck::par_bn()
        },
    ] {
        for name in ["default", "poet"] {
            let (_dir, folder, expected) = ours(&model, &config, name);
            let lines = run(
                &python,
                "adapterhub_adapter.py",
                &["logits", &tiny_path(), folder.to_str().unwrap(), &ids()],
            );
            assert_eq!(lines[lines.len() - 2], name);
            let error = relative_error(&parse(lines.last().unwrap()), &expected);
            eprintln!("{name}: largest relative difference of a logit: {error:.1e}");
            assert!(error < 1e-4, "{config:?}: logits differ by {error}");
        }
    }
}

#[test]
fn adapterhubs_bottlenecks_give_its_logits_here() {
    let Some(python) = adapterhub() else { return };
    for kind in ["seq_bn", "double_seq_bn", "par_bn"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("poet");
        let lines = run(
            &python,
            "adapterhub_adapter.py",
            &["save", &tiny_path(), folder.to_str().unwrap(), "poet", kind, &ids()],
        );
        let model = tiny();
        model.load_adapter(dir.path(), "poet").unwrap();
        let error = relative_error(&logits(&model, &IDS), &parse(lines.last().unwrap()));
        eprintln!("{kind}: largest relative difference of a logit: {error:.1e}");
        assert!(error < 1e-4, "{kind}: logits differ by {error}");
    }
}
