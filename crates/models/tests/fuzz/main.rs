//! Mutated files: an error or another model, but no panic, and no allocation out of proportion to
//! the file.
//!
//! `TUNEBOOK_FUZZ_SECS` sets the time for each kind of file (3 by default), `TUNEBOOK_FUZZ_SEED`
//! the seed; a failure names it.
//!
//! A binary apart from `it`: its allocator counts the memory of the whole process, which under
//! `cargo test` the other tests would share.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tunebook_models::{Device, Digits, Gguf, GgufType, Model, Tokenizer};
use tunebook_testing::Random;
use tunebook_testing::allocator::{Counting, peak_bytes};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counts are the whole process's.
static ALONE: Mutex<()> = Mutex::new(());

/// What may be allocated for a file: so many times its bytes, and so much however small it is.
#[derive(Clone, Copy)]
struct Bound {
    times: usize,
    least: usize,
}

/// What is kept of a GGUF file's header and the table of its tensors, by `Gguf::open`. Eight bytes
/// for a number of one; the path, and what is said of the fault.
const HEADER: Bound = Bound { times: 8, least: 16 << 10 };
/// A tokenizer. Not the reader's memory but the `tokenizers` crate's: it holds each token and each
/// merge as strings of their own, in several hash maps that have room for twice as many.
const TOKENIZER: Bound = Bound { times: 32, least: 64 << 10 };
/// A whole model: header, tokenizer (which is most of it), the list of tensors that its
/// configuration asks for, and weights as f32.
const MODEL: Bound = Bound { times: 16, least: 256 << 10 };

const NUMBERS: [u64; 12] =
    [0, 1, 2, 31, 255, 65_535, 1 << 20, u32::MAX as u64, 1 << 31, 1 << 40, u64::MAX / 2, u64::MAX];

/// Changes a few places; most of them where `interesting` says the structure is.
fn mutate(random: &mut Random, original: &[u8], interesting: usize) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let end = if random.below(4) == 0 { bytes.len() } else { interesting.min(bytes.len()) };
        let at = random.below(end);
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 | 3 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => bytes.truncate(at),
            5 => {
                let to = (at + random.below(64)).min(bytes.len());
                drop(bytes.drain(at..to));
            }
            _ => {
                let to = (at + random.below(64)).min(bytes.len());
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Tries mutations of a file until the time is over.
///
/// `size` is that of the files beside it.
fn fuzz(
    original: &[u8],
    interesting: usize,
    path: &Path,
    size: usize,
    allowed: Bound,
    attempt: impl Fn(&Path) -> bool,
) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let started = Instant::now();
    let time = Duration::from_secs(variable("TUNEBOOK_FUZZ_SECS", 3));
    let first =
        variable("TUNEBOOK_FUZZ_SEED", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    // Once as it is: what is made once and for all is there then.
    std::fs::write(path, original).unwrap();
    assert!(attempt(path), "the file itself is read");
    let (mut tried, mut read, mut most, mut times) = (0u64, 0u64, 0, 0f64);
    while started.elapsed() < time {
        let seed = first.wrapping_add(tried).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes = mutate(&mut Random::new(seed), original, interesting);
        // Mapped files must not shrink under the reader.
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, &bytes).unwrap();
        let (ok, taken) = peak_bytes(|| attempt(path));
        read += u64::from(ok);
        let bound = allowed.times * (bytes.len() + size) + allowed.least;
        assert!(
            taken <= bound,
            "{taken} bytes for a file of {}, TUNEBOOK_FUZZ_SEED={}",
            bytes.len(),
            first.wrapping_add(tried)
        );
        most = most.max(taken);
        times = times
            .max(taken.saturating_sub(allowed.least) as f64 / (bytes.len() + size).max(1) as f64);
        tried += 1;
    }
    eprintln!(
        "{}: {tried} files, {read} of them read, at most {most} bytes in memory, {times:.1} times the file's beyond the least; seed {first}",
        path.display()
    );
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn loads(path: &Path) -> bool {
    Model::load(path, &Device::Cpu).is_ok()
}

#[test]
fn mutated_gguf_models() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-tied", "llama-untied"] {
        let path = folder.path().join(format!("{name}.gguf"));
        let model = Model::load(golden("logits").join(name), &Device::Cpu).unwrap();
        model.save_gguf(&path, GgufType::Q8_0).unwrap();
        let original = std::fs::read(&path).unwrap();
        // Keys of the model come first, the tensors' table and the weights last.
        fuzz(&original, 2500, &path, 0, HEADER, |path| Gguf::open(path).is_ok());
        fuzz(&original, 2500, &path, 0, MODEL, loads);
    }
}

