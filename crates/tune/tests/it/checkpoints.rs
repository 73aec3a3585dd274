//! Checkpoints on disk: exact resumption after a kill at any instant, rotation, and files that are
//! refused.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tunebook_models::Model;
use tunebook_testing::{Random, skip};
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, EvalStrategy, Example, Lora, LrRangeTest, Run, SaveStrategy,
    Trainer, TrainingArgs,
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
    let short = TrainingArgs { max_steps: Some(5), ..args(dir.path()) };
    let error = Trainer::new(&model, &short).train(&pairs()).unwrap_err().to_string();
    assert!(error.contains("`AdaLora.tinit` is 2 with `tfinal` 3 in 5 steps"), "{error}");
}
