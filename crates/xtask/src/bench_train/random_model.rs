//! A model folder with weights that were never trained: what a step costs does not depend on their
//! values.
//!
//! Every tensor is drawn from its own name, uniformly, in bf16; norms are 1. So the file is the
//! same everywhere, and both sides load the same one.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, json};

use super::shape::Shape;
use crate::bench::rows::write;
use crate::error::{Error, Result};

/// Standard deviation of the weights: Llama's `initializer_range` of 0.02 at 2048, and such that a
/// small model's layers do as much to their input.
fn deviation(shape: &Shape) -> f32 {
    0.02 * (2048.0 / shape.hidden_size as f32).sqrt()
}

/// The folder of such a model below `target/tunebook`, written when it is not there.
///
/// # Errors
/// A file that cannot be written: the largest model takes 13.5 GB.
pub(crate) fn ensure(target: &Path, golden: &Path, shape: &Shape) -> Result<PathBuf> {
    let folder = target.join("tunebook/random-models").join(shape.name);
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    println!("writing random weights of the shape {} into {}, once", shape.name, folder.display());
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    // Our loader wants a tokenizer in the folder of the weights; no text is trained on.
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let from = golden.join("lora_tiny/model").join(name);
        std::fs::copy(&from, folder.join(name)).map_err(Error::io("copy", &from))?;
    }
    let part = folder.join("model.safetensors.part");
    if let Err(error) = weights(&part, shape) {
        // A part of it would keep the disk full.
        let _ = std::fs::remove_file(&part);
        return Err(Error::io("write", &part)(error));
    }
    std::fs::rename(&part, folder.join("model.safetensors")).map_err(Error::io("rename", &part))?;
    // Last: the folder is whole when it has one.
    write(&folder.join("config.json"), &shape.config())?;
    Ok(folder)
}

/// One safetensors file: the length of the header, the header, the values. All cores draw numbers,
/// a tensor each at a time.
fn weights(path: &Path, shape: &Shape) -> std::io::Result<()> {
    let tensors = shape.tensors();
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    let mut places = Vec::with_capacity(tensors.len());
    for (name, dims) in &tensors {
        let end = at + 2 * dims.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": dims, "data_offsets": [at, end]}),
        );
        places.push(at);
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let start = 8 + header.len();
    let next = &AtomicUsize::new(0);
    let (tensors, places) = (&tensors, &places);
    let work = move || -> std::io::Result<()> {
        let mut file = File::options().write(true).open(path)?;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((name, dims)) = tensors.get(index) else { return Ok(()) };
            let largest = (dims.len() > 1).then(|| deviation(shape) * 3f32.sqrt());
            file.seek(SeekFrom::Start((start + places[index]) as u64))?;
            values(&mut file, name, dims.iter().product(), largest)?;
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(std::io::Error::other("a thread that writes weights ended early")),
        })
    })
}

/// Numbers between ±`largest`, or ones, from the file's place on.
fn values(
    file: &mut impl Write,
    name: &str,
    count: usize,
    largest: Option<f32>,
) -> std::io::Result<()> {
    const NUMBERS: usize = 1 << 20;
    let mut random = Random::new(name);
    let mut left = count;
    let mut bytes = Vec::with_capacity(2 * NUMBERS.min(count));
    while left > 0 {
        bytes.clear();
        let numbers = left.min(NUMBERS);
        match largest {
            None => (0..numbers).for_each(|_| bytes.extend(bf16(1.0))),
            Some(largest) => random.fill(&mut bytes, numbers, largest),
        }
        file.write_all(&bytes)?;
        left -= numbers;
    }
    Ok(())
}

/// FNV-1a of a tensor's name, then SplitMix64.
struct Random(u64);

impl Random {
    fn new(name: &str) -> Self {
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    fn fill(&mut self, bytes: &mut Vec<u8>, count: usize, largest: f32) {
        let mut left = count;
        while left > 0 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            // Four numbers of 16 bits each.
            for part in 0..left.min(4) {
                let unit = f32::from((z >> (16 * part)) as u16) / 32767.5 - 1.0;
                bytes.extend(bf16(unit * largest));
            }
            left -= left.min(4);
        }
    }
}

/// Cut off, not rounded: no value is better than another here.
fn bf16(value: f32) -> [u8; 2] {
    ((value.to_bits() >> 16) as u16).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::shape::TINY;
    use super::*;

    #[test]
    fn the_file_holds_every_tensor_and_numbers_of_the_right_size() {
        let folder =
            std::env::temp_dir().join(format!("tunebook-random-model-{}", std::process::id()));
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let made = ensure(&folder, &golden, &TINY).and_then(|path| {
            std::fs::read(path.join("model.safetensors")).map_err(Error::io("read", &path))
        });
        let again = ensure(&folder, &golden, &TINY).is_ok();
        let _ = std::fs::remove_dir_all(&folder);
        let bytes = made.ok().unwrap_or_default();
        assert!(again && bytes.len() > 8);
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default()) as usize;
        let header: serde_json::Value =
            serde_json::from_slice(&bytes[8..8 + length]).unwrap_or_default();
        let values = &bytes[8 + length..];
        let parameters: usize =
            TINY.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
        assert_eq!(values.len(), 2 * parameters);
        let of = |name: &str| -> Vec<f32> {
            let at = |index: usize| {
                header[name]["data_offsets"][index].as_u64().map_or(0, |offset| offset as usize)
            };
            let pairs = values[at(0)..at(1)].chunks(2);
            pairs
                .map(|pair| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16))
                .collect()
        };
        assert!(of("model.norm.weight").iter().all(|value| *value == 1.0));
        let head = of("lm_head.weight");
        let mean = head.iter().sum::<f32>() / head.len() as f32;
        let found =
            (head.iter().map(|value| value * value).sum::<f32>() / head.len() as f32).sqrt();
        assert!(
            mean.abs() < 3e-3 && (found / deviation(&TINY) - 1.0).abs() < 0.02,
            "{mean} {found}"
        );
        assert_ne!(head, of("model.embed_tokens.weight"));
    }
}
