//! Damaged and foreign files end in an error that names the file and the part of it, never in a
//! panic.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tunebook_models::{Device, Model};

use crate::support::{default_file, golden};

fn load_error(path: &Path) -> String {
    match Model::load(path, &Device::Cpu) {
        Ok(model) => panic!("{} loaded: {model:?}", path.display()),
        Err(error) => error.to_string(),
    }
}

/// The start of the default model's file with a change.
struct Changed {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Changed {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), bytes: std::fs::read(default_file()).unwrap() }
    }

    fn error(&self, bytes: &[u8]) -> String {
        let path = self.folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        let error = load_error(&path);
        assert!(error.contains("model.gguf"), "{error}");
        error
    }

    fn at(&self, text: &str) -> usize {
        self.bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
    }
}

#[test]
fn a_damaged_gguf_is_named_with_its_part() {
    let changed = Changed::new();
    let (bytes, error) = (&changed.bytes, |bytes: &[u8]| changed.error(bytes));
    // Cut off in the weights, in a table entry, in a value, in a key, in the first bytes.
    let cut = error(&bytes[..bytes.len() - 1000]);
    assert!(
        cut.contains("tensor `output_norm.weight`")
            && cut.contains("found the end of the file at byte 98361432"),
        "{cut}"
    );
    let entry = error(&bytes[..changed.at("blk.7.attn_q.weight") + 25]);
    assert!(entry.contains("the entry of tensor `blk.7.attn_q.weight`"), "{entry}");
    let value = error(&bytes[..100_000]);
    assert!(value.contains("key `tokenizer.ggml.tokens`"), "{value}");
    let key = error(&bytes[..changed.at("llama.embedding_length") + 5]);
    assert!(key.contains("of 33"), "{key}");
    assert!(error(&bytes[..10]).contains("the header"));
    assert!(error(b"").contains("model.gguf"));
    assert!(error(b"PK\x03\x04 a zip file, say").contains("expected the four bytes `GGUF`"));

    let with = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        error(&bytes)
    };
    let version = with(4, &9u32.to_le_bytes());
    assert!(version.contains("expected version 2 or 3, found 9"), "{version}");
    // An absurd length must neither be allocated nor overflow.
    for length in [u64::MAX, u64::MAX / 2, 1 << 40] {
        let length = with(changed.at("llama.embedding_length") - 8, &length.to_le_bytes());
        assert!(length.contains("key "), "{length}");
    }
    let count = with(8, &u64::MAX.to_le_bytes());
    assert!(count.contains("of 18446744073709551615"), "{count}");
    // The value of a key: the name, a type of four bytes, then the number.
    let number =
        |key: &str, value: u32| with(changed.at(key) + key.len() + 4, &value.to_le_bytes());
    let embedding = number("llama.embedding_length", 0);
    assert!(
        embedding.contains("`llama.embedding_length` is Unsigned(0)")
            && embedding.contains("above 0"),
        "{embedding}"
    );
    let shape = number("llama.embedding_length", 1152);
    assert!(shape.contains("has the shape") && shape.contains("1152"), "{shape}");
    let heads = number("llama.attention.head_count_kv", 4);
    assert!(
        heads.contains(
            "`num_key_value_heads` is 4, expected a divisor of num_attention_heads, which is 9"
        ),
        "{heads}"
    );
    let blocks = number("llama.block_count", 31);
    assert!(
        blocks.contains("lacks 9 of the tensors")
            && blocks.contains("`model.layers.30.self_attn.q_proj.weight`"),
        "{blocks}"
    );
    let many = number("llama.block_count", 9999);
    assert!(
        many.contains("`num_hidden_layers` is 9999, expected fewer than the tensors"),
        "{many}"
    );
    // Tensors that share their bytes: a small file could hold any number of large ones.
    let shared = with(changed.at("blk.7.attn_q.weight") + 19 + 4 + 16 + 4, &0u64.to_le_bytes());
    assert!(
        shared.contains("expected an offset of at least") && shared.contains("found 0"),
        "{shared}"
    );
    let fewer = number("llama.block_count", 29);
    assert!(fewer.contains("holds 9 tensors") && fewer.contains("model.layers.29."), "{fewer}");
    let architecture = with(changed.at("general.architecture") + 32, b"mamba");
    assert!(
        architecture.contains("unknown architecture `mamba`")
            && architecture.contains("known are llama"),
        "{architecture}"
    );
    let pre = with(changed.at("tokenizer.ggml.pre") + 30, b"qwenXX");
    assert!(
        pre.contains("tokenizer.ggml.pre")
            && pre.contains("gpt-2, default")
            && pre.contains("smollm"),
        "{pre}"
    );
    let kind = with(changed.at("blk.7.attn_q.weight") + 19 + 4 + 16, &99u32.to_le_bytes());
    assert!(kind.contains("a tensor of type `number 99`"), "{kind}");
}

