//! Checkpoints on disk: exact resumption after a kill at any instant, rotation, and files that are
//! refused.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tunebook_models::Model;
use tunebook_testing::{Random, skip};
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, EvalStrategy, Example, Lora, LrRangeTest, Run, SaveStrategy,
    StepRecord, Trainer, TrainingArgs,
};

use crate::common::*;

fn args(dir: &Path) -> TrainingArgs {
    TrainingArgs {
        epochs: 2,
        batch_size: 2,
        gradient_accumulation_steps: 2,
        learning_rate: 1e-2 / 3.0, // no short decimal: it must survive being written down
        eval_strategy: EvalStrategy::Steps(3),
        save_strategy: SaveStrategy::Steps(2),
        output_dir: Some(dir.join("run")),
        ..Default::default()
    }
}

fn model() -> Model {
    let model = tiny();
    let lora =
        Lora { r: 3, lora_dropout: 0.1, target_modules: "all-linear".into(), ..Default::default() };
    model.add_adapter("support", &lora).unwrap();
    model
}

fn pairs() -> Vec<Example> {
    (0..22).map(|i| Example::new(format!("{i}"), format!("{} {}", i * 7 % 11, i * 3))).collect()
}

fn output_dir(dir: &Path) -> String {
    dir.join("run").to_str().unwrap().to_owned()
}

/// All that must be the same of a run: losses, norms, rates, evaluations; and the final tensors as
/// the adapter's file holds them. See [`course`].
type Course = (Vec<[f64; 3]>, Vec<(usize, f64)>, Vec<u8>);

fn course(run: &Run, model: &Model) -> Course {
    let dir = tempfile::tempdir().unwrap();
    let folder = model.save_adapter("support", dir.path()).unwrap();
    (
        run.steps
            .iter()
            .map(|record| [record.loss, record.grad_norm, record.learning_rate])
            .collect(),
        run.evals.iter().map(|record| (record.step, record.loss)).collect(),
        std::fs::read(folder.join("adapter_model.safetensors")).unwrap(),
    )
}

fn whole(dir: &Path) -> Course {
    let model = model();
    let run = Trainer::new(&model, &args(dir)).train((&pairs(), &pairs()[..4])).unwrap();
    assert_eq!(run.steps.len(), 12);
    course(&run, &model)
}

#[test]
fn every_checkpoint_goes_on_to_the_same_end() {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let mut names: Vec<_> = std::fs::read_dir(dir.path().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let wanted = [
        "checkpoint-10",
        "checkpoint-12",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
        "checkpoint-8",
    ];
    assert_eq!(names, wanted, "and nothing temporary is left");
    for step in [2, 6, 10, 12] {
        let run = Run::load(dir.path().join(format!("run/checkpoint-{step}"))).unwrap();
        assert_eq!(run.steps.len(), step);
        let other = tempfile::tempdir().unwrap();
        let model = model();
        let run = Trainer::new(&model, &args(other.path()))
            .resume(&run, (&pairs(), &pairs()[..4]))
            .unwrap();
        assert!(course(&run, &model) == expected, "from step {step}");
    }
    // The adapter beside the state is one like any other.
    let model = tiny();
    model.load_adapter(dir.path().join("run/checkpoint-12"), "support").unwrap();
    assert_eq!(model.active_adapter().as_deref(), Some("support"));
}

#[test]
fn a_run_can_be_saved_by_hand_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine");
    let path = path.to_str().unwrap();
    let model = model();
    let args =
        TrainingArgs { save_strategy: SaveStrategy::No, max_steps: Some(3), ..args(dir.path()) };
    let run = Trainer::new(&model, &args).train(&pairs()).unwrap();
    run.save(path).unwrap();
    run.save(path).unwrap();
    let loaded = Run::load(path).unwrap();
    assert_eq!((&loaded.steps, &loaded.plan, loaded.stopped), (&run.steps, &run.plan, None));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary is left");
}

#[test]
fn old_checkpoints_go() {
    let dir = tempfile::tempdir().unwrap();
    let args = TrainingArgs { save_total_limit: Some(2), ..args(dir.path()) };
    Trainer::new(&model(), &args).train(&pairs()).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(dir.path().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["checkpoint-10", "checkpoint-12"]);
}

