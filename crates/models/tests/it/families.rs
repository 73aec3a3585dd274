//! Every family and layout against transformers: two-layer models with random weights
//! (`tests/golden/logits/families.py`).

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Var;
use proptest::strategy::Strategy;
use tunebook_models::{DType, Device, GenerationConfig, Linear, Mode, Model, Pass, Tensor};
use tunebook_ops as ops;

use crate::support::{golden, overlaid, relative_error, tensors};

/// The folder of each, and the names of its projections in block 0.
pub(crate) const FAMILIES: &[(&str, &[&str])] = &[
    ("llama3", LLAMA),
    ("llama-linear", LLAMA),
    ("llama-dynamic", LLAMA),
    ("mistral", LLAMA),
    ("qwen2", LLAMA),
    ("qwen3", LLAMA),
    ("smollm3", LLAMA),
    ("gemma", LLAMA),
    ("gemma2", LLAMA),
    ("gemma3", LLAMA),
    ("phi3", PHI3),
    ("phi3-longrope", PHI3),
    ("falcon-7b", FALCON),
    ("falcon-40b", FALCON),
    ("falcon-rw", FALCON),
    ("gpt2", &["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
];
const LLAMA: &[&str] = &[
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
const PHI3: &[&str] =
    &["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"];
const FALCON: &[&str] = &[
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
];

/// Runs a check on every family and says which ones fail, all of them.
fn each(check: impl Fn(&str, &Model, &HashMap<String, Tensor>) -> Result<(), String>) {
    let mut failed = Vec::new();
    for (name, _) in FAMILIES {
        let expected = tensors(&format!("logits/{name}/expected.safetensors"));
        if let Err(problem) = check(name, &load(name), &expected) {
            failed.push(format!("{name}: {problem}"));
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

pub(crate) fn load(name: &str) -> Model {
    Model::load(golden("logits").join(name), &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest reference value.
fn error(ours: &Tensor, reference: &Tensor) -> f32 {
    assert_eq!(ours.dims(), reference.dims());
    let reference = flat(reference);
    relative_error(&flat(ours), &reference, reference.iter().fold(1e-12, |max, x| max.max(x.abs())))
}

fn lengths(expected: &HashMap<String, Tensor>) -> Vec<usize> {
    expected["lengths"].to_vec1::<i64>().unwrap().into_iter().map(|n| n as usize).collect()
}

fn prompts(expected: &HashMap<String, Tensor>) -> Vec<Vec<u32>> {
    let ids = expected["ids"].to_vec2::<u32>().unwrap();
    ids.iter().zip(lengths(expected)).map(|(ids, n)| ids[..n].to_vec()).collect()
}

/// The largest error of a row's logits; what stands at the padding is nobody's concern.
fn logits_error(model: &Model, expected: &HashMap<String, Tensor>) -> f32 {
    let logits = model.forward(&expected["ids"]).unwrap();
    let row_of = |x: &Tensor, row: usize, length| x.get(row).unwrap().narrow(0, 0, length).unwrap();
    lengths(expected)
        .into_iter()
        .enumerate()
        .map(|(row, n)| error(&row_of(&logits, row, n), &row_of(&expected["logits"], row, n)))
        .fold(0.0, f32::max)
}

#[test]
fn logits_are_transformers() {
    each(|_, model, expected| {
        let error = logits_error(model, expected);
        if error < 1e-4 { Ok(()) } else { Err(format!("logits off by {error}")) }
    });
}

#[test]
fn gradients_of_every_parameter_are_transformers() {
    each(|_, model, expected| {
        let mut variables = Vec::new();
        let trained = overlaid(model, |overlay| {
            for weight in model.weights() {
                let var = Var::from_tensor(&weight.get()).unwrap();
                overlay.put_weight(&weight, var.clone()).unwrap();
                variables.push((weight.name().to_owned(), var));
            }
        });
        let named = expected.keys().filter(|key| key.starts_with("grad.")).count();
        assert_eq!(variables.len(), named, "the same parameters");
        let ids = &expected["ids"];
        let (b, t) = ids.dims2().unwrap();
        let snapshot = trained.snapshot();
        let positions = model.positions(b, t, &snapshot).unwrap();
        let pass = Pass::new(&snapshot, &positions)
            .in_mode(Mode { gradients: true, ..Default::default() });
        let mut x = model.embed(ids, &pass).unwrap();
        for block in 0..model.num_blocks() {
            x = model.block_forward(block, &x, &pass).unwrap();
        }
        let hidden = model.final_norm(&x, &pass).unwrap().flatten(0, 1).unwrap();
        // Position i is labelled with the token that follows it.
        let labels = expected["labels"].to_vec2::<i64>().unwrap();
        let labels: Vec<i64> =
            labels.iter().flat_map(|row| row[1..].iter().copied().chain([ops::IGNORE])).collect();
        let (sum, count) = model.cross_entropy(&hidden, &labels, &pass).unwrap();
        let loss = (sum / count as f64).unwrap();
        let reference = expected["loss"].to_scalar::<f32>().unwrap();
        let off = (loss.to_scalar::<f32>().unwrap() / reference - 1.0).abs();
        if off > 1e-5 {
            return Err(format!("loss off by {off}"));
        }
        let store = loss.backward().unwrap();
        for (name, variable) in variables {
            let Some(gradient) = store.get(&variable) else {
                return Err(format!("{name}: no gradient"));
            };
            let reference = &expected[&format!("grad.{name}")];
            // Conv1D's weights lie transposed in Hugging Face's files.
            let turned =
                name.ends_with(".weight") && (name.contains(".c_") || name.contains(".attn.c"));
            let gradient = if turned { gradient.t().unwrap() } else { gradient.clone() };
            let error = error(&gradient, reference);
            if error > 1e-3 {
                return Err(format!("gradient of {name} off by {error}"));
            }
        }
        Ok(())
    });
}

#[test]
fn greedy_text_is_transformers_alone_and_in_a_padded_batch() {
    each(|_, model, expected| {
        let config = GenerationConfig { max_new_tokens: 64, ..Default::default() };
        let prompts = prompts(expected);
        let together = model.generate_ids(&prompts, &config).unwrap();
        for (row, together) in together.iter().enumerate() {
            let reference = expected[&format!("greedy.{row}")].to_vec1::<u32>().unwrap();
            assert_eq!(reference.len(), 64);
            let alone = model.generate_ids(&prompts[row..=row], &config).unwrap();
            if alone[0] != reference {
                let at = alone[0].iter().zip(&reference).take_while(|(a, b)| a == b).count();
                return Err(format!("row {row} alone differs at token {at} of {}", alone[0].len()));
            }
            if *together != reference {
                return Err(format!("row {row} differs in a batch"));
            }
        }
        Ok(())
    });
}

#[test]
fn projections_are_named_as_in_hugging_face_and_replaceable() {
    for (name, projections) in FAMILIES {
        let (model, expected) =
            (load(name), tensors(&format!("logits/{name}/expected.safetensors")));
        let slots = model.slots();
        let prefix = slots[0].path().split_once(".0.").unwrap().0.to_owned();
        let found: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
        let wanted: Vec<String> = (0..2)
            .flat_map(|block| {
                let prefix = &prefix;
                projections.iter().map(move |module| format!("{prefix}.{block}.{module}"))
            })
            .collect();
        assert_eq!(found, wanted, "{name}");
        // Each one is in use: without it the logits change, and they come back.
        for slot in &slots {
            let zero = slot.base().bias().map(|bias| bias.zeros_like().unwrap());
            let weight =
                tunebook_models::Projection::weight(slot.base().as_ref()).zeros_like().unwrap();
            let other = overlaid(&model, |overlay| {
                overlay.put_projection(slot, Arc::new(Linear::new(weight, zero))).unwrap();
            });
            assert!(logits_error(&other, &expected) > 1e-3, "{name}: {} is not used", slot.path());
        }
        assert!(logits_error(&model, &expected) < 1e-4);
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    each(|name, model, expected| {
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let again = Model::load(folder.path(), &Device::Cpu).unwrap();
        if again.config() != model.config() {
            return Err(format!("{:?}\nbecame\n{:?}", model.config(), again.config()));
        }
        let (ours, theirs) = (again.forward(&expected["ids"]), model.forward(&expected["ids"]));
        if error(&ours.unwrap(), &theirs.unwrap()) > 0.0 {
            return Err(format!("other logits after saving {name}"));
        }
        Ok(())
    });
}

#[test]
fn shards_and_their_index_are_the_same_model() {
    let (model, expected) = (load("llama3"), tensors("logits/llama3/expected.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let files = || {
        let names = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("model")).collect();
        names.sort();
        names
    };
    let limit = model.memory_bytes() / 4;
    model.save_pretrained_sharded(path, limit).unwrap();
    let shards = files();
    assert!(
        shards.len() > 3 && shards.last().unwrap() == "model.safetensors.index.json",
        "{shards:?}"
    );
    for shard in &shards[..shards.len() - 1] {
        let bytes = std::fs::metadata(folder.path().join(shard)).unwrap().len();
        assert!(bytes < limit + 4000, "{shard} has {bytes} bytes");
    }
    let again = Model::load(path, &Device::Cpu).unwrap();
    assert!(logits_error(&again, &expected) < 1e-4);
    // What was there before does not stay beside another model.
    model.save_pretrained_sharded(path, model.memory_bytes() / 2).unwrap();
    assert!(files().len() < shards.len());
    assert!(logits_error(&Model::load(path, &Device::Cpu).unwrap(), &expected) < 1e-4);
    model.save_pretrained(path).unwrap();
    assert_eq!(files(), ["model.safetensors"]);
    assert!(logits_error(&Model::load(path, &Device::Cpu).unwrap(), &expected) < 1e-4);
    let error = model.save_pretrained_sharded(path, 0).unwrap_err().to_string();
    assert!(error.contains("max_shard_bytes"), "{error}");
}

#[test]
fn a_folder_with_a_model_of_others_is_refused_and_kept() {
    let model = load("qwen3");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let names = || {
        let names = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    for (file, text) in [
        ("config.json", r#"{"model_type": "qwen3", "transformers_version": "5.0.0"}"#),
        ("config.json", "no model's"),
        ("model.safetensors", "weights"),
        ("model-00001-of-00002.safetensors", "weights"),
        ("model.safetensors.index.json", r#"{"metadata": {}, "weight_map": {}}"#),
        ("tokenizer.json", "{}"),
    ] {
        std::fs::write(path.join(file), text).unwrap();
        let error = model.save_pretrained(path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("holds `{file}`, which tunebook did not write")),
            "{error}"
        );
        assert_eq!(names(), [file]);
        assert_eq!(std::fs::read_to_string(path.join(file)).unwrap(), text);
        std::fs::remove_file(path.join(file)).unwrap();
    }
    // Other files stay, whatever they are called, beside one model and the next.
    let own = ["model-of-mine.safetensors", "model-backup.safetensors", "notes.txt"];
    own.iter().for_each(|file| std::fs::write(path.join(file), "mine").unwrap());
    model.save_pretrained_sharded(path, model.memory_bytes() / 4).unwrap();
    model.save_pretrained(path).unwrap();
    assert!(own.iter().all(|file| names().contains(&(*file).to_owned())), "{:?}", names());
    // A save that was ended before its last files can be done again.
    std::fs::remove_file(path.join("config.json")).unwrap();
    model.save_pretrained(path).unwrap();
    Model::load(path, &Device::Cpu).unwrap();
}

#[test]
fn generation_config_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    load("qwen3").save_pretrained(&from).unwrap();
    std::fs::write(
        from.join("generation_config.json"),
        r#"{"temperature": 0.6, "eos_token_id": [3, 4]}"#,
    )
    .unwrap();
    let model = Model::load(&from, &Device::Cpu).unwrap();
    model.save_pretrained(&to).unwrap();
    let text = std::fs::read_to_string(to.join("generation_config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["temperature"], 0.6);
    let again = Model::load(&to, &Device::Cpu).unwrap();
    assert!(again.config().eos_token_id.contains(&3) && again.config().eos_token_id.contains(&4));
}

#[test]
fn weights_keep_the_files_type_or_are_converted() {
    let path = golden("logits").join("qwen3");
    for (asked, found) in
        [(None, DType::BF16), (Some(DType::F32), DType::F32), (Some(DType::F16), DType::F16)]
    {
        let model = Model::load_as(&path, asked, &Device::Cpu).unwrap();
        assert_eq!(model.dtype(), found);
        let bytes = (model.parameter_count() * found.size_in_bytes()) as u64;
        // Beside bf16 the norms and biases are f32 on the CPU; here they are a small part.
        let vectors = if found == DType::BF16 { bytes / 10 } else { 0 };
        assert!(
            (bytes..=bytes + vectors).contains(&model.memory_bytes()),
            "{}",
            model.memory_bytes()
        );
    }
    // On a GPU, too, where activations have 16 bits, a cell reads f32.
    let half = Model::load_as(&path, Some(DType::F16), &Device::Cpu).unwrap();
    assert_eq!(half.activation_dtype(), DType::F16);
    let ids = tunebook_models::Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    assert_eq!(half.forward(&ids).unwrap().dtype(), DType::F32);
    let error = Model::load_as(&path, Some(DType::U8), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("U8") && error.contains("BF16"), "{error}");
}

proptest::proptest! {
    /// Whatever number, text or nothing stands in a field of a config: an error or another config,
    /// no panic and no large allocation.
    #[test]
    fn no_changed_config_panics(
        family in 0..FAMILIES.len(),
        field in proptest::prelude::any::<proptest::sample::Index>(),
        value in proptest::prop_oneof![
            proptest::prelude::any::<i64>().prop_map(serde_json::Value::from),
            (0u32..80).prop_map(|bits| serde_json::Value::from(2f64.powi(bits as i32 - 10))),
            (0u32..63).prop_map(|bits| serde_json::Value::from(1u64 << bits)),
            proptest::prelude::Just(serde_json::json!(null)),
            proptest::prelude::Just(serde_json::json!("x")),
            proptest::prelude::Just(serde_json::json!([])),
            proptest::prelude::Just(serde_json::json!({})),
        ],
    ) {
        let folder = golden("logits").join(FAMILIES[family].0);
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        let key = config.keys().nth(field.index(config.len())).unwrap().clone();
        config.insert(key, value);
        let copy = tempfile::tempdir().unwrap();
        for file in ["model.safetensors", "tokenizer.json"] {
            std::fs::copy(folder.join(file), copy.path().join(file)).unwrap();
        }
        let text = serde_json::to_string(&config).unwrap();
        std::fs::write(copy.path().join("config.json"), text).unwrap();
        drop(Model::load(copy.path(), &Device::Cpu));
    }
}

/// The default model as an F16 file of ours: the same tokenizer, and the same text.
#[test]
fn a_written_gguf_file_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load(tunebook_models::DEFAULT_MODEL, &Device::Cpu).unwrap();
    let path = folder.path().join("again.gguf");
    model.save_gguf(&path, tunebook_models::GgufType::F16).unwrap();
    let again = Model::load(&path, &Device::Cpu).unwrap();
    assert_eq!(again.config(), model.config());
    let config = GenerationConfig { max_new_tokens: 8, ..Default::default() };
    let text = |model: &Model| model.generate("The capital of France is", &config).unwrap();
    assert_eq!(text(&again), text(&model));
}
