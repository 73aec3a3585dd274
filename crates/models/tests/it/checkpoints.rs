//! The `config.json`s of well-known checkpoints, as they were published
//! (`tests/golden/configs/checkpoints.json`): each is read, and says the same when it is written and
//! read again.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tunebook_models::{Config, DType, Device, Family, Model, Tensor};

use crate::support::{golden, tensors};

fn published() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(golden("configs/checkpoints.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_config_is_read_and_written() {
    let published = published();
    assert!(published.len() >= 24, "{}", published.len());
    for (name, json) in &published {
        let config = Config::from_json(&json.to_string(), name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = Config::from_json(&config.to_json().to_string(), name)
            .unwrap_or_else(|error| panic!("{name}, written: {error}"));
        assert_eq!(again, config, "{name}");
        // What is written there is what is read.
        let text = json.get("text_config").unwrap_or(json);
        let is = |field: &str, value: usize| {
            if let Some(written) = text[field].as_u64() {
                assert_eq!(written as usize, value, "{name}: {field}");
            }
        };
        is("hidden_size", config.hidden_size);
        is("intermediate_size", config.intermediate_size);
        is("num_hidden_layers", config.num_hidden_layers);
        is("num_attention_heads", config.num_attention_heads);
        is("num_key_value_heads", config.num_key_value_heads);
        is("head_dim", config.head_dim);
        is("max_position_embeddings", config.max_position_embeddings);
        is("vocab_size", config.vocab_size);
        assert!(!config.eos_token_id.is_empty(), "{name}");
    }
}

#[test]
fn a_padding_token_that_is_none_or_has_no_vector_is_none() {
    let config = |name: &str, pad: i64| {
        let mut json = published()[name].clone();
        json["pad_token_id"] = pad.into();
        Config::from_json(&json.to_string(), name)
    };
    for (pad, read) in [(-1, None), (0, Some(0)), (32_000, None)] {
        assert_eq!(config("lmsys/vicuna-7b-v1.1", pad).unwrap().pad_token_id, read, "{pad}");
    }
    assert!(config("lmsys/vicuna-7b-v1.1", -2).unwrap_err().to_string().contains("pad_token_id"));
}

#[test]
fn the_text_model_of_a_gemma_that_reads_pictures_is_read() {
    let read = |name: &str| Config::from_json(&published()[name].to_string(), name).unwrap();
    let small = read("google/gemma-3-4b-it");
    assert_eq!(small.model_type, "gemma3_text");
    assert_eq!(
        (small.num_hidden_layers, small.hidden_size, small.num_attention_heads),
        (34, 2560, 8)
    );
    assert_eq!((small.num_key_value_heads, small.head_dim, small.vocab_size), (4, 256, 262_208));
    assert_eq!((small.max_position_embeddings, &small.eos_token_id[..]), (131_072, &[1, 106][..]));
    let Family::Gemma(gemma) = &small.family else { panic!("{small:?}") };
    assert_eq!(gemma.sliding_window, Some(1024));
    let large = read("google/gemma-3-27b-it");
    let Family::Gemma(gemma) = &large.family else { panic!("{large:?}") };
    assert_eq!((large.head_dim, gemma.query_pre_attn_scalar), (128, 168.0));
}

/// A copy of the small Gemma 3 of the golden files, its config and tokenizer changed.
fn copy(to: &Path, config: impl FnOnce(&mut Value), tokenizer: impl FnOnce(&mut Value)) {
    let from = golden("logits/gemma3");
    for entry in std::fs::read_dir(&from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let change = |file: &str, change: &mut dyn FnMut(&mut Value)| {
        let path = to.join(file);
        let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
    };
    let (mut config, mut tokenizer) = (Some(config), Some(tokenizer));
    change("config.json", &mut |json| config.take().unwrap()(json));
    change("tokenizer.json", &mut |json| tokenizer.take().unwrap()(json));
}

#[test]
fn the_text_model_is_loaded_from_beside_the_others_tensors() {
    let expected = tensors("logits/gemma3/expected.safetensors");
    let plain = Model::load(golden("logits/gemma3"), &Device::Cpu).unwrap();
    let logits = |model: &Model| {
        let logits = model.forward(&expected["ids"]).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for nested in ["language_model.model.", "model.language_model."] {
        let dir = tempfile::tempdir().unwrap();
        let nest = |config: &mut Value| {
            *config = json!({
                "model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 8},
                "eos_token_id": [1, 3], "image_token_index": 71,
            });
        };
        copy(dir.path(), nest, |_| {});
        let path = dir.path().join("model.safetensors");
        let mut all: HashMap<String, Tensor> = candle_core::safetensors::load(&path, &Device::Cpu)
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name.replacen("model.", nested, 1), tensor))
            .collect();
        let other = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
        all.insert("vision_tower.patch_embedding.weight".to_owned(), other.clone());
        all.insert("multi_modal_projector.weight".to_owned(), other);
        candle_core::safetensors::save(&all, &path).unwrap();
        let model = Model::load(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(model.config().model_type, "gemma3_text", "{nested}");
        assert_eq!(logits(&model), logits(&plain), "{nested}");
        // Saved, it is the text model that it is.
        let saved = dir.path().join("saved");
        model.save_pretrained(&saved).unwrap();
        assert_eq!(logits(&Model::load(&saved, &Device::Cpu).unwrap()), logits(&plain));
    }
}

#[test]
fn a_token_beyond_the_table_costs_the_texts_that_hold_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    copy(
        dir.path(),
        |_| {},
        |tokenizer| {
            let picture = json!({
                "id": 72, "content": "<picture>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            });
            tokenizer["added_tokens"].as_array_mut().unwrap().push(picture);
        },
    );
    let model = Model::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!((model.config().vocab_size, model.tokenizer().vocab_size()), (72, 73));
    let config = tunebook_models::GenerationConfig { max_new_tokens: 2, ..Default::default() };
    let ids = model.tokenizer().encode("abc").unwrap();
    model.completions(&[ids], &config).unwrap();
    let ids = model.tokenizer().encode("abc<picture>").unwrap();
    let error = model.completions(&[ids], &config).unwrap_err().to_string();
    assert!(error.contains("token 72 (`<picture>`)"), "{error}");
}