#[test]
fn torn_and_changed_files_are_refused_and_an_older_checkpoint_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Run::last_checkpoint(output_dir(dir.path())).unwrap().is_none());
    whole(dir.path());
    let steps = || Run::last_checkpoint(output_dir(dir.path())).unwrap().unwrap().steps.len();
    assert_eq!(steps(), 12);
    let file =
        |step: usize, name: &str| dir.path().join(format!("run/checkpoint-{step}")).join(name);

    let tensors = file(12, "training_state.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&tensors, &bytes).unwrap();
    let error = Run::load(tensors.parent().unwrap()).unwrap_err().to_string();
    assert!(error.contains("training_state.safetensors") && error.contains("checksum"), "{error}");
    assert_eq!(steps(), 10);

    let state = file(10, "trainer_state.json");
    let text = std::fs::read(&state).unwrap();
    std::fs::write(&state, &text[..text.len() / 2]).unwrap();
    assert_eq!(steps(), 8);
    std::fs::remove_file(file(8, "trainer_state.json")).unwrap();
    assert_eq!(steps(), 6);
}

#[test]
fn what_cannot_be_written_says_so_and_keeps_the_old_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run");
    std::fs::write(&file, "a file where the folder should be").unwrap();
    let error = Trainer::new(&model(), &args(dir.path())).train(&pairs()).unwrap_err().to_string();
    assert!(error.contains("could not"), "{error}");
}

/// The child of the next test: trains, or goes on, until it is killed or done.
#[test]
#[ignore = "run by `killed_at_any_instant_and_resumed_is_never_killed`"]
fn child() {
    let Some(dir) = std::env::var_os("TUNEBOOK_TEST_RUN") else { return };
    let dir = Path::new(&dir);
    let model = model();
    let trainer = Trainer::new(&model, &args(dir));
    let run = match Run::last_checkpoint(output_dir(dir)).unwrap() {
        Some(run) => trainer.resume(&run, (&pairs(), &pairs()[..4])),
        None => trainer.train((&pairs(), &pairs()[..4])),
    };
    run.unwrap();
}

#[test]
fn killed_at_any_instant_and_resumed_is_never_killed() {
    killed(6);
}

#[test]
#[ignore = "takes a minute"]
fn killed_at_fifty_random_instants_and_resumed_is_never_killed() {
    killed(50);
}

fn killed(kills: u64) {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let live = |dir: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoints::child", "--ignored", "--quiet"])
            .env("TUNEBOOK_TEST_RUN", dir)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let started = Instant::now();
    let whole_life = tempfile::tempdir().unwrap();
    assert!(live(whole_life.path()).wait().unwrap().success());
    let mut life_time = started.elapsed();

    // Instants spread over the whole life, the beginning of the process and its checkpoints
    // included.
    let mut random = Random::new(kills);
    let (mut killed, mut torn) = (0, 0);
    for attempt in 0.. {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..4 {
            let mut child = live(dir.path());
            std::thread::sleep(life_time.mul_f64(random.unit()));
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                life_time = life_time.mul_f64(0.9); // it was done: the machine is less busy than when the life was measured
                break;
            }
            killed += 1;
            // Whatever the kill left: every folder under a checkpoint's name is a whole one.
            for entry in std::fs::read_dir(dir.path().join("run")).into_iter().flatten() {
                let entry = entry.unwrap();
                if entry.file_name().to_str().unwrap().starts_with("checkpoint-") {
                    Run::load(entry.path()).unwrap();
                } else {
                    torn += 1;
                }
            }
        }
        let model = model();
        let trainer = Trainer::new(&model, &args(dir.path()));
        let run = match Run::last_checkpoint(output_dir(dir.path())).unwrap() {
            Some(run) => trainer.resume(&run, (&pairs(), &pairs()[..4])).unwrap(),
            None => trainer.train((&pairs(), &pairs()[..4])).unwrap(),
        };
        assert!(course(&run, &model) == expected, "attempt {attempt}");
        let names = std::fs::read_dir(dir.path().join("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.collect();
        assert!(
            names.iter().all(|name| name.to_str().unwrap().starts_with("checkpoint-")),
            "{names:?}"
        );
        if killed >= kills {
            eprintln!(
                "{killed} kills over {} runs, {torn} of them within a checkpoint: every end the same, no torn file accepted",
                attempt + 1
            );
            return;
        }
        assert!(attempt < 10 * kills, "the children are done before they are killed");
    }
}

/// A file system of a few hundred kilobytes, gone when dropped. `None` without the right to mount
/// one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_the_run_with_a_clear_error_and_the_last_checkpoint_good() {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let folder_bytes = |dir: &Path| -> u64 {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| match entry.metadata().unwrap() {
                meta if meta.is_dir() => std::fs::read_dir(entry.path())
                    .unwrap()
                    .map(|file| file.unwrap().metadata().unwrap().len())
                    .sum(),
                meta => meta.len(),
            })
            .sum()
    };
    let one = folder_bytes(&dir.path().join("run/checkpoint-12"));
    // Room for two and a half checkpoints.
    let Some(disk) = SmallDisk::new(one as usize * 5 / 2) else {
        return skip("this user may not mount a tmpfs");
    };
    let model = model();
    let trainer = Trainer::new(&model, &args(disk.0.path()));
    let error = trainer.train((&pairs(), &pairs()[..4])).unwrap_err().to_string();
    assert!(
        error.contains("could not write")
            && error.contains("checkpoint-")
            && error.contains("space"),
        "{error}"
    );
    let last = Run::last_checkpoint(output_dir(disk.0.path())).unwrap().unwrap();
    assert_eq!(last.steps.len(), 4);
    let left: Vec<_> = std::fs::read_dir(disk.0.path().join("run"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "what was half written is gone: {left:?}");

    // The run in memory is whole, too; with room it goes on from either to the same end.
    let roomy = tempfile::tempdir().unwrap();
    for from in [last, trainer.last_run().unwrap()] {
        let run = Trainer::new(&model, &args(roomy.path()))
            .resume(&from, (&pairs(), &pairs()[..4]))
            .unwrap();
        assert!(course(&run, &model) == expected);
    }
}