/// Any byte of the header may be wrong: an error or another model, but no panic.
#[test]
fn no_flipped_byte_of_a_header_panics() {
    let mut changed = Changed::new();
    // The header without the vocabulary, and the table of tensors, cut off before the weights.
    let data = changed.at("output_norm.weight") + 64;
    let table = changed.at("token_embd.weight") - 8;
    changed.bytes.truncate(data);
    let path = changed.folder.path().join("model.gguf");
    for at in (0..1500).chain(table..table + 80) {
        for flip in [0xff, 0x01] {
            let mut bytes = changed.bytes.clone();
            bytes[at] ^= flip;
            // The vocabulary takes most of the time and is of no interest here.
            std::fs::write(&path, &bytes[if at < 1500 { 0..20_000 } else { 0..data }]).unwrap();
            if at < 1500 || flip == 0xff {
                assert!(Model::load(&path, &Device::Cpu).is_err());
            }
        }
    }
}

/// A copy of a tiny model's folder.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("logits").join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn edit(path: &PathBuf, change: impl Fn(&mut Value)) {
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_damaged_folder_is_named_with_its_part() {
    let folder = copy("llama-untied");
    let (config, index) =
        (folder.path().join("config.json"), folder.path().join("model.safetensors.index.json"));
    let error = || load_error(folder.path());
    edit(&config, |json| json["model_type"] = json!("gpt_neox"));
    assert!(error().contains("unknown architecture `gpt_neox`"));
    edit(&config, |json| {
        json["model_type"] = json!("llama");
        json["num_hidden_layers"] = json!(3);
    });
    assert!(
        error().contains("lacks 16 of the tensors")
            && error().contains("model.layers.2.self_attn.q_proj.weight"),
        "{}",
        error()
    );
    edit(&config, |json| {
        json["num_hidden_layers"] = json!(2);
        json["attention_bias"] = json!(false);
    });
    assert!(
        error().contains("holds 8 tensors") && error().contains("self_attn.k_proj.bias"),
        "{}",
        error()
    );
    edit(&config, |json| {
        json["attention_bias"] = json!(true);
        json["intermediate_size"] = json!(64);
    });
    assert!(
        error().contains("tensor `model.layers.0.mlp.gate_proj.weight`")
            && error().contains("[56, 32], expected [64, 32]"),
        "{}",
        error()
    );
    edit(&config, |json| json["intermediate_size"] = json!(56));
    Model::load(folder.path(), &Device::Cpu).unwrap();

    edit(&index, |json| {
        json["weight_map"]["lm_head.weight"] = json!("model-00001-of-00004.safetensors")
    });
    assert!(
        error().contains("model.safetensors.index.json")
            && error().contains("tensor `lm_head.weight`"),
        "{}",
        error()
    );
    edit(&index, |json| json["weight_map"]["lm_head.weight"] = json!("../escape.safetensors"));
    assert!(error().contains("expected a file name for `lm_head.weight`"), "{}", error());
}

#[test]
fn a_damaged_shard_is_named() {
    let folder = copy("llama-untied");
    let shard = folder.path().join("model-00002-of-00004.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let error = load_error(folder.path());
    assert!(
        error.contains("model-00002-of-00004.safetensors")
            && error.contains("found a file of 41031 bytes"),
        "{error}"
    );
    std::fs::write(&shard, &bytes[..30]).unwrap();
    let error = load_error(folder.path());
    assert!(
        error.contains("model-00002-of-00004.safetensors") && error.contains("the header"),
        "{error}"
    );
    std::fs::remove_file(&shard).unwrap();
    let error = load_error(folder.path());
    assert!(error.contains("model-00002-of-00004.safetensors"), "{error}");
}

#[test]
fn a_folder_says_which_file_it_lacks() {
    for file in ["config.json", "tokenizer.json"] {
        let folder = copy("llama-tied");
        std::fs::remove_file(folder.path().join(file)).unwrap();
        let error = load_error(folder.path());
        assert!(error.contains(file) && error.contains("save_pretrained"), "{error}");
    }
    let folder = copy("llama-tied");
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(load_error(folder.path()).contains("tokenizer.json"));
}
