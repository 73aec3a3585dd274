//! Merged models as files, in our own hands and in transformers'; LoRA as a GGUF adapter in
//! llama.cpp's.

use serde_json::{Value, json};
use tunebook_models::{Device, GenerationConfig, GgufType, Model};
use tunebook_testing::Python;
use tunebook_tune::peft::{AdapterFiles, StoredTensor};
use tunebook_tune::{AdapterConfig, Adapters, Example, Ia3, Lora, LoraInit, Trainer, TrainingArgs};

use crate::common::*;

const IDS: [u32; 12] = [1, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 250];

fn train(model: &Model, learning_rate: f64) {
    let train = [Example::new("a question", "an answer"), Example::new("another", "one more")];
    let args = TrainingArgs {
        max_steps: Some(4),
        warmup_steps: Some(0),
        learning_rate,
        ..Default::default()
    };
    Trainer::new(model, &args).train(&train).unwrap();
}

fn all_linear() -> Lora {
    Lora {
        r: 3,
        lora_alpha: 7.0,
        target_modules: "all-linear".into(),
        rank_pattern: [("up_proj".to_owned(), 5)].into(),
        alpha_pattern: [("v_proj".to_owned(), 11.0)].into(),
        ..Default::default()
    }
}

#[test]
fn a_merged_model_is_saved_as_it_computes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let again = |path: &str| logits(&Model::load(path, &Device::Cpu).unwrap(), &IDS);
    for lora in [
        all_linear(),
        Lora { lora_init: LoraInit::Pissa, ..all_linear() },
        Lora { use_dora: true, ..all_linear() },
    ] {
        let model = tiny();
        let base = logits(&model, &IDS);
        model.add_adapter("support", &lora).unwrap();
        train(&model, 2e-2);
        let trained = logits(&model, &IDS);
        assert!(relative_error(&trained, &base) > 1e-2, "the adapter does something");
        // Beside the base it is not part of the model's file.
        model.save_pretrained(at("beside")).unwrap();
        assert_eq!(again(&at("beside")), base);
        model.merge_adapter("support").unwrap();
        model.save_pretrained(at("merged")).unwrap();
        model.save_gguf(at("merged.gguf"), GgufType::F32).unwrap();
        for path in [at("merged"), at("merged.gguf")] {
            let error = relative_error(&again(&path), &trained);
            assert!(error < 1e-4, "{path}: {error}");
        }
        model.disable_adapters();
        model.save_pretrained(at("off")).unwrap();
        assert_eq!(again(&at("off")), base);
    }
}

#[test]
fn what_a_gguf_adapter_has_no_place_for_is_named() {
    let (model, folder) = (tiny(), tempfile::tempdir().unwrap());
    let path = folder.path().join("adapter.gguf");
    model.add_adapter("dora", &Lora { use_dora: true, ..Default::default() }).unwrap();
    let error = model.save_adapter_gguf("dora", &path).unwrap_err().to_string();
    assert!(
        error.contains("`dora` holds")
            && error.contains("lora_magnitude_vector")
            && error.contains("save_gguf")
            && !path.exists(),
        "{error}"
    );
    assert!(model.save_adapter_gguf("other", &path).unwrap_err().to_string().contains("`other`"));
}