/// AdaLoRA's importances and ranks are part of a checkpoint: a run that stops anywhere ends with
/// the same ranks and the same bits.
#[test]
fn adalora_goes_on_from_every_checkpoint_to_the_same_ranks() {
    let config = AdaLora {
        init_r: 6,
        target_r: 3,
        tinit: 2,
        tfinal: 3,
        delta_t: 2,
        target_modules: "all-linear".into(),
        lora_dropout: 0.1,
        ..Default::default()
    };
    let new = || {
        let model = tiny();
        model.add_adapter("support", &config).unwrap();
        model
    };
    let dir = tempfile::tempdir().unwrap();
    let model = new();
    let run = Trainer::new(&model, &args(dir.path())).train((&pairs(), &pairs()[..4])).unwrap();
    let expected = course(&run, &model);
    let ranks = |run: &Run| run.steps.iter().map(|step| step.ranks.clone()).collect::<Vec<_>>();
    assert_eq!(run.plan.rank_modules.len(), 14);
    let sums: Vec<usize> = ranks(&run).iter().map(|ranks| ranks.iter().sum()).collect();
    assert_eq!((sums[0], sums[2]), (84, 84), "as many as at the start, up to `tinit`");
    assert!(sums.windows(2).all(|pair| pair[1] <= pair[0]), "{sums:?}");
    assert_eq!(sums[11], 42, "`target_r` for each module on average");
    assert!(ranks(&run)[11].iter().any(|rank| *rank != 3), "and not the same everywhere");
    for step in [2, 4, 6, 8, 10, 12] {
        let from = Run::load(dir.path().join(format!("run/checkpoint-{step}"))).unwrap();
        let other = tempfile::tempdir().unwrap();
        let model = new();
        let resumed = Trainer::new(&model, &args(other.path()))
            .resume(&from, (&pairs(), &pairs()[..4]))
            .unwrap();
        assert!(course(&resumed, &model) == expected, "from step {step}");
        assert_eq!(ranks(&resumed), ranks(&run), "from step {step}");
    }
    // A range test takes steps, and leaves the ranks alone.
    let model = new();
    let trainer = Trainer::new(&model, &args(dir.path()));
    trainer.lr_range_test(&pairs(), &LrRangeTest { steps: 12, ..Default::default() }).unwrap();
    let AdapterConfig::AdaLora(after) = &model.adapters()[0].config else { panic!("no AdaLoRA") };
    assert_eq!(after.rank_pattern, None);
    // A schedule that leaves no step between its ends is refused.
    let short = TrainingArgs { max_steps: Some(5), ..args(&dir.path().join("short")) };
    let error = Trainer::new(&model, &short).train(&pairs()).unwrap_err().to_string();
    assert!(error.contains("`AdaLora.tinit` is 2 with `tfinal` 3 in 5 steps"), "{error}");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// A run of a few steps, without checkpoints.
fn short_run(model: &Model, dir: &Path) -> Run {
    let args = TrainingArgs { save_strategy: SaveStrategy::No, max_steps: Some(2), ..args(dir) };
    Trainer::new(model, &args).train(&pairs()).unwrap()
}

#[test]
fn a_folder_of_another_kind_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let run = short_run(&model, dir.path());
    let out = dir.path().join("out");
    let refused = |says: &str| {
        let before = names(&out);
        let error = run.save(&out).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("folder of its own"), "{error}");
        assert_eq!(names(&out), before);
        assert_eq!(names(dir.path()), ["out"], "nothing temporary is left");
    };
    model.save_adapter("support", &out).unwrap();
    refused("holds `support/adapter_config.json` and 2 more and is no folder of a saved run");
    std::fs::remove_dir_all(&out).unwrap();
    // An empty one, and an earlier run's.
    std::fs::create_dir(&out).unwrap();
    run.save(&out).unwrap();
    run.save(&out).unwrap();
    // Something that the user put beside a run.
    for (file, says) in [("notes.txt", "holds `notes.txt` besides"), ("plots/", "`plots/`")] {
        match file.strip_suffix('/') {
            Some(folder) => std::fs::create_dir(out.join(folder)).unwrap(),
            None => std::fs::write(out.join(file), "mine").unwrap(),
        }
        refused(says);
        match file.strip_suffix('/') {
            Some(folder) => std::fs::remove_dir(out.join(folder)).unwrap(),
            None => std::fs::remove_file(out.join(file)).unwrap(),
        }
    }
    // transformers has a file of the same name.
    std::fs::write(out.join("trainer_state.json"), "{\"epoch\": 1.0, \"version\": 3}").unwrap();
    refused("is no folder of a saved run");
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::write(&out, "a file").unwrap();
    let error = run.save(&out).unwrap_err().to_string();
    assert!(error.contains("is a file"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"a file");
    assert!(run.save(dir.path().join("..")).is_err());
}

