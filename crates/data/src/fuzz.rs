//! A fuzzer of the readers: files are damaged at random, with the structure of their format in
//! mind, and read. No file may end in a panic, take long, or make the reader say two different
//! things about itself.
//!
//! `tests/corpus/KIND/` holds the files to begin with, and those that a run found to be answered in
//! a new way: the answers (rows, types, reasons, errors) stand in for the branches that a compiler
//! would count, so no nightly toolchain is needed. Files that once panicked stay in
//! `tests/corpus/crashes/KIND/`. An ordinary run reads all of them and a few thousand damaged ones.
//! A long one:
//!
//! ```text
//! TUNEBOOK_FUZZ_SECS=600 TUNEBOOK_FUZZ_KEEP=1 cargo test --package tunebook-data --lib fuzz -- --nocapture
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polars::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::read::hub::tests as hub;
use crate::{Cleaning, Dataset};

/// Folder of the corpus, and what the file is called when it is read.
const KINDS: [(&str, &str); 8] = [
    ("jsonl", "input.jsonl"),
    ("json", "input.json"),
    ("csv", "input.csv"),
    ("parquet", "input.parquet"),
    ("gz", "input.jsonl.gz"),
    ("zst", "input.csv.zst"),
    ("text", "input.txt"),
    ("hub", "index.json"),
];
/// Executions of an ordinary run.
const EXECUTIONS: u64 = 3000;
/// A larger file says nothing new.
const MAX_BYTES: usize = 64 << 10;
/// What is kept for good is small.
const MAX_KEPT_BYTES: usize = 4 << 10;
/// One file may take this long.
const PATIENCE: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Pieces that the formats give a meaning to.
const PIECES: [&[u8]; 60] = [
    b"\"",
    b"\"\"",
    b"\\\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[{",
    b"}]",
    b",",
    b":",
    b";",
    b"\t",
    b"|",
    b"\n",
    b"\r\n",
    b"\r",
    b"\n\n",
    b" ",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98",
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1e309",
    b"1e-400",
    b"99999999999999999999999",
    b"0.1",
    b"NaN",
    b"prompt",
    b"completion",
    b"\"prompt\":",
    b"\"completion\":\"",
    b"\"text\":",
    b"\"messages\":[",
    b"\"conversations\":[",
    b"{\"role\":\"user\",\"content\":\"a\"}",
    b"{\"from\":\"gpt\",\"value\":\"b\"}",
    b"\"instruction\":",
    b"\"input\":",
    b"\"output\":",
    b"\"question\":\"",
    b"\"answer\":\"",
    b"PAR1",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"PK\x03\x04",
    b"%PDF",
    b"../",
    b"\"rfilename\":",
];

/// Damages bytes in one of the ways in which files are damaged.
fn damage(bytes: &mut Vec<u8>, random: &mut Random, others: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    let end = at + random.below((bytes.len() - at).min(64) + 1);
    match random.below(14) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => drop(bytes.drain(at..end)),
        3 => bytes.truncate(at),
        4 | 5 => drop(bytes.splice(at..at, random.one(&PIECES).iter().copied())),
        6 => drop(bytes.splice(at..end, random.one(&PIECES).iter().copied())),
        7 => {
            let copy = bytes[at..end].to_vec();
            let times = 1 + random.below(8);
            drop(bytes.splice(at..at, copy.repeat(times)));
        }
        8 => {
            // Lines change places, are doubled or go.
            let mut lines: Vec<Vec<u8>> =
                bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
            let (a, b) = (random.below(lines.len()), random.below(lines.len()));
            match random.below(3) {
                0 => lines.swap(a, b),
                1 => lines.insert(a, lines[b].clone()),
                _ => drop(lines.remove(a)),
            }
            *bytes = lines.join(&b'\n');
        }
        9 => {
            // A piece of another file.
            let other = &others[random.below(others.len())];
            let from = random.below(other.len() + 1);
            let to = from + random.below((other.len() - from).min(256) + 1);
            drop(bytes.splice(at..at, other[from..to].iter().copied()));
        }
        10 => {
            // A number of a binary format.
            let value =
                [0u32, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX]
                    [random.below(10)];
            let width = 1 << random.below(3);
            for (place, byte) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()).take(width) {
                *place = byte;
            }
        }
        11 => {
            // Brackets that go deep.
            let (open, depth) =
                (random.one(&[&b"["[..], b"{\"a\":", b"[{\"a\":["]), 1 << random.below(9));
            drop(bytes.splice(at..at, open.repeat(depth)));
        }
        12 => {
            // One of the fields of a line goes, or stands twice.
            let field =
                bytes[at..].split(|byte| b",:\n".contains(byte)).next().unwrap_or_default().len();
            let piece = bytes[at..at + field].to_vec();
            match random.below(2) {
                0 => drop(bytes.drain(at..at + field)),
                _ => drop(bytes.splice(at..at, [piece, b",".to_vec()].concat())),
            }
        }
        _ => bytes.rotate_left(at),
    }
    bytes.truncate(MAX_BYTES);
}