fn compare(answer: &Value, model: &Model, ids: &[u32], bound: f64) -> usize {
    let theirs: Vec<f32> =
        answer["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    let ours = logits(model, ids);
    let error = relative_error(&theirs, &ours[ours.len() - theirs.len()..]);
    let config = GenerationConfig { max_new_tokens: 32, ..Default::default() };
    let ours = model.generate_ids(&[ids.to_vec()], &config).unwrap().remove(0);
    let theirs: Vec<u32> =
        answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    eprintln!("last logits differ by {error:.1e}; {} greedy tokens", ours.len());
    assert!(error < bound, "logits differ by {error}");
    assert_eq!(ours, theirs[..ours.len()]);
    ours.len()
}

/// Merges trained adapters into the model, one after the other, and holds the logits that
/// transformers has of the saved models against ours.
fn merged_in_transformers(
    model: &Model,
    ids: &[u32],
    loras: &[Lora],
    learning_rate: f64,
    bound: f64,
) {
    let Some(python) = Python::peers("transformers") else { return };
    let folder = tempfile::tempdir().unwrap();
    let base = logits(model, ids);
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for (number, lora) in loras.iter().enumerate() {
        let info = model.add_adapter("support", lora).unwrap();
        train(model, learning_rate);
        let trained = logits(model, ids);
        assert!(relative_error(&trained, &base) > 1e-2, "{info}: does nothing");
        model.merge_adapter("support").unwrap();
        let path = folder.path().join(number.to_string());
        model.save_pretrained(&path).unwrap();
        model.delete_adapter("support").unwrap();
        requests.push(json!({ "model": path, "ids": ids, "text": "a question" }));
        expected.push((info.config.to_string(), trained));
    }
    for (answer, (said, expected)) in python.ask("saved_models.py", &requests).iter().zip(&expected)
    {
        let theirs: Vec<f32> = serde_json::from_value(answer["logits"].clone()).unwrap();
        let error = relative_error(&theirs, expected);
        eprintln!("{said}: merged, logits in transformers differ by {error:.1e}");
        assert!(error < bound, "{said}: logits differ by {error}");
        let ids: Vec<u32> = serde_json::from_value(answer["tokens"].clone()).unwrap();
        assert_eq!(ids, model.tokenizer().encode("a question").unwrap());
    }
}

#[test]
fn a_merged_model_gives_our_logits_in_transformers() {
    let loras = [
        all_linear(),
        Lora { lora_init: LoraInit::Pissa, ..all_linear() },
        Lora { use_dora: true, ..all_linear() },
    ];
    merged_in_transformers(&tiny(), &IDS, &loras, 2e-2, 1e-4);
}

#[test]
#[ignore = "writes half a gigabyte"]
fn the_merged_base_model_gives_our_logits_in_transformers() {
    let model = smollm();
    let ids = model.tokenizer().encode("The capital of France is").unwrap();
    merged_in_transformers(
        &model,
        &ids,
        &[Lora { r: 8, lora_alpha: 16.0, ..Default::default() }],
        2e-3,
        1e-3,
    );
}

#[test]
fn our_gguf_adapter_gives_our_logits_in_llama_cpp() {
    let Some(python) = Python::peers("llama_cpp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let base = at("base.gguf");
    tiny().save_gguf(&base, GgufType::F32).unwrap();
    let adapters = [
        all_linear(),
        Lora { use_rslora: true, ..all_linear() },
        Lora { lora_init: LoraInit::Pissa, ..all_linear() },
    ];
    let mut requests = vec![json!({ "model": base, "ids": IDS, "greedy": 32, "context": 64 })];
    let mut models = vec![tiny()];
    for (number, lora) in adapters.into_iter().enumerate() {
        let model = tiny();
        model.add_adapter("support", &lora).unwrap();
        train(&model, 2e-2);
        assert!(relative_error(&logits(&model, &IDS), &logits(&models[0], &IDS)) > 1e-2);
        let path = at(&format!("{number}.gguf"));
        model.save_adapter_gguf("support", &path).unwrap();
        requests.push(
            json!({ "model": base, "adapter": path, "ids": IDS, "greedy": 32, "context": 64 }),
        );
        models.push(model);
    }
    for (model, answer) in models.iter().zip(python.ask("llama_cpp_run.py", &requests)) {
        compare(&answer, model, &IDS, 1e-3);
    }
}

#[test]
fn our_gguf_adapter_gives_our_text_in_llama_cpp_on_the_base_model() {
    let Some(python) = Python::peers("llama_cpp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let model = smollm();
    model.save_gguf(at("base.gguf"), GgufType::F16).unwrap();
    let ids = model.tokenizer().encode("The capital of France is").unwrap();
    let before = logits(&model, &ids);
    let modules = ["q_proj", "k_proj", "v_proj", "down_proj"];
    model
        .add_adapter(
            "support",
            &Lora { r: 8, lora_alpha: 16.0, target_modules: modules.into(), ..Default::default() },
        )
        .unwrap();
    train(&model, 1e-3);
    assert!(relative_error(&logits(&model, &ids), &before) > 1e-3);
    model.save_adapter_gguf("support", at("adapter.gguf")).unwrap();
    let request = json!({ "model": at("base.gguf"), "adapter": at("adapter.gguf"), "ids": ids, "greedy": 32 });
    compare(&python.ask("llama_cpp_run.py", &[request])[0], &model, &ids, 5e-3);
}

/// A model of another family, of the golden files.
fn family(name: &str) -> Model {
    Model::load(golden("logits").join(name), &Device::Cpu).unwrap()
}

const FEW: [u32; 5] = [1, 20, 30, 40, 50];

/// PEFT writes `fan_in_fan_out: true` for every adapter on a `Conv1D`.
#[test]
fn an_adapter_on_gpt2s_turned_weights_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = family("gpt2");
    let lora = Lora { r: 2, target_modules: ["c_attn"].into(), ..Default::default() };
    let base = logits(&model, &FEW);
    model.add_adapter("default", &lora).unwrap();
    train(&model, 2e-2);
    let trained = logits(&model, &FEW);
    assert!(relative_error(&trained, &base) > 1e-3);
    let folder = model.save_adapter("default", dir.path()).unwrap();
    let path = folder.join("adapter_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains("\"fan_in_fan_out\": false"), "{config}");
    std::fs::write(&path, config.replace("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true"))
        .unwrap();
    let model = family("gpt2");
    let info = model.load_adapter(dir.path(), "default").unwrap();
    assert_eq!(info.warnings, [""; 0]);
    assert_eq!(logits(&model, &FEW), trained);
}

/// PEFT writes the embedding table and the output head beside an adapter when the vocabulary was
/// changed, and says nothing of them in the configuration.
#[test]
fn tables_that_only_the_file_names_stand_in_for_the_models() {
    let llama = |tied: bool| if tied { tiny() } else { family("llama-untied") };
    for (tied, config) in [
        (false, AdapterConfig::from(Lora::default())),
        (false, AdapterConfig::from(Ia3::default())),
        (true, AdapterConfig::from(Lora::default())),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = llama(tied);
        let base = logits(&model, &FEW);
        model.add_adapter("default", config).unwrap();
        model.save_adapter("default", dir.path()).unwrap();
        let mut files = AdapterFiles::read(dir.path()).unwrap();
        let table = |name: &str, rows: usize, factor: f32| {
            let weights = model.weights();
            let weight = weights.iter().find(|weight| weight.name() == name).unwrap();
            let width = weight.matrix().dims()[1];
            let values = values(&weight.get().to_dtype(tunebook_models::DType::F32).unwrap());
            let values = values.iter().map(|value| value * factor).take(rows * width).collect();
            StoredTensor { shape: vec![rows, width], values }
        };
        let rows = model.config().vocab_size;
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        files.tensors.insert(embedding.to_owned(), table(embedding, rows, 0.5));
        let of_head = if tied { embedding } else { head };
        files.tensors.insert(head.to_owned(), table(of_head, rows, 0.5));
        files.write(dir.path()).unwrap();
        let other = llama(tied);
        other.load_adapter(dir.path(), "default").unwrap();
        let with = logits(&other, &FEW);
        assert!(relative_error(&with, &base) > 1e-2);
        // Saved again, it is what it was.
        let again = tempfile::tempdir().unwrap();
        other.save_adapter("default", again.path()).unwrap();
        other.disable_adapters();
        assert_eq!(logits(&other, &FEW), base);
        let model = llama(tied);
        model.load_adapter(again.path(), "default").unwrap();
        assert_eq!(logits(&model, &FEW), with);

        files.tensors.insert(embedding.to_owned(), table(embedding, rows - 1, 0.5));
        files.tensors.insert(head.to_owned(), table(of_head, rows - 1, 0.5));
        files.write(dir.path()).unwrap();
        let error = llama(tied).load_adapter(dir.path(), "default").unwrap_err().to_string();
        assert!(
            error.contains("the vocabulary was resized") && error.contains("merge_and_unload"),
            "{error}"
        );
    }
}
