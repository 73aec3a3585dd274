//! Files that we write, in Python `transformers` and in llama.cpp. Runs where `TUNEBOOK_PEERS`
//! names a Python environment that has them (`tests/peers/requirements.txt`,
//! `tests/peers/llama_cpp.txt`), and says so where it does not.

use serde_json::{Value, json};
use tunebook_models::{
    DEFAULT_MODEL, Device, Digits, GenerationConfig, GgufType, Model, Tensor, Tokenizer,
};
use tunebook_testing::Python;

use crate::families::FAMILIES;
use crate::support::{default_gguf, golden, relative_error};

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Relative to the largest.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    relative_error(found, expected, expected.iter().fold(1e-12, |max, x| max.max(x.abs())))
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn last_logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let all = logits(model, ids);
    all[all.len() - model.config().vocab_size..].to_vec()
}

fn greedy(model: &Model, ids: &[u32], count: usize) -> Vec<u32> {
    let config = GenerationConfig { max_new_tokens: count, ..Default::default() };
    model.generate_ids(&[ids.to_vec()], &config).unwrap().remove(0)
}

fn tiny(name: &str) -> Model {
    Model::load(golden("logits").join(name), &Device::Cpu).unwrap()
}

/// Some ids that the model knows.
fn some_ids(model: &Model) -> Vec<u32> {
    let vocabulary = model.config().vocab_size as u32;
    [5, 20, 30, 40, 50, 60, 70, 80, 90, 100, 11, 12].map(|id| id % vocabulary).to_vec()
}

const TEXT: &str = "Where is my parcel? It's been 12 days.";

#[test]
fn saved_models_give_our_logits_in_transformers() {
    let Some(python) = Python::peers("transformers") else { return };
    let folder = tempfile::tempdir().unwrap();
    let families = FAMILIES.iter().map(|(name, _)| *name).chain(["llama-tied", "llama-untied"]);
    let saved: Vec<(String, Model)> = families
        .enumerate()
        .map(|(number, name)| {
            let model = tiny(name);
            let path = folder.path().join(name);
            // Every other one in shards.
            let limit = if number % 2 == 0 { u64::MAX } else { 30_000 };
            model.save_pretrained_sharded(&path, limit).unwrap();
            (path.to_str().unwrap().to_owned(), model)
        })
        .collect();
    let requests: Vec<Value> = saved
        .iter()
        .map(|(path, model)| json!({ "model": path, "ids": some_ids(model), "text": TEXT }))
        .collect();
    let mut worst = 0f32;
    for ((path, model), answer) in saved.iter().zip(python.ask("saved_models.py", &requests)) {
        let error = error(&logits(model, &some_ids(model)), &numbers(&answer["logits"]));
        assert!(error < 1e-4, "{path}: logits differ by {error}");
        // The others have a list of words in place of their family's tokenizer, and transformers
        // makes what the family has of it.
        if path.contains("llama-tied") || path.contains("llama-untied") {
            assert_eq!(ids(&answer["tokens"]), model.tokenizer().encode(TEXT).unwrap(), "{path}");
        }
        worst = worst.max(error);
    }
    eprintln!("largest relative difference of a logit over {} models: {worst:.1e}", saved.len());
}

const PROMPTS: [&str; 3] = [
    "The capital of France is",
    "<|im_start|>user\nMy parcel was due on Monday. What can I do?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n",
];