fn damaged(seed: &[u8], random: &mut Random, others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 << random.below(4) {
        damage(&mut bytes, random, others);
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of columns of any type, so that damage falls into every part of the format.
fn parquet(random: &mut Random) -> Vec<u8> {
    let rows = random.below(12);
    let mut columns = Vec::new();
    for name in ["prompt", "completion", "text", "question", "answer", "messages", "n"] {
        if random.below(3) == 0 {
            continue;
        }
        let texts: Vec<Option<String>> = (0..rows)
            .map(|row| {
                (random.below(5) > 0)
                    .then(|| random.one(&["a", "ß🙂", "", "longer text"]).repeat(row))
            })
            .collect();
        let numbers: Vec<Option<i64>> =
            (0..rows).map(|_| (random.below(5) > 0).then(|| random.next() as i64)).collect();
        columns.push(match random.below(6) {
            0 => Column::new(name.into(), numbers),
            1 => Column::new(
                name.into(),
                numbers.iter().map(|n| n.map(|n| n as f64)).collect::<Vec<_>>(),
            ),
            2 => Column::new(
                name.into(),
                numbers.iter().map(|n| n.map(|n| n % 2 == 0)).collect::<Vec<_>>(),
            ),
            3 => {
                let lists = texts.iter().map(|text| Series::new("".into(), [text.clone()]));
                Column::new(name.into(), lists.collect::<Vec<_>>())
            }
            _ => Column::new(name.into(), texts),
        });
    }
    let mut bytes = Vec::new();
    let compression = [
        ParquetCompression::Uncompressed,
        ParquetCompression::Snappy,
        ParquetCompression::Zstd(None),
    ];
    let written = DataFrame::new(rows, columns).and_then(|mut frame| {
        ParquetWriter::new(&mut bytes)
            .with_compression(compression[random.below(3)])
            .with_row_group_size(Some(1 + random.below(6)))
            .finish(&mut frame)
    });
    written.map(|_| bytes).unwrap_or_else(|_| b"PAR1PAR1".to_vec())
}

/// The next file of a kind: of the structure where that is what is wanted, then its bytes.
fn next(kind: &str, random: &mut Random, seeds: &[Vec<u8>], plain: &[Vec<u8>]) -> Vec<u8> {
    let seed = &seeds[random.below(seeds.len())];
    match kind {
        "gz" | "zst" if random.below(3) > 0 => {
            let mut inner = Vec::new();
            let read = match kind {
                "gz" => flate2::read::MultiGzDecoder::new(seed.as_slice())
                    .take(1 << 20)
                    .read_to_end(&mut inner),
                _ => zstd::stream::read::Decoder::new(seed.as_slice())
                    .and_then(|decoder| decoder.take(1 << 20).read_to_end(&mut inner)),
            };
            if read.is_err() && inner.is_empty() {
                inner.clone_from(&plain[random.below(plain.len())]);
            }
            let inner = damaged(&inner, random, plain);
            let mut bytes = if kind == "gz" {
                gzip(&inner)
            } else {
                zstd::encode_all(inner.as_slice(), 1).unwrap()
            };
            if random.below(4) == 0 {
                damage(&mut bytes, random, seeds);
            }
            bytes
        }
        "parquet" => {
            let mut bytes = if random.below(3) == 0 { parquet(random) } else { seed.clone() };
            for _ in 0..1 + random.below(3) {
                // The index at the end says what the rest is.
                let kept = if random.below(2) == 0 { bytes.len() / 2 } else { 0 };
                let mut rest = bytes.split_off(kept);
                damage(&mut rest, random, seeds);
                bytes.extend(rest);
            }
            if random.below(4) > 0 && bytes.len() > 8 {
                let end = bytes.len() - 4;
                bytes[end..].copy_from_slice(b"PAR1");
            }
            bytes
        }
        _ => damaged(seed, random, plain),
    }
}

/// The beginning of a message, up to what is quoted from the file, without numbers.
fn gist(message: &str, path: &Path) -> String {
    let message =
        message.replace(&format!("{path:?}"), "FILE").replace(&path.display().to_string(), "FILE");
    let fixed = message.split(['"', '\'', '`', '[', '{']).next().unwrap_or_default();
    fixed.chars().filter(|c| c.is_alphabetic() || *c == ' ').take(60).collect()
}

/// Reads a file and checks what is said of it; the parts of the answer, each in short.
fn answer(path: &Path, thorough: bool) -> Vec<String> {
    let dataset = match Dataset::read(path) {
        Ok(dataset) => dataset,
        Err(error) => {
            if thorough && let Ok(scan) = Dataset::scan(path) {
                assert!(scan.profile().is_err(), "a scan reads what a reading refuses");
            }
            return vec![gist(&error.to_string(), path)];
        }
    };
    assert!(!dataset.is_empty(), "a set without a row should be an error");
    let rejected = dataset.rejected();
    let reasons: BTreeSet<String> = rejected
        .column("reason")
        .unwrap()
        .str()
        .unwrap()
        .iter()
        .map(|reason| {
            let reason = reason.unwrap();
            assert!(!reason.is_empty(), "a row was kept aside without a reason");
            gist(reason, path)
        })
        .collect();
    assert_eq!(
        rejected.column("file").unwrap().null_count()
            + rejected.column("line").unwrap().null_count(),
        0
    );
    let mut types: Vec<String> =
        dataset.frame().columns().iter().skip(2).map(|column| column.dtype().to_string()).collect();
    types.sort();
    types.dedup();
    if thorough {
        let scan = Dataset::scan(path).unwrap().profile().unwrap();
        assert_eq!(
            (scan.rows, scan.rejected),
            (dataset.len(), rejected.height()),
            "a scan finds other rows"
        );
        let copy = path.with_file_name("copy.jsonl");
        dataset.write_jsonl(&copy).unwrap();
        assert_eq!(
            Dataset::read(&copy).unwrap().rows(),
            dataset.rows(),
            "what is written is not read back"
        );
        let clean = dataset.clean(&Cleaning::standard()).unwrap();
        assert_eq!(clean.len() + clean.dropped().height(), dataset.len());
        dataset.profile();
    }
    let mut answer = vec![format!("{} rows, {:?}", dataset.len().ilog2(), types)];
    answer.push(gist(&dataset.shape().to_string(), path));
    answer.push(format!("{} reasons", reasons.len()));
    answer.extend(reasons);
    answer
}

/// Reads a repository whose index is these bytes.
fn answer_of_hub(index: &[u8], server: &HubServer, folder: &Path) -> Vec<String> {
    *server.index.lock().unwrap() = index.to_vec();
    let inner = folder.join("inner");
    std::fs::create_dir_all(&inner).unwrap();
    let answer =
        match crate::read::hub::fetch_from(&hub::hub(&server.address, &inner), "owner/set", None) {
            Ok(inputs) => {
                for input in &inputs {
                    let below = input.path.canonicalize().unwrap();
                    assert!(
                        below.starts_with(inner.canonicalize().unwrap()),
                        "a file outside of the cache"
                    );
                }
                format!("{} files", inputs.len())
            }
            Err(error) => gist(&error.to_string(), folder),
        };
    let outside: Vec<_> =
        std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(
        outside.iter().all(|name| name == "inner"),
        "something was written beside the cache: {outside:?}"
    );
    std::fs::remove_dir_all(&inner).unwrap();
    vec![answer]
}

struct HubServer {
    address: String,
    index: Arc<Mutex<Vec<u8>>>,
}

impl HubServer {
    fn start() -> Self {
        let index = Arc::new(Mutex::new(Vec::new()));
        Self { address: hub::serve_index(index.clone()), index }
    }
}

/// What is being read, for the watchdog.
struct Watched {
    started: Mutex<Option<Instant>>,
    executions: AtomicU64,
}

struct Fuzzer {
    folder: tempfile::TempDir,
    server: HubServer,
    watched: Arc<Watched>,
}

impl Fuzzer {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let watched =
            Arc::new(Watched { started: Mutex::new(None), executions: AtomicU64::new(0) });
        let (watch, path) = (watched.clone(), folder.path().to_owned());
        std::thread::spawn(move || {
            while Arc::strong_count(&watch) > 1 {
                std::thread::sleep(Duration::from_millis(500));
                let late = watch
                    .started
                    .lock()
                    .unwrap()
                    .is_some_and(|started| started.elapsed() > PATIENCE);
                if late {
                    // A thread cannot be ended from outside: the file stays where it is, and the
                    // process ends.
                    eprintln!("more than {PATIENCE:?}: see {}", path.display());
                    std::process::abort();
                }
            }
        });
        Self { folder, server: HubServer::start(), watched }
    }

    /// The answer to these bytes, or what the panic said.
    fn run(
        &self,
        kind: &str,
        name: &str,
        bytes: &[u8],
        thorough: bool,
    ) -> Result<Vec<String>, String> {
        self.watched.executions.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.path().join(kind);
        std::fs::create_dir_all(&folder).unwrap();
        *self.watched.started.lock().unwrap() = Some(Instant::now());
        let result = catch_unwind(AssertUnwindSafe(|| match kind {
            "hub" => answer_of_hub(bytes, &self.server, &folder),
            _ => {
                let path = folder.join(name);
                std::fs::write(&path, bytes).unwrap();
                answer(&path, thorough)
            }
        }));
        *self.watched.started.lock().unwrap() = None;
        result.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        })
    }
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// Every file of the corpus, and every one that once ended in a panic.
#[test]
fn the_corpus_is_read_without_a_panic() {
    let fuzzer = Fuzzer::new();
    let mut count = 0;
    for (kind, name) in KINDS {
        let seeds = files(&corpus().join(kind));
        assert!(!seeds.is_empty(), "no corpus of {kind}");
        for (path, bytes) in seeds.into_iter().chain(files(&corpus().join("crashes").join(kind))) {
            count += 1;
            if let Err(panic) = fuzzer.run(kind, name, &bytes, true) {
                panic!("{}: {panic}", path.display());
            }
        }
    }
    assert!(count >= 40, "{count}");
}

