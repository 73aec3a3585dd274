//! Ids of the tokenizer that is built from the default model's GGUF file, against transformers' for
//! the same file.

use std::path::PathBuf;

use tunebook_models::{Digits, Tokenizer};
use tunebook_testing::skip;

use crate::support::{default_gguf, golden, tensors};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(&default_gguf(), Digits::AsTransformers).unwrap()
}

fn fnv1a(ids: &[u32]) -> u32 {
    ids.iter()
        .flat_map(|id| id.to_le_bytes())
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn mixed_lines() -> Vec<String> {
    let text = std::fs::read_to_string(golden("tokenizer/lines.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The vocabulary has no token for some bytes: six control characters, and the first byte of planes
/// that Unicode does not use. Every tokenizer of this model loses them.
fn lacked(c: char) -> bool {
    matches!(
        c,
        '\u{4}' | '\u{6}' | '\u{13}' | '\u{14}' | '\u{16}' | '\u{1d}' | '\u{40000}'..='\u{bffff}'
    )
}

fn same_ids(lines: &[String], hashes: &str) {
    let expected = tensors("tokenizer/hashes.safetensors")[hashes].to_vec1::<u32>().unwrap();
    assert_eq!(lines.len(), expected.len());
    let tokenizer = tokenizer();
    let mut wrong = Vec::new();
    for (number, (line, expected)) in lines.iter().zip(expected).enumerate() {
        let ids = tokenizer.encode(line).unwrap();
        if fnv1a(&ids) != expected {
            wrong.push(format!("line {}: {line:?} -> {ids:?}", number + 1));
        }
        if !line.contains(lacked) {
            assert_eq!(tokenizer.decode(&ids).unwrap(), *line, "line {}", number + 1);
        }
    }
    let shown = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        wrong.is_empty(),
        "{} of {} lines have other ids than transformers:\n{shown}",
        wrong.len(),
        lines.len()
    );
}

#[test]
fn mixed_text_has_transformers_ids() {
    let lines = mixed_lines();
    assert!(lines.len() >= 10_000);
    same_ids(&lines, "lines");
}

/// Real text, where there is a folder with it.
#[test]
fn real_text_has_transformers_ids() {
    let Some(data) =
        std::env::var_os("TUNEBOOK_DATA").map(PathBuf::from).filter(|dir| dir.is_dir())
    else {
        return skip("TUNEBOOK_DATA names no folder");
    };
    for (name, path) in [("banking77", "banking77/train.csv"), ("gsm8k", "gsm8k/train.jsonl")] {
        let text = std::fs::read_to_string(data.join(path)).unwrap();
        let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        same_ids(&lines, name);
    }
}

#[test]
fn digits_can_be_set_apart_as_in_the_models_own_tokenizer() {
    let individual = Tokenizer::from_gguf(&default_gguf(), Digits::Individual).unwrap();
    let tokens = |tokenizer: &Tokenizer, text| {
        tokenizer
            .encode(text)
            .unwrap()
            .iter()
            .map(|id| tokenizer.id_to_token(*id).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(&individual, "a  12"), ["a", "ĠĠ", "1", "2"]);
    assert_eq!(tokens(&tokenizer(), "a  12"), ["a", "Ġ", "Ġ", "1", "2"]);
    assert_eq!(tokens(&individual, "in 2024"), tokens(&tokenizer(), "in 2024"));
}

#[test]
fn special_tokens_are_known_by_role() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>").unwrap();
    assert_eq!((ids[0], ids[ids.len() - 1]), (1, 2));
    assert_eq!(tokenizer.decode_text(&ids).unwrap(), "user\nHi");
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.unk_id()),
        (Some(1), Some(2), Some(2), Some(0))
    );
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(
        tokenizer.encode_with_special_tokens("Hi").unwrap(),
        tokenizer.encode("Hi").unwrap(),
        "the file asks for none"
    );
}

/// A fine-tune saved after a call with `truncation=True, padding="max_length"` has both in its
/// file; transformers sets them anew at every call.
#[test]
fn truncation_and_padding_of_the_file_do_not_count() {
    let path = golden("chat_templates/tokenizers/chatml.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    });
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"
    });
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("tokenizer.json");
    std::fs::write(&changed, json.to_string()).unwrap();
    let load = |path: &std::path::Path| Tokenizer::from_file(path, &serde_json::Value::Null);
    let (plain, changed) = (load(&path).unwrap(), load(&changed).unwrap());
    for text in ["a", "Where is my parcel? It is on its way."] {
        assert_eq!(changed.encode(text).unwrap(), plain.encode(text).unwrap(), "{text}");
        assert_eq!(
            changed.encode_with_special_tokens(text).unwrap(),
            plain.encode_with_special_tokens(text).unwrap(),
            "{text}"
        );
    }
    assert_eq!(changed.fingerprint().unwrap(), plain.fingerprint().unwrap());
}
