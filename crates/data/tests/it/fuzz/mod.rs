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
//! TUNEBOOK_FUZZ_SECS=600 TUNEBOOK_FUZZ_KEEP=1 \
//!     cargo test --package tunebook-data --test it fuzz -- --nocapture
//! ```

mod damage;
mod hub;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tunebook_data::{Cleaning, Dataset};
use xxhash_rust::xxh3::xxh3_64;

use damage::{Random, next};
use hub::HubFolder;

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
/// What is kept for good is small.
const MAX_KEPT_BYTES: usize = 4 << 10;
/// One file may take this long.
const PATIENCE: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
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

/// What is being read, for the watchdog.
struct Watched {
    started: Mutex<Option<Instant>>,
    executions: AtomicU64,
}

struct Fuzzer {
    folder: tempfile::TempDir,
    hub: HubFolder,
    watched: Arc<Watched>,
}

impl Fuzzer {
    fn new(hub: HubFolder) -> Self {
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
        Self { folder, hub, watched }
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
            "hub" => self.hub.answer(bytes),
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
    let Some(hub) = hub::in_child("fuzz::the_corpus_is_read_without_a_panic") else { return };
    let fuzzer = Fuzzer::new(hub);
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
    let Some(hub) = hub::in_child("fuzz::damaged_files_are_read_without_a_panic") else { return };
    let secs = std::env::var("TUNEBOOK_FUZZ_SECS").ok().and_then(|secs| secs.parse::<u64>().ok());
    let keep = std::env::var_os("TUNEBOOK_FUZZ_KEEP").is_some();
    // polars' Parquet reader panics at some files, which is caught where it is called: those need
    // no news here.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    // A long run tries what no earlier one did.
    let seed = secs.map_or(1, |_| std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs()));
    let mut random = Random(seed);
    let fuzzer = Fuzzer::new(hub);
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
