//! Memory: what was replaced is given back, whichever way the new adapter came.

#![allow(clippy::print_stderr)] // what was measured

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tunebook_models::{DEFAULT_MODEL, Device, Model};
use tunebook_serve::{Limits, ServerConfig};
use tunebook_tune::{Adapters, Lora};

use crate::support::*;

/// A Llama with random weights, large enough that a leaked adapter is seen: 7 million numbers.
fn random_model(folder: &Path) -> Model {
    let (hidden, intermediate, blocks, vocab) = (256usize, 768usize, 8usize, 259usize);
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        fs::copy(golden("lora_tiny/model").join(file), folder.join(file)).unwrap();
    }
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (field, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", intermediate),
        ("num_hidden_layers", blocks),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 8),
        ("head_dim", 32),
        ("max_position_embeddings", 2048),
    ] {
        config[field] = value.into();
    }
    fs::write(path, config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for block in 0..blocks {
        let mut add = |name: &str, dims: &[usize]| {
            tensors.push((format!("model.layers.{block}.{name}.weight"), dims.to_vec()));
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[hidden, hidden]);
        }
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
    }
    let (mut header, mut values) = (serde_json::Map::new(), Vec::new());
    for (name, dims) in tensors {
        let from = values.len();
        for index in 0..dims.iter().product::<usize>() {
            // Any numbers will do; those of norms are 1.
            let number = (index as f32 * 12.9898).sin() * 0.05;
            let number = if dims.len() == 1 { 1.0 } else { number };
            values.extend(number.to_le_bytes());
        }
        let entry = json!({ "dtype": "F32", "shape": dims, "data_offsets": [from, values.len()] });
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length, header.as_bytes(), &values].concat();
    fs::write(folder.join("model.safetensors"), file).unwrap();
    Model::load(folder, &Device::Cpu).unwrap()
}

fn rss_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kb = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kb.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Swaps adapters 350 times, by turns over HTTP, from a folder and from memory, with answers in
/// between. Resident memory after the first 50 swaps, and after each 50 more, and an adapter's size.
fn swapped(model: Model) -> (Vec<f64>, f64) {
    let root = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let lora = Lora {
            r: 16,
            init_lora_weights: false,
            init_seed: name.len() as u64 + u64::from(name.as_bytes()[0]),
            target_modules: "all-linear".into(),
            ..Default::default()
        };
        model.add_adapter(name, &lora).unwrap();
        model.save_adapter(name, root.path()).unwrap();
    }
    let service = Service::of(
        model,
        &ServerConfig {
            allow_adapter_changes: true,
            adapter_root: Some(root.path().to_path_buf()),
            ..Default::default()
        },
    );
    let prompt = "A prompt that fills some pages of the prefix cache for each generation.";
    let mut rss = Vec::new();
    for swap in 1..=350 {
        let name = ["one", "two"][swap % 2];
        match swap / 2 % 3 {
            0 => {
                let body = json!({ "lora_name": "a", "lora_path": name, "load_inplace": true });
                service.answer("/v1/load_lora_adapter", &body);
            }
            1 => drop(service.server.swap("a", root.path().join(name)).unwrap()),
            _ => drop(service.server.swap("a", name).unwrap()),
        }
        std::thread::scope(|scope| {
            for model in ["a", "a:0.5+one:0.25"] {
                scope.spawn(|| service.complete(&request(model, prompt, 2)));
            }
        });
        if swap % 50 == 0 {
            rss.push(rss_mb());
        }
    }
    let adapter_mb = service.server.adapters()[0].size_bytes as f64 / 1024.0 / 1024.0;
    eprintln!("resident after each 50 swaps: {rss:.1?} MB, an adapter: {adapter_mb:.1} MB");
    (rss, adapter_mb)
}

/// An allocator may keep what was given back once, for instance in a second thread's arena: a step of
/// an adapter's size. Whatever leaks one adapter in 200 swaps is over this limit.
fn assert_flat(rss: &[f64], adapter_mb: f64) {
    let limit = f64::max(0.02 * rss[0], 1.5 * adapter_mb);
    for now in &rss[1..] {
        let more = now - rss[0];
        assert!(more < limit, "{more:.1} MB more than after 50 swaps, limit {limit:.1}: {rss:.1?}");
    }
}

#[test]
fn memory_is_flat_over_300_swaps() {
    let folder = tempfile::tempdir().unwrap();
    let (rss, adapter_mb) = swapped(random_model(folder.path()));
    assert_flat(&rss, adapter_mb);
}

#[test]
#[ignore = "takes minutes; part of `cargo xtask test --long`"]
fn memory_of_smollm_is_flat_over_300_swaps() {
    let (rss, adapter_mb) = swapped(Model::load(DEFAULT_MODEL, &Device::Cpu).unwrap());
    assert_flat(&rss, adapter_mb);
}

#[test]
fn adapters_have_a_budget_of_memory() {
    let root = adapter_root();
    let size = {
        let service = Service::with_adapters(root.path());
        let load = json!({ "lora_name": "a", "lora_path": "one" });
        service.answer("/v1/load_lora_adapter", &load);
        let status = service.server.adapters().remove(0);
        let card = service.get_json("/v1/models/a");
        assert_eq!(card["size_bytes"], status.size_bytes);
        assert_eq!(service.get_json("/v1/models/model")["size_bytes"], 0);
        let file = fs::read(root.path().join("one/adapter_model.safetensors")).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(status.size_bytes, file.len() - 8 - header);
        assert!(status.to_string().ends_with(" MB"), "{status}");
        status.size_bytes
    };
    // Room for one of them and a half.
    let service = Service::with(&ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        limits: Limits { max_adapter_bytes: Some(size + size / 2), ..Default::default() },
        ..Default::default()
    });
    let load = |name: &str, path: &str| {
        let body = json!({ "lora_name": name, "lora_path": path, "load_inplace": true });
        service.post("/v1/load_lora_adapter", &body)
    };
    assert_eq!(load("a", "one").0, 200);
    let (status, answer) = load("b", "one");
    let message = answer["error"]["message"].as_str().unwrap().to_owned();
    let refused = refusal(status, &answer);
    assert_eq!(refused, (400, "adapter_memory".to_owned(), "lora_path".to_owned()));
    for part in [format!("`b` takes {size}"), format!("take {size}"), "unload one".to_owned()] {
        assert!(message.contains(&part), "{part}: {message}");
    }
    assert_eq!(load("a", "two").0, 200, "in the place of the one that there is");
    let gone = json!({ "lora_name": "a" });
    service.answer("/v1/unload_lora_adapter", &gone);
    assert_eq!(load("b", "one").0, 200);
    // A mix takes nothing: its parts do.
    service.complete(&request("b:0.5", "Hello", 2));
    // What can never have room is not read.
    fs::write(root.path().join("two/adapter_model.safetensors"), vec![0; 4 * size]).unwrap();
    let (status, answer) = load("c", "two");
    assert_eq!(refusal(status, &answer).1, "adapter_memory");
}
