//! Bottleneck adapters against AdapterHub's (`tests/golden/strategies/bottleneck.py`): fifty steps
//! of each kind, the logits of every layout that the package knows; and in the families that it
//! does not know, what must hold anyway.

use std::collections::HashMap;
use std::path::Path;

use tunebook_models::{Device, GenerationConfig, Model, Tensor};
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{
    Adapters, Bottleneck, BottleneckInit, CombinationType, Full, FullTuning, ReductionFactor,
    Stepper, TrainingArgs,
};

use crate::common::*;
use crate::golden_run::*;

const IDS: [u32; 7] = [5, 17, 3, 42, 8, 29, 11];

fn layout(name: &str) -> Model {
    Model::load(golden("logits").join(name), &Device::Cpu).unwrap()
}

fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap()
}

#[test]
fn every_kind_trains_as_in_adapterhub() {
    for case in ["seq-bn", "double-seq-bn", "par-bn", "double-par-bn"] {
        for gradient_checkpointing in [false, true] {
            let model = tiny();
            model.load_adapter(folder(case, "initial"), "default").unwrap();
            train(&model, case, gradient_checkpointing, |_| ());
            check_final(&model, case);
        }
    }
}

#[test]
fn adapterhubs_files_give_its_logits_on_every_layout_that_it_knows() {
    let mut checked = 0;
    for name in ["llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"] {
        let model = layout(name);
        let base = logits(&model, &IDS);
        for kind in ["seq-bn", "double-seq-bn", "par-bn"] {
            let folder = format!("strategies/bottleneck/{name}/{kind}");
            let gemma = name.starts_with("gemma");
            if kind == "seq-bn" && gemma {
                let error = model.add_adapter("a", Bottleneck::seq_bn()).unwrap_err().to_string();
                assert!(
                    error.contains("`Bottleneck.original_ln_before` is true")
                        && error.contains("par_bn"),
                    "{error}"
                );
                continue;
            }
            let expected = tensors(&format!("{folder}.safetensors"));
            let error = relative_error(&base, &values(&expected["base"]));
            assert!(error < 1e-4, "{name}: the base's logits differ by {error}");
            model.load_adapter(golden(&folder), kind).unwrap();
            let error = relative_error(&logits(&model, &IDS), &values(&expected["logits"]));
            assert!(error < 1e-4, "{name}, {kind}: logits differ by {error}");
            // Saved again, it is the same adapter.
            let dir = tempfile::tempdir().unwrap();
            let again = model.save_adapter(kind, dir.path()).unwrap();
            let (found, expected) =
                (AdapterFiles::read(&again).unwrap(), AdapterFiles::read(golden(&folder)).unwrap());
            assert_eq!((found.config, found.tensors), (expected.config, expected.tensors));
            checked += 1;
        }
        model.disable_adapters();
        assert_eq!(logits(&model, &IDS), base, "{name}: the base is as it was, bit for bit");
    }
    assert_eq!(checked, 19);
}

/// In every family: a new adapter that begins at zero changes nothing, trains, generates alone as
/// in a batch, and leaves exactly.
#[test]
fn every_family_trains_and_generates_with_every_kind() {
    for name in [
        "llama3",
        "gemma",
        "gemma2",
        "gemma3",
        "phi3",
        "falcon-7b",
        "falcon-40b",
        "falcon-rw",
        "gpt2",
    ] {
        let model = layout(name);
        let base = logits(&model, &IDS);
        for kind in [Bottleneck::seq_bn(), Bottleneck::double_seq_bn(), Bottleneck::par_bn()] {
            if kind.original_ln_before && ["gemma2", "gemma3"].contains(&name) {
                continue;
            }
            let config = Bottleneck {
                reduction_factor: 4.0.into(),
                init_weights: BottleneckInit::MamAdapter,
                ..kind
            };
            model.add_adapter("new", &config).unwrap();
            assert_eq!(logits(&model, &IDS), base, "{name}: zero is nothing");
            let args =
                TrainingArgs { learning_rate: 2e-2, warmup_steps: Some(0), ..Default::default() };
            let mut stepper = Stepper::new(&model, &args, 8).unwrap();
            let row =
                Row { ids: IDS.to_vec(), labels: IDS.iter().map(|id| i64::from(*id)).collect() };
            let batches = [batch(&[row], &[0])];
            let losses: Vec<f64> = (0..8).map(|_| stepper.step(&batches).unwrap().loss).collect();
            assert!(losses[7] + 0.02 < losses[0], "{name}: {losses:?}");
            let trained = logits(&model, &IDS);
            assert!(relative_error(&trained, &base) > 1e-3);
            let prompts = vec![IDS.to_vec(), IDS[4..].to_vec()];
            let config = GenerationConfig { max_new_tokens: 8, ..Default::default() };
            let together = model.generate_ids(&prompts, &config).unwrap();
            for (prompt, together) in prompts.iter().zip(&together) {
                assert_eq!(
                    &model.generate_ids(std::slice::from_ref(prompt), &config).unwrap()[0],
                    together,
                    "{name}"
                );
            }
            model.disable_adapters();
            assert_eq!(logits(&model, &IDS), base, "{name}");
            model.enable_adapters().unwrap();
            assert_eq!(logits(&model, &IDS), trained, "{name}");
            model.unfreeze(&Full::default()).unwrap();
            assert_eq!(logits(&model, &IDS), base, "{name}: full fine-tuning begins at the base");
            model.freeze();
            model.delete_adapter("new").unwrap();
            assert_eq!(logits(&model, &IDS), base, "{name}");
        }
    }
}

