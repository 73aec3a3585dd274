//! Mutated adapters: an error or another adapter, but no panic, and no allocation out of proportion
//! to the files.
//!
//! A binary apart from `it`: its allocator counts the memory of the whole process, which under
//! `cargo test` the other tests would share.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

#[path = "../it/common.rs"]
#[allow(dead_code)] // other tests use the rest
mod common;

use serde_json::{Value, json};
use tunebook_testing::Random;
use tunebook_testing::allocator::{Counting, peak_bytes};
use tunebook_tune::Adapters;
use tunebook_tune::peft::{AdapterFiles, CONFIG_FILE, TENSORS_FILE};

use crate::common::*;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IDS: [u32; 5] = [1, 20, 30, 40, 50];

/// What reading the two files may take, in times their size and however small they are: a value of
/// a JSON document is 32 bytes in memory and may be two in the file.
const READ: usize = 16;
const READ_LEAST: usize = 256 << 10;
/// The same with the adapter put into the model: besides, its tensors and what belongs to each of
/// its modules.
const LOAD: usize = 32;
const LOAD_LEAST: usize = 512 << 10;

/// A value of a JSON document is replaced by an odd one, or a key renamed.
fn mutate_json(value: &mut Value, random: &mut Random) {
    let odd = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(u64::MAX),
        json!(65_536),
        json!(""),
        json!("("),
        json!(".*"),
        json!("all-linear"),
        json!([]),
        json!([""]),
        json!({}),
        json!({"a": [true]}),
        json!([[[[]]]]),
        json!(true),
    ];
    match value {
        Value::Object(map) if !map.is_empty() && random.below(4) > 0 => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = &keys[random.below(keys.len())];
            if random.below(10) == 0 {
                let value = map.remove(key).unwrap_or_default();
                map.insert(format!("{key}_"), value);
            } else if let Some(inner) = map.get_mut(key) {
                mutate_json(inner, random);
            }
        }
        Value::Array(values) if !values.is_empty() && random.below(3) > 0 => {
            let index = random.below(values.len());
            mutate_json(&mut values[index], random);
        }
        other => *other = odd[random.below(odd.len())].clone(),
    }
}

/// Whatever bytes stand in the two files: an error or another adapter, but no panic, and no
/// allocation out of proportion to them. `TUNEBOOK_FUZZ` sets the number of mutations for each
/// type.
#[test]
fn mutated_adapters_neither_panic_nor_take_memory() {
    let rounds =
        std::env::var("TUNEBOOK_FUZZ").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(400);
    let model = tiny();
    let base = logits(&model, &IDS);
    // The matrix products keep a workspace of the size of the processor's cache, taken once and for
    // all: it is no part of what a file costs.
    load_copy(&model, copy_of_adapter("dora/final").path()).unwrap();
    model.delete_adapter("a").unwrap();
    let mut random = Random::new(0x5eed);
    let (mut loaded, mut refused) = (0, 0);
    let (mut most_read, mut most_whole) = (0, 0);
    for case in [
        "dora/final",
        "adalora/final",
        "adalora/initial",
        "ia3/final",
        "tied/final",
        "patterns/final",
    ] {
        let dir = copy_of_adapter(case);
        let (config, tensors) = (dir.path().join(CONFIG_FILE), dir.path().join(TENSORS_FILE));
        let (good_config, good_tensors) =
            (std::fs::read(&config).unwrap(), std::fs::read(&tensors).unwrap());
        for round in 0..rounds {
            let (mut bytes, mut data) = (good_config.clone(), good_tensors.clone());
            match round % 4 {
                0 | 1 => {
                    let mut json: Value = serde_json::from_slice(&good_config).unwrap();
                    (0..=random.below(3)).for_each(|_| mutate_json(&mut json, &mut random));
                    bytes = serde_json::to_vec(&json).unwrap();
                }
                2 => {
                    // The header, mostly: the values would be a coin's throw of good numbers.
                    let end = if random.below(3) == 0 { data.len() } else { data.len().min(2000) };
                    for _ in 0..=random.below(4) {
                        let at = random.below(end);
                        data[at] = random.below(256) as u8;
                    }
                    if random.below(4) == 0 {
                        data.truncate(random.below(data.len()));
                    }
                }
                _ => {
                    for _ in 0..=random.below(4) {
                        let at = random.below(bytes.len());
                        bytes[at] = random.below(256) as u8;
                    }
                    if random.below(8) == 0 {
                        bytes.truncate(random.below(bytes.len()));
                    }
                }
            }
            std::fs::write(&config, &bytes).unwrap();
            std::fs::write(&tensors, &data).unwrap();
            let size = bytes.len() + data.len();
            let (_, read) = peak_bytes(|| AdapterFiles::read(dir.path()).is_ok());
            let (outcome, whole) = peak_bytes(|| load_copy(&model, dir.path()));
            for (taken, bound, most) in [
                (read, READ * size + READ_LEAST, &mut most_read),
                (whole, LOAD * size + LOAD_LEAST, &mut most_whole),
            ] {
                assert!(
                    taken <= bound,
                    "{taken} bytes for files of {size}: {}",
                    String::from_utf8_lossy(&bytes)
                );
                *most = taken.max(*most);
            }
            match outcome {
                Ok(()) => {
                    loaded += 1;
                    model.delete_adapter("a").unwrap();
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.is_empty());
                }
            }
            assert!(model.adapters().is_empty());
        }
    }
    assert_eq!(logits(&model, &IDS), base);
    eprintln!(
        "{loaded} loaded, {refused} refused; at most {most_read} bytes to read them, {most_whole} with the adapter in the model"
    );
    assert!(refused > loaded / 4 && loaded > 0, "{loaded} loaded, {refused} refused");
}