#[cfg(unix)]
#[test]
fn a_link_to_a_run_stays_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let run = short_run(&model(), dir.path());
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("disk"), dir.path().join("out")).unwrap();
    run.save(dir.path().join("out")).unwrap();
    run.save(dir.path().join("out")).unwrap();
    assert!(std::fs::symlink_metadata(dir.path().join("out")).unwrap().is_symlink());
    assert_eq!(Run::load(dir.path().join("disk")).unwrap().steps.len(), 2);
}

/// A kill between the two renames of a replacement, and one after them.
#[test]
fn a_kill_between_two_renames_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let run = short_run(&model, dir.path());
    let (out, old) = (dir.path().join("out"), dir.path().join(".out.4000000.old"));
    run.save(&out).unwrap();
    std::fs::rename(&out, &old).unwrap();
    assert_eq!(Run::load(&out).unwrap().steps, run.steps);
    run.save(&out).unwrap();
    assert_eq!(names(dir.path()), ["out"]);
    run.save(&old).unwrap();
    std::fs::create_dir(dir.path().join(".out.4000000.tmp")).unwrap();
    run.save(&out).unwrap();
    assert_eq!(names(dir.path()), ["out"]);

    // The same among checkpoints.
    let first = TrainingArgs { save_total_limit: Some(2), ..args(dir.path()) };
    Trainer::new(&model, &first).train(&pairs()).unwrap();
    let at = |name: &str| dir.path().join("run").join(name);
    std::fs::rename(at("checkpoint-12"), at(".checkpoint-12.4000000.old")).unwrap();
    let last = Run::last_checkpoint(output_dir(dir.path())).unwrap().unwrap();
    assert_eq!(last.steps.len(), 12);
    Trainer::new(&model, &first).resume(&last, &pairs()).unwrap();
    assert_eq!(names(&dir.path().join("run")), ["checkpoint-10", "checkpoint-12"]);
}

