//! A disk that is full or cannot be written: the run goes on, and says what is not recorded.

use std::path::Path;
use std::process::Command;

use tunebook_runs::Registry;
use tunebook_testing::skip;
use tunebook_tune::{Callback, StepRecord};

use crate::common::*;

const FOLDER: &str = "TUNEBOOK_TEST_SMALL_FILES";

/// A file system of its own; gone with it.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path());
        match mount.output() {
            Ok(done) if done.status.success() => Some(Self(dir)),
            Ok(done) => {
                skip(format!("no file system to mount: {}", String::from_utf8_lossy(&done.stderr)));
                None
            }
            Err(error) => {
                skip(format!("no `mount`: {error}"));
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn read_only(&self) {
        let mut mount = Command::new("mount");
        let done = mount.args(["-o", "remount,ro"]).arg(self.path()).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Fills the disk after some steps.
struct Fill(std::path::PathBuf);

impl Callback for Fill {
    fn on_step(&mut self, record: &StepRecord) -> tunebook_tune::Result<()> {
        if record.step == 2 {
            let mut file = std::fs::File::create(&self.0).unwrap();
            let block = [0; 256];
            while std::io::Write::write_all(&mut file, &block).is_ok() {}
        }
        Ok(())
    }
}

#[test]
fn on_a_full_disk_the_run_goes_on() {
    let Some(disk) = Disk::new("size=2m") else { return };
    let registry = Registry::open(disk.path().join("registry")).unwrap();
    let (before, ..) = run(&registry, "before");
    let model = model_with("support");
    let record = registry.record("full").with_data(&split());
    let split = split();
    let trainer = tunebook_tune::Trainer::new(&model, &args())
        .with_callback(record.clone())
        .with_callback(Fill(disk.path().join("filler")));
    let trained = trainer.train((&examples(&split.train), &examples(&split.validation))).unwrap();
    assert_eq!(trained.steps.len(), 6);
    let warnings = record.warnings().join("\n");
    assert!(warnings.contains("goes on, and is not recorded from here on"), "{warnings}");
    assert!(warnings.contains("No space left"), "{warnings}");
    assert!(warnings.contains("the adapter `support` is not in the registry"), "{warnings}");
    // The table shows what there is.
    let runs = Registry::open(registry.root()).unwrap().runs().unwrap();
    assert_eq!(runs.height(), 2);
    assert_eq!(text(&runs, "name", 0), "full");
    assert_ne!(text(&runs, "state", 0), "finished");
    // Once there is room the adapter can be added, and nothing of before is lost.
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    registry.add_adapter(&model, "support").unwrap();
    assert!(registry.adapter_folder(&before).is_ok());
    let whole = registry.dump().unwrap();
    registry.rebuild().unwrap();
    assert_eq!(registry.dump().unwrap(), whole);
}

#[test]
fn on_a_read_only_disk_the_run_goes_on_and_the_table_is_read() {
    let Some(disk) = Disk::new("size=4m") else { return };
    let registry = Registry::open(disk.path().join("registry")).unwrap();
    run(&registry, "before");
    let whole = registry.dump().unwrap();
    drop(registry);
    disk.read_only();
    let registry = Registry::open(disk.path().join("registry")).unwrap();
    assert_eq!(registry.dump().unwrap(), whole);
    let model = model_with("support");
    let record = registry.record("read-only").with_data(&split());
    assert_eq!(train(&model, &record, &args()).steps.len(), 6);
    let warnings = record.warnings().join("\n");
    assert!(warnings.contains("goes on, and is not recorded"), "{warnings}");
    assert_eq!(registry.runs().unwrap().height(), 1);
    let said = registry.note("before", "x").unwrap_err().to_string();
    assert!(said.contains("notes.jsonl"), "{said}");
    assert!(registry.promote_forced("support", "before", "x").is_err());
}

/// A limit on the size of files, which every user may set: the disk is full for this process.
#[test]
fn a_log_that_cannot_grow_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disks::run_with_small_files", "--ignored", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{told}{}", String::from_utf8_lossy(&child.stderr));
    assert!(told.contains("goes on, and is not recorded from here on"), "{told}");
    let registry = Registry::open(dir.path()).unwrap();
    let runs = registry.runs().unwrap();
    assert_eq!(text(&runs, "state", 0), "unfinished");
    // Whole lines only.
    assert_eq!(runs.column("damaged").unwrap().i64().unwrap().get(0), Some(0));
    assert!(runs.column("steps").unwrap().i64().unwrap().get(0) > Some(0));
}

/// The line that says how many are missing has room, and the next one has none.
#[test]
fn lines_that_are_missing_are_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disks::steps_without_room", "--ignored", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{told}{}", String::from_utf8_lossy(&child.stderr));
    let runs = Registry::open(dir.path()).unwrap().runs().unwrap();
    assert_eq!(runs.column("missing").unwrap().i64().unwrap().get(0), Some(3), "{told}");
    assert_eq!(runs.column("steps").unwrap().i64().unwrap().get(0), Some(4), "{told}");
}

/// The other process of the test above.
#[test]
#[ignore = "a process that another test starts"]
fn steps_without_room() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let registry = Registry::open(folder).unwrap();
    let mut record = registry.record("small");
    let model = model_with("support");
    let template = template(&model);
    record.on_begin(&template, &model).unwrap();
    let log = registry.root().join("runs").join(record.id()).join("log.jsonl");
    let room = |bytes: u64| {
        let rlim_cur = std::fs::metadata(&log).unwrap().len() + bytes;
        let limit = libc::rlimit { rlim_cur, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: `limit` outlives the call; a signal that is ignored calls nothing.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
    };
    let mut step = template.steps[0].clone();
    for (number, bytes) in [(1, 0), (2, 100), (3, 100), (4, 1 << 20)] {
        room(bytes);
        step.step = number;
        record.on_step(&step).unwrap();
    }
}

/// The other process of the test above.
#[test]
#[ignore = "a process that another test starts"]
fn run_with_small_files() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let registry = Registry::open(folder).unwrap();
    let record = registry.record("small");
    let model = model_with("support");
    let limit = libc::rlimit { rlim_cur: 6000, rlim_max: 6000 };
    // SAFETY: `limit` outlives the call; a signal that is ignored calls nothing.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let run =
        train(&model, &record, &tunebook_tune::TrainingArgs { max_steps: Some(40), ..args() });
    assert_eq!(run.steps.len(), 40);
    assert!(!record.warnings().is_empty());
}
