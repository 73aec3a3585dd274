//! A `tokenizer.json` as the keys of a GGUF file (`tokenizer.ggml.*`), as llama.cpp's converter
//! writes them.
//!
//! Byte-level BPE is written with its merges and the name of its way to cut a text. SentencePiece's
//! BPE is written as scores, from which llama.cpp finds the merges again; where it would find
//! others, the tokenizer is refused rather than changed.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use super::split::Split;
use super::tokenizer::{
    BLANK, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, implied_merges, is_gemma, order,
};
use super::{Array, Value};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// The keys of `tokenizer`, for a model of the architecture that llama.cpp calls `architecture`.
///
/// # Errors
/// When GGUF has no place for it; the error says for which part.
pub(crate) fn metadata(
    tokenizer: &Tokenizer,
    chat_template: Option<&str>,
    config: &Config,
    architecture: &str,
    model: &str,
) -> Result<Vec<(String, Value)>> {
    let json: Json = serde_json::from_str(&tokenizer.to_json()?)
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    let lacks = |what: String| Error::NotInFormat { model: model.to_owned(), format: "GGUF", what };
    let kind = json["model"]["type"].as_str().unwrap_or("none");
    let vocabulary = json["model"]["vocab"].as_object().filter(|_| kind == "BPE");
    let Some(vocabulary) = vocabulary else {
        return Err(lacks(format!("a tokenizer of the type {kind} (only BPE can be written)")));
    };
    let mut by_id: BTreeMap<u64, &str> =
        vocabulary.iter().filter_map(|(token, id)| Some((id.as_u64()?, token.as_str()))).collect();
    let mut kinds: HashMap<u64, i64> = HashMap::new();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(content)) = (added["id"].as_u64(), added["content"].as_str()) else {
            continue;
        };
        by_id.insert(id, content);
        kinds.insert(id, if added["special"] == true { CONTROL } else { USER_DEFINED });
    }
    let sentencepiece = json["model"]["byte_fallback"] == true;
    if sentencepiece && let Some(unknown) = json["model"]["unk_token"].as_str().or(Some("<unk>")) {
        kinds.extend(
            by_id.iter().filter(|(_, token)| **token == unknown).map(|(id, _)| (*id, UNKNOWN)),
        );
    }
    // One entry for each row of the embedding table.
    let mut tokens = Vec::with_capacity(config.vocab_size);
    let mut types = Vec::with_capacity(config.vocab_size);
    for id in 0..config.vocab_size as u64 {
        match by_id.get(&id) {
            None => {
                tokens.push(format!("[PAD{id}]"));
                types.push(UNUSED);
            }
            Some(token) => {
                tokens.push((*token).to_owned());
                types.push(match kinds.get(&id) {
                    Some(kind) => *kind,
                    None if sentencepiece && is_byte(token) => BYTE,
                    None => NORMAL,
                });
            }
        }
    }
    let merges = merges(&json["model"]["merges"]);
    let text = |text: &str| Value::String(text.to_owned());
    let mut keys = Vec::new();
    let mut put = |key: &str, value| keys.push((format!("tokenizer.{key}"), value));
    if sentencepiece {
        let gemma = is_gemma(architecture);
        let scores = scores(&tokens, &merges);
        let exact: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
        if implied_merges(&tokens, &order(gemma, &exact)) != merges {
            let what =
                "a SentencePiece tokenizer whose merges do not follow from a score for each token"
                    .to_owned();
            return Err(lacks(what));
        }
        put("ggml.model", text("llama"));
        put("ggml.pre", text("default"));
        put("ggml.scores", Value::Array(Array::Float(exact)));
        put("ggml.add_space_prefix", Value::Bool(begins_with_blank(&json)));
    } else {
        let Some(split) = Split::recognised(&json["pre_tokenizer"]) else {
            return Err(lacks(format!(
                "a tokenizer that cuts texts in a way that has no name there ({})",
                json["pre_tokenizer"]
            )));
        };
        put("ggml.model", text("gpt2"));
        put("ggml.pre", text(split.name()));
        let merges = merges.iter().map(|(left, right)| format!("{left} {right}"));
        put("ggml.merges", Value::Array(Array::String(merges.collect())));
    }
    put("ggml.tokens", Value::Array(Array::String(tokens)));
    put("ggml.token_type", Value::Array(Array::Signed(types)));
    let eos = tokenizer.eos_id().or(config.eos_token_id.first().copied());
    for (key, id) in [
        ("bos_token_id", tokenizer.bos_id().or(config.bos_token_id)),
        ("eos_token_id", eos),
        // Where a turn of a chat ends with another token than a text.
        ("eot_token_id", config.eos_token_id.iter().copied().find(|id| Some(*id) != eos)),
        ("padding_token_id", tokenizer.pad_id().or(config.pad_token_id)),
        ("unknown_token_id", tokenizer.unk_id()),
    ] {
        if let Some(id) = id {
            put(&format!("ggml.{key}"), Value::Unsigned(id.into()));
        }
    }
    let empty = tokenizer.encode_with_special_tokens("")?;
    let bos = tokenizer.bos_id().or(config.bos_token_id);
    put("ggml.add_bos_token", Value::Bool(empty.first().is_some_and(|first| Some(*first) == bos)));
    put("ggml.add_eos_token", Value::Bool(empty.len() > 1 && empty.last().copied() == eos));
    if let Some(template) = chat_template {
        put("chat_template", text(template));
    }
    Ok(keys)
}