#[test]
fn another_run_in_the_output_dir_is_noticed_and_its_checkpoints_stay() {
    let dir = tempfile::tempdir().unwrap();
    let run = |steps: usize| TrainingArgs {
        save_strategy: SaveStrategy::Steps(2),
        max_steps: Some(steps),
        save_total_limit: Some(1),
        ..args(dir.path())
    };
    let model = model();
    let first = Trainer::new(&model, &run(8)).train(&pairs()).unwrap();
    assert_eq!(names(&dir.path().join("run")), ["checkpoint-8"]);
    let error = Trainer::new(&model, &run(4)).train(&pairs()).unwrap_err().to_string();
    assert!(
        error.contains("holds the checkpoints of another run (`checkpoint-8`)")
            && error.contains("`Run::last_checkpoint`")
            && error.contains("another `output_dir`"),
        "{error}"
    );
    assert_eq!(names(&dir.path().join("run")), ["checkpoint-8"]);
    // Its own run goes on there, further than planned, too.
    let last = Run::last_checkpoint(output_dir(dir.path())).unwrap().unwrap();
    Trainer::new(&model, &run(8)).resume(&last, &pairs()).unwrap();
    Trainer::new(&model, &run(12)).continue_from(&first, &pairs()).unwrap();
    assert_eq!(names(&dir.path().join("run")), ["checkpoint-12"]);
    // Another way from an earlier step would leave two courses in one folder.
    let error = Trainer::new(&model, &run(10)).continue_from(&last, &pairs()).unwrap_err();
    assert!(error.to_string().contains("holds `checkpoint-12` of this run"), "{error}");
    // A folder that is no checkpoint of ours stays, and is named.
    std::fs::create_dir(dir.path().join("run/checkpoint-3")).unwrap();
    let error = Trainer::new(&model, &run(8)).resume(&last, &pairs()).unwrap_err().to_string();
    assert!(error.contains("checkpoint-3"), "{error}");
}

/// Remembers whether the folders it hears of are there.
struct Saved(std::sync::Arc<std::sync::Mutex<Vec<(usize, bool)>>>);

impl tunebook_tune::Callback for Saved {
    fn on_save(&mut self, step: usize, folder: &Path) -> tunebook_tune::Result<()> {
        self.0.lock().unwrap().push((step, folder.join("trainer_state.json").is_file()));
        Ok(())
    }
}

#[test]
fn a_saved_folder_is_there_also_behind_later_ones_and_what_the_user_adds_stays() {
    let dir = tempfile::tempdir().unwrap();
    Trainer::new(&model(), &args(dir.path())).train(&pairs()).unwrap();
    std::fs::write(dir.path().join("run/checkpoint-2/notes.txt"), "mine").unwrap();
    // From an earlier checkpoint, while the later ones stand there.
    let from = Run::load(dir.path().join("run/checkpoint-4")).unwrap();
    let args = TrainingArgs { save_total_limit: Some(1), ..args(dir.path()) };
    let saved = std::sync::Arc::default();
    let trainer = Trainer::new(&model(), &args).with_callback(Saved(std::sync::Arc::clone(&saved)));
    trainer.resume(&from, &pairs()).unwrap();
    let saved = saved.lock().unwrap();
    assert_eq!(*saved, [(6, true), (8, true), (10, true), (12, true)]);
    assert_eq!(names(&dir.path().join("run")), ["checkpoint-12", "checkpoint-2"]);
}

#[test]
fn a_second_run_in_one_output_dir_is_told_and_disturbs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let outer = args(dir.path());
    let told = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let hears = std::sync::Arc::clone(&told);
    let (second, path) = (outer.clone(), dir.path().to_owned());
    let trainer = Trainer::new(&model(), &outer).with_callback(move |step: &StepRecord| {
        if step.step == 5 {
            // What the first run is writing at the moment, as far as the second can see.
            let writing = path.join("run/.checkpoint-6.4000000.tmp");
            std::fs::create_dir(&writing).unwrap();
            let lock = std::fs::File::open(&writing).unwrap();
            lock.try_lock().unwrap();
            let error = Trainer::new(&model(), &second).train(&pairs()).unwrap_err();
            *hears.lock().unwrap() = error.to_string();
            assert!(writing.is_dir());
            std::fs::remove_dir(&writing).unwrap();
        }
    });
    trainer.train(&pairs()).unwrap();
    let told = told.lock().unwrap();
    assert!(
        told.contains("is the `output_dir` of a run that is going on")
            && told.contains(&format!("process {}", std::process::id())),
        "{told}"
    );
    assert_eq!(names(&dir.path().join("run")).len(), 6, "and no lock is left");
    let last = Run::last_checkpoint(output_dir(dir.path())).unwrap().unwrap();
    assert_eq!(last.steps.len(), 12);
}

