//! LoRA over a base that is kept quantised: the same run as over the dequantised base.

use std::path::Path;

use tunebook_models::{Device, Matrix, Model, Quantization};
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{
    Adapters, Example, Full, FullTuning, Lora, LoraInit, Run, SaveStrategy, Trainer, TrainingArgs,
};

use crate::common::*;

fn tiny_nf4() -> Model {
    Model::load_quantized(tiny_path(), Quantization::Nf4, &Device::Cpu).unwrap()
}

/// The same values as plain f32, by way of a file.
fn dequantised(model: &Model, dir: &Path) -> Model {
    let folder = model.save_pretrained(dir.join("wide")).unwrap();
    let wide = Model::load(&folder, &Device::Cpu).unwrap();
    assert!(model.is_quantized() && !wide.is_quantized());
    wide
}

fn lora(use_dora: bool) -> Lora {
    Lora {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.1,
        use_dora,
        target_modules: ["q_proj", "v_proj", "down_proj"].into(),
        ..Default::default()
    }
}

fn rows() -> Vec<Example> {
    (0..12).map(|i| Example::new(format!("abc {i}"), format!("d{} e {i}", i * 7))).collect()
}

fn train(model: &Model, lora: &Lora, args: &TrainingArgs) -> Run {
    model.add_adapter("default", lora).unwrap();
    Trainer::new(model, args).train((&rows(), &rows()[..4])).unwrap()
}

fn args() -> TrainingArgs {
    TrainingArgs { max_steps: Some(20), batch_size: 4, learning_rate: 1e-2, ..Default::default() }
}

#[test]
fn a_quantised_base_trains_as_the_dequantised_one() {
    for use_dora in [false, true] {
        for checkpointed_blocks in [None, Some(1)] {
            let dir = tempfile::tempdir().unwrap();
            let quantised = tiny_nf4();
            let wide = dequantised(&quantised, dir.path());
            let args = TrainingArgs { checkpointed_blocks, ..args() };
            let runs = [&quantised, &wide].map(|model| train(model, &lora(use_dora), &args));
            assert!(runs[0].steps[19].loss < 0.9 * runs[0].steps[0].loss, "it learns");
            for (found, expected) in runs[0].steps.iter().zip(&runs[1].steps) {
                let error = (found.loss / expected.loss - 1.0).abs();
                assert!(error < 1e-5, "step {}: {} != {}", found.step, found.loss, expected.loss);
            }
            let files = [&quantised, &wide].map(|model| {
                let name = if model.is_quantized() { "q" } else { "w" };
                let folder = dir.path().join(name);
                AdapterFiles::read(model.save_adapter("default", &folder).unwrap()).unwrap()
            });
            for (path, expected) in &files[1].tensors {
                let found = &files[0].tensors[path];
                assert!(relative_error(&found.values, &expected.values) < 1e-4, "{path}");
            }
            // Inference, and merged: then the layer is a copy in f32, and the base is untouched.
            let ids = [5u32, 9, 2, 7];
            let active = logits(&quantised, &ids);
            assert!(relative_error(&active, &logits(&wide, &ids)) < 1e-4);
            quantised.merge_adapter("default").unwrap();
            assert!(relative_error(&logits(&quantised, &ids), &active) < 1e-4);
            quantised.disable_adapters();
            wide.disable_adapters();
            assert!(relative_error(&logits(&quantised, &ids), &logits(&wide, &ids)) < 1e-5);
        }
    }
}

#[test]
fn a_checkpoint_over_a_quantised_base_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let args = TrainingArgs {
        output_dir: Some(dir.path().to_owned()),
        save_strategy: SaveStrategy::Steps(7),
        ..args()
    };
    let whole = train(&tiny_nf4(), &lora(false), &args);
    let from = Run::load(dir.path().join("checkpoint-7")).unwrap();
    let model = tiny_nf4();
    model.add_adapter("default", lora(false)).unwrap();
    let resumed = Trainer::new(&model, &args).resume(&from, (&rows(), &rows()[..4])).unwrap();
    let losses = |run: &Run| run.steps.iter().map(|step| step.loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(&resumed), losses(&whole));
}

#[test]
fn what_a_quantised_base_cannot_do_is_refused() {
    let model = tiny_nf4();
    let full = model.unfreeze(&Full::default()).unwrap_err().to_string();
    assert!(
        full.contains("kept in quantised blocks") && full.contains("train an adapter"),
        "{full}"
    );
    // Norms and biases are plain.
    let config = Full { target_modules: Some(["model.norm"].into()), ..Default::default() };
    model.unfreeze(&config).unwrap();
    model.freeze();
    for lora_init in [LoraInit::Pissa, LoraInit::Olora] {
        let config = Lora { lora_init, ..lora(false) };
        let error = model.add_adapter("x", &config).unwrap_err().to_string();
        assert!(error.contains("NF4") && error.contains("Kaiming"), "{error}");
    }
    let plain = Model::load_quantized(tiny_path(), Quantization::Stored, &Device::Cpu).map(|_| ());
    let error = plain.unwrap_err().to_string();
    assert!(error.contains("plain f32") && error.contains("Quantization::Nf4"), "{error}");
}

/// The blocks of the GGUF file itself, its rows of q and k permuted as they are.
#[test]
fn the_base_model_in_its_own_blocks_is_the_dequantised_one() {
    let quantised =
        Model::load_quantized("SmolLM2-135M-Instruct", Quantization::Stored, &Device::Cpu).unwrap();
    let wide = smollm();
    assert_eq!(quantised.parameter_count(), wide.parameter_count());
    let part = quantised.memory_bytes() as f64 / wide.memory_bytes() as f64;
    assert!(part < 0.2, "{part}");
    for (quantised, wide) in quantised.weights().iter().zip(wide.weights()) {
        let kept = matches!(quantised.matrix(), Matrix::Quantized(_));
        assert_eq!(kept, wide.matrix().dims().len() == 2, "{}", wide.name());
        assert_eq!(values(&quantised.get()), values(&wide.get()), "{}", wide.name());
    }
    let ids: Vec<u32> = (0..40).map(|i| 300 + 911 * i).collect();
    let error = relative_error(&logits(&quantised, &ids), &logits(&wide, &ids));
    assert!(error < 1e-5, "logits differ by {error}");

    // And it trains as that does.
    let config = Lora { r: 4, target_modules: ["q_proj", "v_proj"].into(), ..Default::default() };
    let args = TrainingArgs { max_steps: Some(3), batch_size: 2, ..args() };
    let runs = [&quantised, &wide].map(|model| train(model, &config, &args));
    for (found, expected) in runs[0].steps.iter().zip(&runs[1].steps) {
        assert!(
            (found.loss / expected.loss - 1.0).abs() < 1e-5,
            "{} != {}",
            found.loss,
            expected.loss
        );
    }
    assert!(format!("{quantised:?}").contains("Q4_1"), "{quantised:?}");
    // What is said and predicted before a run is of the blocks, too.
    let trainer = Trainer::new(&quantised, &args);
    let summary = trainer.summary(&rows()).unwrap();
    assert!(summary.weights_bytes < wide.memory_bytes() / 4, "{summary}");
    assert!(trainer.preflight(&rows()).unwrap().secs > 0.0);
}