#[test]
fn our_f16_file_gives_our_text_in_llama_cpp() {
    let Some(python) = Python::peers("llama_cpp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load(DEFAULT_MODEL, &Device::Cpu).unwrap();
    let prompts: Vec<Vec<u32>> =
        PROMPTS.iter().map(|prompt| model.tokenizer().encode(prompt).unwrap()).collect();
    let mut requests = Vec::new();
    for (name, kind) in [
        ("f16", GgufType::F16),
        ("q8_0", GgufType::Q8_0),
        ("q4_1", GgufType::Q4_1),
        ("q4_0", GgufType::Q4_0),
    ] {
        let path = folder.path().join(format!("{name}.gguf"));
        model.save_gguf(&path, kind).unwrap();
        requests
            .extend(prompts.iter().map(|ids| json!({ "model": path, "ids": ids, "greedy": 32 })));
    }
    let answers = python.ask("llama_cpp_run.py", &requests);
    for (answer, prompt) in answers.iter().zip(&prompts) {
        // An answer of ours stops at its end; llama.cpp was not told to.
        let (ours, theirs) = (greedy(&model, prompt, 32), ids(&answer["ids"]));
        assert_eq!(ours, theirs[..ours.len()], "the f16 file");
        eprintln!(
            "f16: {} tokens identical, last logits {:.1e}",
            ours.len(),
            error(&numbers(&answer["logits"]), &last_logits(&model, prompt))
        );
    }
    // llama.cpp rounds what it multiplies with quantised weights to 8 bits, too.
    for (number, name) in [(1, "q8_0"), (2, "q4_1"), (3, "q4_0")] {
        let path = folder.path().join(format!("{name}.gguf"));
        let again = Model::load(&path, &Device::Cpu).unwrap();
        for (answer, prompt) in answers[3 * number..].iter().zip(&prompts) {
            let error = error(&numbers(&answer["logits"]), &last_logits(&again, prompt));
            eprintln!("{name}: last logits differ by {error:.1e} from ours of the same file");
            assert!(error < 0.1, "{name}: {error}");
            assert_eq!(ids(&answer["ids"]).len(), 32);
        }
    }
}

/// A tiny model of `tests/golden/logits` with a tokenizer that GGUF has a place for: a token for
/// each of the plainest characters, in place of the golden one's list of words; and a changed
/// configuration where GGUF cannot say the golden one's.
fn with_byte_tokens(name: &str, change: &Value) -> Model {
    let temporary = tempfile::tempdir().unwrap();
    // The folder's name becomes the model's. Of a model with `phi3` in its name llama.cpp asks that
    // `</s>`, `<unk>`, `<s>` and `<|endoftext|>` be among its tokens, and refuses it with
    // `unordered_map::at` otherwise.
    let folder = temporary.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(golden("logits").join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let edit = |file: &str, edit: &dyn Fn(&mut Value)| {
        let path = folder.join(file);
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        edit(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
    };
    edit("config.json", &|json| {
        for (field, value) in change.as_object().unwrap() {
            json[field] = value.clone();
        }
    });
    edit("tokenizer.json", &|json| {
        let characters = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['Ġ', 'Ċ']);
        let tokens =
            characters.map(String::from).chain(["ab", "</s>", "<|endoftext|>"].map(String::from));
        let mut vocabulary: serde_json::Map<String, Value> =
            tokens.zip(4..).map(|(token, id)| (token, json!(id))).collect();
        for added in json["added_tokens"].as_array().unwrap() {
            vocabulary.insert(added["content"].as_str().unwrap().to_owned(), added["id"].clone());
        }
        json["model"] = json!({ "type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]] });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        json["pre_tokenizer"] = bytes.clone();
        json["decoder"] = bytes;
    });
    Model::load(&folder, &Device::Cpu).unwrap()
}

/// Every architecture that is written as GGUF: the golden models, changed only where GGUF has no
/// place for what they are made to test.
#[test]
fn every_architecture_gives_our_logits_in_llama_cpp() {
    let Some(python) = Python::peers("llama_cpp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let full = json!(["full_attention", "full_attention"]);
    let sliding = json!(["sliding_attention", "sliding_attention"]);
    // llama.cpp knows no window of a Mistral's nor of a Phi-3's: texts that fit into the window.
    let (window, long) = (6, 24);
    let cases = [
        ("llama3", json!({}), long),
        ("llama-linear", json!({}), long),
        ("mistral", json!({}), window),
        // Windows in some of the layers.
        (
            "qwen2",
            json!({ "use_sliding_window": false, "sliding_window": null, "layer_types": full }),
            long,
        ),
        ("qwen3", json!({}), long),
        // Without rotation in every fourth layer, of which two layers have none.
        ("smollm3", json!({ "no_rope_layers": [1, 1] }), long),
        ("gemma", json!({}), long),
        ("gemma2", json!({ "query_pre_attn_scalar": 12 }), long),
        // Every sixth layer sees all, with angles of its own.
        (
            "gemma3",
            json!({ "layer_types": sliding, "rope_parameters": {
            "full_attention": { "rope_theta": 8000.0, "rope_type": "default" },
            "sliding_attention": { "rope_theta": 10000.0, "rope_type": "default" },
        } }),
            long,
        ),
        ("phi3", json!({}), window),
        // Its context here is 256 at least: always the angles of long texts, so a text beyond the
        // original context.
        ("phi3-longrope", json!({}), long),
        ("falcon-7b", json!({}), long),
        ("falcon-40b", json!({}), long),
        ("gpt2", json!({}), long),
    ];
    let (mut models, mut requests) = (Vec::new(), Vec::new());
    for (name, change, length) in cases {
        let model = with_byte_tokens(name, &change);
        let path = folder.path().join(format!("{name}.gguf"));
        model.save_gguf(&path, GgufType::F32).unwrap();
        let ids: Vec<u32> = (0..length as u32).map(|n| 5 + n * 23 % 61).collect();
        let greedy = if length == window { 1 } else { 16 };
        requests.push(json!({ "model": path, "ids": ids, "greedy": greedy }));
        models.push((name, model, ids, greedy));
    }
    let mut wrong = Vec::new();
    for ((name, model, prompt, count), answer) in
        models.iter().zip(python.ask("llama_cpp_run.py", &requests))
    {
        let error = error(&numbers(&answer["logits"]), &last_logits(model, prompt));
        let (ours, theirs) = (greedy(model, prompt, *count), ids(&answer["ids"]));
        let same = ours[..] == theirs[..ours.len()];
        eprintln!(
            "{name}: last logits differ by {error:.1e}, {} greedy tokens the same: {same}",
            ours.len()
        );
        // llama.cpp takes GELU from a table of f16.
        let gelu = ["gemma", "falcon", "gpt2"].iter().any(|family| name.starts_with(family));
        if error >= if gelu { 2e-3 } else { 1e-5 } || !same {
            wrong.push(format!(
                "{name}: last logits differ by {error}, {ours:?} here, {theirs:?} there"
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// llama.cpp's own code for each way to cut a text, on plain text (it differs from the models'
/// tokenizers on rarer letters).
#[test]
fn texts_have_the_same_ids_in_llama_cpp() {
    let Some(python) = Python::peers("llama_cpp") else { return };
    let text = std::fs::read_to_string(golden("tokenizer/lines.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<String>(line).unwrap());
    let plain: Vec<String> = lines
        .filter(|line| line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')))
        .take(4000)
        .collect();
    let tokenizer = Tokenizer::from_gguf(&default_gguf(), Digits::Individual).unwrap();
    let answers = python.ask(
        "llama_cpp_run.py",
        &[json!({ "model": crate::support::default_file(), "texts": plain })],
    );
    let theirs = answers[0]["ids"].as_array().unwrap();
    let wrong: Vec<&String> = plain
        .iter()
        .zip(theirs)
        .filter(|(line, theirs)| tokenizer.encode(line).unwrap() != ids(theirs))
        .map(|(line, _)| line)
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {}: {:?}",
        wrong.len(),
        plain.len(),
        &wrong[..wrong.len().min(5)]
    );
    eprintln!("{} lines identical", plain.len());
}