/// `["a b", ..]` in old files, `[["a", "b"], ..]` in new ones.
fn merges(json: &Json) -> Vec<(String, String)> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => {
            text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()))
        }
        _ => Some((merge[0].as_str()?.to_owned(), merge[1].as_str()?.to_owned())),
    };
    json.as_array().into_iter().flatten().filter_map(pair).collect()
}

/// The sooner a token is merged, the better its score; those that no merge makes have the worst.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    // Whole numbers up to 2^24 are exact.
    let worst = merges.len();
    tokens
        .iter()
        .map(|token| match first.get(token) {
            _ if is_byte(token) => 0.0,
            Some(rank) => -(*rank as f32),
            None => -(worst as f32),
        })
        .collect()
}

fn is_byte(token: &str) -> bool {
    token.len() == 6
        && token
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'))
            .is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Whether a blank is written before a text.
fn begins_with_blank(json: &Json) -> bool {
    let steps = |step: &Json, list: &str| -> Vec<Json> {
        step[list].as_array().cloned().unwrap_or_else(|| vec![step.clone()])
    };
    let prepended = steps(&json["normalizer"], "normalizers")
        .iter()
        .any(|step| step["type"] == "Prepend" && step["prepend"] == BLANK);
    let metaspace = steps(&json["pre_tokenizer"], "pretokenizers").iter().any(|step| {
        step["type"] == "Metaspace"
            && step["prepend_scheme"] != "never"
            && step["add_prefix_space"] != false
    });
    prepended || metaspace
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use rayon::prelude::*;

    use super::super::writer::write_file;
    use super::*;
    use crate::text::tokenizer::Digits;
    use crate::weights::gguf::Gguf;

    fn golden(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
    }

    fn config() -> Config {
        let text = std::fs::read_to_string(golden("logits/llama-tied/config.json")).unwrap();
        let mut config = Config::from_json(&text, "config.json").unwrap();
        (config.vocab_size, config.eos_token_id) = (1600, Vec::new());
        (config.bos_token_id, config.pad_token_id) = (None, None);
        config
    }

    /// A GGUF file with nothing but the vocabulary.
    fn written(tokenizer: &Tokenizer, architecture: &str, folder: &Path) -> Result<Gguf> {
        let mut keys =
            vec![("general.architecture".to_owned(), Value::String(architecture.to_owned()))];
        keys.extend(metadata(tokenizer, None, &config(), architecture, "a model")?);
        let path = folder.join("vocabulary.gguf");
        write_file(&path, &keys, &mut [], &config())?;
        Gguf::open(&path)
    }

    /// The 100,000 lines of `tests/golden/tokenizer/families.py`.
    fn lines() -> Vec<String> {
        const SEPARATORS: [&str; 8] = ["", " ", "  ", "\n", "\t", ", ", "\n\n", " 12 "];
        let text = std::fs::read_to_string(golden("tokenizer/lines.jsonl")).unwrap();
        let base: Vec<String> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let n = base.len();
        (0..100_000)
            .map(|k| {
                [base[k % n].as_str(), SEPARATORS[k / n % 8], &base[(k * 7919 + 13) % n]].concat()
            })
            .collect()
    }

    fn hashes(tokenizer: &Tokenizer, lines: &[String]) -> Vec<u32> {
        let hash = |block: &[String]| {
            let ids = block
                .iter()
                .flat_map(|line| tokenizer.encode(line).unwrap().into_iter().chain([u32::MAX]));
            ids.flat_map(u32::to_le_bytes).fold(0x811c_9dc5u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            })
        };
        lines.par_chunks(8).map(hash).collect()
    }

    fn same_ids(tokenizer: &Tokenizer, lines: &[String], family: &str, reference: &str) {
        let path = golden("tokenizer/families").join(family).join("hashes.safetensors");
        let golden = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        let expected = golden[reference].to_vec1::<u32>().unwrap();
        let found = hashes(tokenizer, lines);
        assert_eq!(found.len(), expected.len());
        let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(
            wrong,
            0,
            "{family}: {wrong} of {} blocks of lines have other ids than `{reference}`",
            found.len()
        );
    }

    fn from_json(family: &str) -> Tokenizer {
        let folder = golden("tokenizer/families").join(family);
        let text = std::fs::read_to_string(folder.join("tokenizer_config.json")).unwrap();
        Tokenizer::from_file(folder.join("tokenizer.json"), &serde_json::from_str(&text).unwrap())
            .unwrap()
    }

    #[test]
    fn byte_level_families_have_the_same_ids_from_both_files() {
        let (lines, folder) = (lines(), tempfile::tempdir().unwrap());
        for family in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "falcon"] {
            let json = from_json(family);
            same_ids(&json, &lines, family, "json");
            let file = written(&json, "llama", folder.path()).unwrap();
            assert_eq!(file.text("tokenizer.ggml.pre").unwrap(), family);
            let gguf = Tokenizer::from_gguf(&file, Digits::Individual).unwrap();
            same_ids(&gguf, &lines, family, "gguf");
            let roles = |t: &Tokenizer| {
                (t.bos_id(), t.eos_id(), t.encode_with_special_tokens("a").unwrap())
            };
            assert_eq!(roles(&gguf), roles(&json), "{family}");
            assert_eq!(gguf.encode("<think>").unwrap().len(), 1, "an added token stays whole");
            for line in lines.iter().step_by(10) {
                assert_eq!(gguf.decode(&gguf.encode(line).unwrap()).unwrap(), *line, "{family}");
            }
        }
        let file = written(&from_json("smollm"), "llama", folder.path()).unwrap();
        same_ids(
            &Tokenizer::from_gguf(&file, Digits::AsTransformers).unwrap(),
            &lines,
            "smollm",
            "transformers",
        );
    }

    #[test]
    fn sentencepiece_families_have_transformers_ids() {
        let (lines, folder) = (lines(), tempfile::tempdir().unwrap());
        for family in ["llama", "gemma", "phi3"] {
            let file =
                Gguf::open(golden("tokenizer/families").join(family).join("vocabulary.gguf"))
                    .unwrap();
            let tokenizer = Tokenizer::from_gguf(&file, Digits::default()).unwrap();
            same_ids(&tokenizer, &lines, family, "gguf");
            // Through a tokenizer.json and back into GGUF.
            let path = folder.path().join("tokenizer.json");
            std::fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
            let names = serde_json::json!({ "bos_token": tokenizer.id_to_token(tokenizer.bos_id().unwrap()), "unk_token": "<unk>" });
            let json = Tokenizer::from_file(&path, &names).unwrap();
            same_ids(&json, &lines, family, "gguf");
            let again = written(&json, family, folder.path()).unwrap();
            let again = Tokenizer::from_gguf(&again, Digits::default()).unwrap();
            same_ids(&again, &lines, family, "gguf");
            assert_eq!(
                again.encode_with_special_tokens("a").unwrap(),
                tokenizer.encode_with_special_tokens("a").unwrap()
            );
            for line in lines.iter().step_by(10) {
                // A blank stands for the one before the text; the sign for blanks is one
                // afterwards.
                let promised = !line.starts_with(' ')
                    && !line.contains(BLANK)
                    && !line.contains("<s>")
                    && !line.is_empty();
                if promised {
                    assert_eq!(
                        again.decode(&again.encode(line).unwrap()).unwrap(),
                        *line,
                        "{family}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_gguf_has_no_place_for_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |change: &dyn Fn(&mut Json)| {
            let text =
                std::fs::read_to_string(golden("tokenizer/families/gpt-2/tokenizer.json")).unwrap();
            let mut json: Json = serde_json::from_str(&text).unwrap();
            change(&mut json);
            let path = folder.path().join("tokenizer.json");
            std::fs::write(&path, json.to_string()).unwrap();
            let tokenizer = Tokenizer::from_file(&path, &Json::Null).unwrap();
            written(&tokenizer, "llama", folder.path()).err().unwrap().to_string()
        };
        let split =
            refusal(&|json| json["pre_tokenizer"] = serde_json::json!({ "type": "Whitespace" }));
        assert!(
            split.contains("cuts texts in a way that has no name there")
                && split.contains("Whitespace"),
            "{split}"
        );
        let merges = refusal(&|json| {
            json["model"]["byte_fallback"] = true.into();
            json["model"]["merges"].as_array_mut().unwrap().swap(0, 100);
        });
        assert!(merges.contains("merges do not follow from a score"), "{merges}");
    }
}