/// A GGUF header of keys, each with its type, what stands before its value, and the value.
fn header(keys: impl ExactSizeIterator<Item = (String, u32, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, kind, value) in keys {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    bytes
}

/// What takes the most memory for its bytes.
#[test]
fn dense_gguf_headers() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dense.gguf");
    let list = |kind: u32, length: u64, values: Vec<u8>| {
        let value = [&kind.to_le_bytes()[..], &length.to_le_bytes(), &values].concat();
        header([("list".to_owned(), 9, value)].into_iter())
    };
    const N: u64 = 200_000;
    let n = N as usize;
    let empty_list = [&[0u8; 4][..], &[0u8; 8]].concat();
    for (name, bytes, read) in [
        ("numbers of a byte", list(0, N, vec![1; n]), true),
        ("flags", list(7, N, vec![1; n]), true),
        ("numbers of four bytes", list(4, N, vec![1; 4 * n]), true),
        ("empty texts", list(8, N, vec![0; 8 * n]), true),
        ("empty lists", list(9, N, empty_list.repeat(n)), true),
        ("keys", header((0..n).map(|i| (format!("{i:04x}"), 0, vec![1]))), true),
        ("a false length", list(0, u64::MAX, vec![1; n]), false),
        ("one value too many", list(4, N + 1, vec![1; 4 * n]), false),
        ("a key as long as the file", header([("x".repeat(n), 9, vec![])].into_iter()), false),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let (ok, taken) = peak_bytes(|| Gguf::open(&path).is_ok());
        eprintln!(
            "{name}: {taken} bytes for {}, {:.1} times",
            bytes.len(),
            taken as f64 / bytes.len() as f64
        );
        assert_eq!(ok, read, "{name}");
        assert!(
            taken <= HEADER.times * bytes.len() + HEADER.least,
            "{name}: {taken} for {}",
            bytes.len()
        );
    }
}

#[test]
fn mutated_gguf_vocabularies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    for name in ["llama", "gemma"] {
        let original =
            std::fs::read(golden("tokenizer/families").join(name).join("vocabulary.gguf")).unwrap();
        let read = |path: &Path| {
            let Ok(file) = Gguf::open(path) else { return false };
            let Ok(tokenizer) = Tokenizer::from_gguf(&file, Digits::default()) else {
                return false;
            };
            // A token may be missing; it must not matter how.
            let ids = tokenizer.encode("Some text 12, naïve 😀").unwrap_or_default();
            tokenizer.decode(&ids).is_ok()
        };
        fuzz(&original, original.len(), &path, 0, HEADER, |path| Gguf::open(path).is_ok());
        fuzz(&original, original.len(), &path, 0, TOKENIZER, read);
    }
}

#[test]
fn mutated_configs() {
    for name in ["llama3", "gemma3", "phi3-longrope", "falcon-7b", "gpt2", "qwen2"] {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden("logits").join(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let path = folder.path().join("config.json");
        let original = std::fs::read(&path).unwrap();
        let weights =
            std::fs::metadata(folder.path().join("model.safetensors")).unwrap().len() as usize;
        fuzz(&original, original.len(), &path, weights, MODEL, |path| {
            loads(path.parent().unwrap())
        });
    }
}

#[test]
fn mutated_safetensors_and_indices() {
    for (name, file) in
        [("llama-tied", "model.safetensors"), ("llama-untied", "model.safetensors.index.json")]
    {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden("logits").join(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let path = folder.path().join(file);
        let original = std::fs::read(&path).unwrap();
        fuzz(&original, 2500.min(original.len()), &path, 500_000, MODEL, |path| {
            loads(path.parent().unwrap())
        });
    }
}