#[test]
fn damaged_files_are_read_without_a_panic() {
    let secs = std::env::var("TUNEBOOK_FUZZ_SECS").ok().and_then(|secs| secs.parse::<u64>().ok());
    let keep = std::env::var_os("TUNEBOOK_FUZZ_KEEP").is_some();
    // polars' Parquet reader panics at some files, which is caught where it is called: those need
    // no news here.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    // A long run tries what no earlier one did.
    let seed = secs.map_or(1, |_| std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs()));
    let mut random = Random(seed);
    let fuzzer = Fuzzer::new();
    let mut seeds: HashMap<&str, Vec<Vec<u8>>> = KINDS
        .iter()
        .map(|(kind, _)| (*kind, files(&corpus().join(kind)).into_values().collect()))
        .collect();
    let plain: Vec<Vec<u8>> = ["jsonl", "json", "csv", "text", "hub"]
        .iter()
        .flat_map(|kind| seeds[kind].clone())
        .collect();
    let mut known: HashSet<u64> = HashSet::new();
    let mut is_new = |kind: &str, answer: &[String]| {
        let parts =
            answer.iter().filter(|part| known.insert(xxh3_64(format!("{kind} {part}").as_bytes())));
        parts.count() > 0
    };
    for (kind, name) in KINDS {
        // Those made by hand first, then the small ones: what was found and says nothing that these
        // do not say is not kept.
        let mut known: Vec<(bool, usize, PathBuf, Vec<u8>)> = files(&corpus().join(kind))
            .into_iter()
            .map(|(path, bytes)| {
                (path.to_string_lossy().contains("found-"), bytes.len(), path, bytes)
            })
            .collect();
        known.sort();
        for (found, _, path, bytes) in known {
            let answer = fuzzer.run(kind, name, &bytes, false).unwrap_or_default();
            if !is_new(kind, &answer) && found && keep {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    let (start, mut said) = (Instant::now(), Instant::now());
    let (mut found, mut crashes) = (0, Vec::new());
    let mut of_kind: BTreeMap<&str, u64> = BTreeMap::new();
    for execution in 0.. {
        if secs.map_or(execution >= EXECUTIONS, |secs| start.elapsed().as_secs() >= secs)
            || crashes.len() >= 20
        {
            break;
        }
        // The hub's index goes through a socket, and costs as much as twenty files.
        let at = if execution % 64 == 0 { KINDS.len() - 1 } else { random.below(KINDS.len() - 1) };
        let (kind, name) = KINDS[at];
        let bytes = next(kind, &mut random, &seeds[kind], &plain);
        *of_kind.entry(kind).or_default() += 1;
        match fuzzer.run(kind, name, &bytes, execution % 16 == 0) {
            Ok(answer) => {
                if is_new(kind, &answer) {
                    found += 1;
                    if keep && bytes.len() <= MAX_KEPT_BYTES {
                        let file =
                            corpus().join(kind).join(format!("found-{:016x}", xxh3_64(&bytes)));
                        std::fs::write(file, &bytes).unwrap();
                    }
                    seeds.get_mut(kind).unwrap().push(bytes);
                }
            }
            Err(panic) => {
                let folder = corpus().join("crashes").join(kind);
                std::fs::create_dir_all(&folder).unwrap();
                let file = folder.join(format!("{:016x}", xxh3_64(&bytes)));
                std::fs::write(&file, &bytes).unwrap();
                crashes.push(format!("{}: {panic}", file.display()));
            }
        }
        if secs.is_some() && said.elapsed().as_secs() >= 30 {
            said = Instant::now();
            eprintln!(
                "{:?}: {execution} executions, {found} new answers, {} panics",
                start.elapsed(),
                crashes.len()
            );
        }
    }
    eprintln!(
        "seed {seed}, {:?}: {} executions {of_kind:?}, {found} new answers, {} panics",
        start.elapsed(),
        fuzzer.watched.executions.load(Ordering::Relaxed),
        crashes.len()
    );
    std::panic::set_hook(hook);
    assert!(crashes.is_empty(), "{}", crashes.join("\n"));
    assert!(found > 20, "only {found} new answers: does the damage still reach the readers?");
}