#[test]
fn adapters_of_different_types_are_switched_live() {
    let model = tiny();
    let base = logits(&model, &IDS);
    model.load_adapter(folder("double-seq-bn", "final"), "houlsby").unwrap();
    let houlsby = logits(&model, &IDS);
    model.load_adapter(folder("dora", "final"), "lora").unwrap();
    let lora = logits(&model, &IDS);
    model.load_adapter(folder("par-bn", "final"), "parallel").unwrap();
    let parallel = logits(&model, &IDS);
    for (name, expected) in
        [("houlsby", &houlsby), ("lora", &lora), ("parallel", &parallel), ("houlsby", &houlsby)]
    {
        model.set_adapter(name).unwrap();
        assert_eq!(&logits(&model, &IDS), expected, "{name}");
    }
    model.disable_adapters();
    assert_eq!(logits(&model, &IDS), base);
    let error = model.merge_adapter("houlsby").unwrap_err().to_string();
    assert!(error.contains("houlsby"), "{error}");
    assert_eq!(logits(&model, &IDS), base);
    let error =
        model.add_weighted_adapter(&[("houlsby", 1.0)], "sum", CombinationType::Cat).unwrap_err();
    assert!(error.to_string().contains("houlsby"), "{error}");
}

#[test]
fn dropout_is_on_in_training_alone() {
    let model = tiny();
    let config = Bottleneck {
        dropout: 0.5,
        reduction_factor: 2.0.into(),
        init_weights: BottleneckInit::Bert,
        ..Bottleneck::double_seq_bn()
    };
    model.add_adapter("a", &config).unwrap();
    let before = logits(&model, &IDS);
    assert_eq!(logits(&model, &IDS), before);
    let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
    let row = Row { ids: IDS.to_vec(), labels: IDS.iter().map(|id| i64::from(*id)).collect() };
    let batches = [batch(&[row], &[0])];
    let (with, _) = stepper.gradients(&batches).unwrap();
    let again =
        Stepper::new(&model, &TrainingArgs::default(), 1).unwrap().gradients(&batches).unwrap().0;
    let other = Stepper::new(&model, &TrainingArgs { seed: 7, ..Default::default() }, 1)
        .unwrap()
        .gradients(&batches)
        .unwrap()
        .0;
    assert!(with == again && with != other);
}

#[test]
fn what_cannot_work_is_refused() {
    let model = tiny();
    let refused = |config: Bottleneck| model.add_adapter("a", &config).unwrap_err().to_string();
    let error = refused(Bottleneck { reduction_factor: 33.0.into(), ..Bottleneck::seq_bn() });
    assert!(
        error.contains("33, which leaves no unit of the hidden size 32 after `model.layers.0.mlp`"),
        "{error}"
    );
    let error = refused(Bottleneck { leave_out: vec![0, 2], ..Bottleneck::seq_bn() });
    assert!(error.contains("of which 2 is no block of this model's 2"), "{error}");
    let error = refused(Bottleneck { leave_out: vec![0, 1], ..Bottleneck::seq_bn() });
    assert!(error.contains("every block"), "{error}");
    let factors = ReductionFactor::Blocks([("0".to_owned(), 8.0)].into());
    let error = refused(Bottleneck { reduction_factor: factors, ..Bottleneck::seq_bn() });
    assert!(error.contains("block 1 is not named"), "{error}");
    assert!(model.adapters().is_empty());
    // Another base.
    let error = layout("llama3")
        .load_adapter(golden("strategies/bottleneck/gpt2/seq-bn"), "a")
        .unwrap_err();
    assert!(
        error.to_string().contains("adapter.safetensors")
            && error.to_string().contains("output_adapters"),
        "{error}"
    );
    // Other units than the configuration says.
    let dir = tempfile::tempdir().unwrap();
    let from = folder("par-bn", "final");
    std::fs::copy(
        Path::new(&from).join("adapter.safetensors"),
        dir.path().join("adapter.safetensors"),
    )
    .unwrap();
    let config = std::fs::read_to_string(Path::new(&from).join("adapter_config.json")).unwrap();
    let config = config.replace("\"reduction_factor\": 2,", "\"reduction_factor\": 4,");
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let error = model.load_adapter(dir.path(), "a").unwrap_err().to_string();
    assert!(
        error.contains("[16], expected [8]") && error.contains("another base (lora_tiny/model)"),
        "{error}"
    );
    // A pickle.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        Path::new(&folder("seq-bn", "final")).join("adapter_config.json"),
        dir.path().join("adapter_config.json"),
    )
    .unwrap();
    std::fs::write(dir.path().join("pytorch_adapter.bin"), b"PK").unwrap();
    let error = model.load_adapter(dir.path(), "a").unwrap_err().to_string();
    assert!(error.contains("pytorch_adapter.bin") && error.contains("pickle"), "{error}");
}

/// A run that is stopped and resumed is the run that was not, packed rows, checkpointed blocks and
/// early stopping included.
#[test]
fn a_run_is_resumed_exactly() {
    let config =
        Bottleneck { reduction_factor: 4.0.into(), dropout: 0.1, ..Bottleneck::double_seq_bn() };
    resumes_exactly(|model| drop(model.add_adapter("a", &config).unwrap()), true);
}
