//! Mutated files: an error or another model, but no panic, and no allocation out of proportion to the file.
//!
//! `TUNEBOOK_FUZZ_SECS` sets the time for each kind of file (3 by default), `TUNEBOOK_FUZZ_SEED` the seed; a failure names it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tunebook_models::{Device, Digits, Gguf, GgufType, Model, Tokenizer};

/// Counts what is alive, and keeps the most that ever was.
struct Counting;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    let now = ALIVE.fetch_add(by, Relaxed) + by;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: the system's allocator does the work; beside it only numbers change.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        ALIVE.fetch_sub(layout.size(), Relaxed);
        grown(new);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counts are the whole process's.
static ALONE: Mutex<()> = Mutex::new(());

/// A number of the metadata takes up to 32 bytes in memory and one in the file, and a list that grows has room for twice as many; the
/// tokenizer holds each token and merge several times.
const TIMES: usize = 100;
/// What a model takes however small its file is: thread pools, compiled regular expressions, rotation tables.
const AT_LEAST: usize = 48 << 20;

/// Xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

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
fn fuzz(original: &[u8], interesting: usize, path: &Path, size: usize, attempt: impl Fn(&Path) -> bool) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let started = Instant::now();
    let time = Duration::from_secs(variable("TUNEBOOK_FUZZ_SECS", 3));
    let first = variable("TUNEBOOK_FUZZ_SEED", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    // Once as it is: what is made once and for all is there then.
    std::fs::write(path, original).unwrap();
    assert!(attempt(path), "the file itself is read");
    let (mut tried, mut read, mut most) = (0u64, 0u64, 0);
    while started.elapsed() < time {
        let seed = first.wrapping_add(tried).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes = mutate(&mut Random(seed), original, interesting);
        // Mapped files must not shrink under the reader.
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, &bytes).unwrap();
        let before = ALIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        read += u64::from(attempt(path));
        let taken = PEAK.load(Relaxed).saturating_sub(before);
        let bound = TIMES * (bytes.len() + size) + AT_LEAST;
        assert!(
            taken <= bound,
            "{taken} bytes for a file of {}, TUNEBOOK_FUZZ_SEED={}",
            bytes.len(),
            first.wrapping_add(tried)
        );
        most = most.max(taken);
        tried += 1;
    }
    eprintln!(
        "{}: {tried} files, {read} of them read, at most {most} bytes in memory; seed {first}",
        path.display()
    );
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn loads(path: &Path) -> bool {
    Model::load(path.to_str().unwrap(), &Device::Cpu).is_ok()
}

#[test]
fn mutated_gguf_models() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-tied", "llama-untied"] {
        let path = folder.path().join(format!("{name}.gguf"));
        let model = Model::load(golden("logits").join(name).to_str().unwrap(), &Device::Cpu).unwrap();
        model.save_gguf(path.to_str().unwrap(), GgufType::Q8_0).unwrap();
        let original = std::fs::read(&path).unwrap();
        // Keys of the model come first, the tensors' table and the weights last.
        fuzz(&original, 2500, &path, 0, loads);
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
            let Ok(tokenizer) = Tokenizer::from_gguf(&file, Digits::default()) else { return false };
            // A token may be missing; it must not matter how.
            let ids = tokenizer.encode("Some text 12, naïve 😀").unwrap_or_default();
            tokenizer.decode(&ids).is_ok()
        };
        fuzz(&original, original.len(), &path, 0, read);
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
        let weights = std::fs::metadata(folder.path().join("model.safetensors")).unwrap().len() as usize;
        fuzz(&original, original.len(), &path, weights, |path| loads(path.parent().unwrap()));
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
        fuzz(&original, 2500.min(original.len()), &path, 500_000, |path| loads(path.parent().unwrap()));
    }
}