/// The run of a checkpoint goes on as itself alone, whatever differs and whatever it is called.
#[test]
fn a_checkpoint_of_something_else_is_refused_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let expected = whole(dir.path());
    let from = Run::load(dir.path().join("run/checkpoint-6")).unwrap();
    let there = tempfile::tempdir().unwrap();
    let lora =
        Lora { r: 3, lora_dropout: 0.1, target_modules: "all-linear".into(), ..Default::default() };
    let on = |base: Model, config: AdapterConfig| {
        base.add_adapter("support", &config).unwrap();
        base
    };
    let resume = |model: &Model, args: TrainingArgs, held_out: &[Example]| {
        Trainer::new(model, &args).resume(&from, (&pairs(), held_out))
    };
    let usual = || args(there.path());
    let refused = |model: Model, args: TrainingArgs, held_out: &[Example], says: &str| {
        let error = resume(&model, args, held_out).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("begin a new run"), "{error}");
    };
    let held_out = &pairs()[..4];
    for (changed, says) in [
        (Lora { lora_alpha: 99.0, ..lora.clone() }, "`Lora.lora_alpha` is 99.0, and was 8.0"),
        (Lora { init_seed: 7, ..lora.clone() }, "`Lora.init_seed` is 7, and was 42"),
        (Lora { lora_dropout: 0.5, ..lora.clone() }, "`Lora.lora_dropout` is 0.5, and was 0.1"),
        (Lora { use_rslora: true, ..lora.clone() }, "`Lora.use_rslora` is true, and was false"),
    ] {
        refused(on(tiny(), (&changed).into()), usual(), held_out, says);
    }
    let ia3 = AdapterConfig::from(tunebook_tune::Ia3::default());
    refused(on(tiny(), ia3), usual(), held_out, "`strategy.type` is \"Ia3\", and was \"Lora\"");
    refused(model(), usual(), &pairs()[..5], "the validation set is not the run's");

    // A base of the same shape.
    let other = tempfile::tempdir().unwrap();
    let base = tiny();
    tunebook_tune::FullTuning::unfreeze(&base, &tunebook_tune::Full::default()).unwrap();
    let short = TrainingArgs { max_steps: Some(2), ..TrainingArgs::default() };
    Trainer::new(&base, &short).train(&pairs()).unwrap();
    base.save_pretrained(other.path()).unwrap();
    let base = Model::load(other.path(), &tunebook_models::Device::Cpu).unwrap();
    refused(on(base, (&lora).into()), usual(), held_out, "the weights of the base");

    // Evaluations that decide how a run ends are part of it; others are not.
    let watched = TrainingArgs { eval_strategy: EvalStrategy::Steps(5), ..usual() };
    let run = resume(&model(), watched, held_out).unwrap();
    assert_eq!(run.steps.len(), 12);
    // What was loaded does not say how it began, and need not: the run's tensors take its place.
    let loaded = tiny();
    loaded.load_adapter(dir.path().join("run/checkpoint-6"), "support").unwrap();
    let elsewhere = TrainingArgs { save_strategy: SaveStrategy::No, ..usual() };
    let run = resume(&loaded, elsewhere, held_out).unwrap();
    assert!(course(&run, &loaded) == expected);
}

#[test]
fn evaluations_that_decide_the_end_are_part_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let args = TrainingArgs { load_best_model_at_end: true, ..args(dir.path()) };
    Trainer::new(&model(), &args).train((&pairs(), &pairs()[..4])).unwrap();
    let from = Run::load(dir.path().join("run/checkpoint-6")).unwrap();
    let other = TrainingArgs { eval_strategy: EvalStrategy::Steps(2), ..args };
    let error = Trainer::new(&model(), &other).resume(&from, (&pairs(), &pairs()[..4]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`TrainingArgs.eval_strategy` is {\"steps\":2}"), "{error}");
}
