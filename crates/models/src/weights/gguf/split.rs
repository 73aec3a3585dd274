//! How byte-level tokenizers cut a text before they merge: the names that GGUF gives to the ways of
//! doing it (`tokenizer.ggml.pre`), and the steps of `tokenizer.json` behind each.
//!
//! The rules are those of the models' own `tokenizer.json`, so that a model's ids are the same from
//! either file. Python `transformers` takes GPT-2's rule for the names that it does not list
//! (`falcon`, `starcoder` and those like it).

use serde_json::{Value as Json, json};

use crate::error::{Error, Result};

/// What a text is cut into before the merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// Words with the blank before them, numbers, punctuation.
    Gpt2,
    /// Every digit by itself, then as GPT-2.
    Digits,
    /// Numbers in threes, line breaks by themselves.
    Llama3,
    /// As Llama 3, with every digit by itself.
    Qwen2,
    /// Mistral's Tekken: lower and upper case told apart.
    Tekken,
    /// As Tekken, with English contractions and numbers in threes.
    Gpt4o,
    /// Punctuation by itself, then as GPT-2, then numbers in threes.
    Falcon,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Every name that is read, the first of each rule being the one that is written.
const NAMES: &[(&str, Split)] = &[
    ("gpt-2", Split::Gpt2),
    ("default", Split::Gpt2),
    ("mpt", Split::Gpt2),
    ("olmo", Split::Gpt2),
    ("phi-2", Split::Gpt2),
    ("smollm", Split::Digits),
    ("starcoder", Split::Digits),
    ("refact", Split::Digits),
    ("command-r", Split::Digits),
    ("codeshell", Split::Digits),
    ("llama-bpe", Split::Llama3),
    ("llama3", Split::Llama3),
    ("llama-v3", Split::Llama3),
    ("falcon3", Split::Llama3),
    ("smaug-bpe", Split::Llama3),
    ("dbrx", Split::Llama3),
    ("qwen2", Split::Qwen2),
    ("deepseek-r1-qwen", Split::Qwen2),
    ("megrez", Split::Qwen2),
    ("tekken", Split::Tekken),
    ("gpt-4o", Split::Gpt4o),
    ("llama4", Split::Gpt4o),
    ("falcon", Split::Falcon),
];

impl Split {
    /// The rule of that name.
    ///
    /// # Errors
    /// When the name is not known; the known ones are listed.
    pub(crate) fn named(name: &str, origin: String) -> Result<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, split)| *split).ok_or_else(|| {
            Error::Unsupported {
                origin,
                what: "the pre-tokenizer (tokenizer.ggml.pre)",
                found: name.to_owned(),
                known: NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            }
        })
    }

    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, split)| *split == self).map_or("gpt-2", |(name, _)| name)
    }

    /// A word that is in the vocabulary as a whole is its token, whatever the merges would make of
    /// it.
    pub(crate) fn ignores_merges(name: &str) -> bool {
        // Llama 3's and Tekken's own tokenizer.json say so; those that borrowed Llama 3's rule do
        // not.
        matches!(
            name,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "tekken" | "gpt-4o" | "llama4"
        )
    }

    /// A text begins with the first token, unless the file says otherwise.
    pub(crate) fn begins_with_bos(name: &str) -> bool {
        matches!(name, "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "tekken")
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(crate) fn to_json(self) -> Json {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let sequence = |steps: Vec<Json>| json!({ "type": "Sequence", "pretokenizers": steps });
        let pattern = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        let digits =
            |individual: bool| json!({ "type": "Digits", "individual_digits": individual });
        match self {
            Self::Gpt2 => byte_level(true),
            Self::Digits => sequence(vec![digits(true), byte_level(true)]),
            Self::Llama3 => sequence(vec![pattern(LLAMA3), byte_level(false)]),
            Self::Qwen2 => sequence(vec![pattern(QWEN2), byte_level(false)]),
            Self::Tekken => sequence(vec![pattern(TEKKEN), byte_level(false)]),
            Self::Gpt4o => sequence(vec![pattern(GPT4O), byte_level(false)]),
            Self::Falcon => sequence(vec![
                json!({ "type": "Punctuation", "behavior": "Contiguous" }),
                byte_level(true),
                digits(false),
                pattern("[0-9][0-9][0-9]"),
            ]),
        }
    }

    /// The rule that a `tokenizer.json` spells out, if it has a name.
    pub(crate) fn recognised(pre_tokenizer: &Json) -> Option<Self> {
        let found = essence(pre_tokenizer);
        let mut seen = Vec::new();
        NAMES.iter().map(|(_, split)| *split).find(|split| {
            // Each rule once.
            let new = !seen.contains(split);
            seen.push(*split);
            new && essence(&split.to_json()) == found
        })
    }
}

/// The steps without what does not change ids, and a sequence of one as that one.
fn essence(step: &Json) -> Json {
    let mut step = step.clone();
    if let Some(fields) = step.as_object_mut() {
        fields.remove("trim_offsets");
        if fields.get("type") == Some(&json!("ByteLevel")) {
            fields.entry("use_regex").or_insert(json!(true));
        }
        if let Some(steps) = fields.get_mut("pretokenizers").and_then(Json::as_array_mut) {
            let essences: Vec<Json> = steps.iter().map(essence).collect();
            if let [one] = &essences[..] {
                return one.clone();
            }
            *steps = essences;
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_is_recognised_by_its_steps() {
        for (name, split) in NAMES {
            assert_eq!(Split::named(name, String::new()).unwrap(), *split);
            assert_eq!(Split::recognised(&split.to_json()), Some(*split), "{name}");
            assert_eq!(Split::named(split.name(), String::new()).unwrap(), *split);
        }
        let alone = json!({ "type": "Sequence", "pretokenizers": [{ "type": "ByteLevel", "add_prefix_space": false }] });
        assert_eq!(Split::recognised(&alone), Some(Split::Gpt2));
        assert_eq!(Split::recognised(&json!({ "type": "Whitespace" })), None);
        let with_prefix =
            json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
        assert_eq!(Split::recognised(&with_prefix), None);
    }

    #[test]
    fn an_unknown_rule_is_refused_with_the_known_ones() {
        let error = Split::named("kimi-k2", "a.gguf".to_owned()).unwrap_err().to_string();
        assert!(
            error.contains("kimi-k2") && error.contains("llama-bpe") && error.contains("smollm, "),
            "{error}"
        );
    }
}
