//! Records the losses of real runs that `tests/it/diagnosis.rs` judges: ten runs, each set up so that
//! a known thing happens, of a tiny model on made-up rows.
//!
//! `record_curves DIR [SEED]`, from the repository's root:
//!
//! `cargo run -p tunebook-evaluate --example record_curves -- crates/evaluate/tests/curves 200`
//!
//! writes a file for each run, with the kind that its setting leads to, and prints the diagnosis of
//! each. The kind is that of the setting, whatever the diagnosis says; settings and thresholds were
//! chosen on seeds 1 to 110. Takes a minute.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use tunebook_evaluate::Diagnosis;
use tunebook_models::{Device, Model};
use tunebook_testing::Random;
use tunebook_tune::{
    Adapters, EvalStrategy, Example, Full, FullTuning, Lora, LrScheduler, TargetModules, Trainer,
    TrainingArgs,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const MODEL: &str = "tests/golden/lora_tiny/model";

/// A run and what is expected of it.
struct Case {
    file: &'static str,
    kind: &'static str,
    how: &'static str,
    train: Vec<Example>,
    validation: Vec<Example>,
    /// Rank and dropout of a LoRA; `None` trains all weights.
    lora: Option<(usize, f64)>,
    learning_rate: f64,
    /// Noise on the embeddings (NEFTune), in training only.
    noise: Option<f64>,
    warmup_ratio: f64,
    lr_scheduler: LrScheduler,
    steps: usize,
    evaluations: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("record_curves: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (dir, seed) = match &arguments[..] {
        [dir] => (dir, 200),
        [dir, seed] => (dir, seed.parse()?),
        _ => return Err("needs DIR and perhaps a SEED".into()),
    };
    std::fs::create_dir_all(dir)?;
    for case in cases(seed) {
        case.record(Path::new(dir), seed)?;
    }
    Ok(())
}

impl Case {
    fn record(&self, dir: &Path, seed: u64) -> Result<()> {
        let model = Model::load(MODEL, &Device::Cpu)?;
        match self.lora {
            Some((r, lora_dropout)) => {
                let target_modules = TargetModules::all_linear();
                let lora_alpha = 2.0 * r as f64;
                let lora =
                    Lora { r, lora_alpha, lora_dropout, target_modules, ..Default::default() };
                model.add_adapter("recorded", &lora)?;
            }
            None => {
                model.unfreeze(&Full::default())?;
            }
        }
        let args = TrainingArgs {
            epochs: (8 * self.steps).div_ceil(self.train.len()),
            max_steps: Some(self.steps),
            batch_size: 8,
            learning_rate: self.learning_rate,
            neftune_noise_alpha: self.noise,
            warmup_ratio: self.warmup_ratio,
            lr_scheduler: self.lr_scheduler,
            eval_strategy: EvalStrategy::Steps(self.steps / self.evaluations),
            seed,
            ..Default::default()
        };
        let trainer = Trainer::new(&model, &args);
        let run = trainer.train((&self.train, &self.validation))?;
        let rounded = |loss: f64| (loss * 1e4).round() / 1e4;
        let train: Vec<(usize, f64)> =
            run.steps.iter().map(|step| (step.step, rounded(step.loss))).collect();
        let validation: Vec<(usize, f64)> =
            run.evals.iter().map(|eval| (eval.step, rounded(eval.loss))).collect();
        let found = Diagnosis::of_losses(&train, &validation);
        println!("{:>26}: {found}", self.kind);
        let made = format!(
            "{}; {}, learning rate {:e}, {} training and {} validation rows, seed {seed}",
            self.how,
            match self.lora {
                Some((r, dropout)) => format!("LoRA of rank {r}, dropout {dropout}"),
                None => "all weights".to_owned(),
            },
            self.learning_rate,
            self.train.len(),
            self.validation.len(),
        );
        let curve =
            json!({"kind": self.kind, "made": made, "train": train, "validation": validation});
        std::fs::write(dir.join(self.file).with_extension("json"), format!("{curve}\n"))?;
        Ok(())
    }
}

/// A made-up language: each letter may be followed by three others, one of them mostly.
struct Language {
    followers: Vec<[u8; 3]>,
}

const LETTERS: &[u8] = b"abcdefghijkl";

impl Language {
    fn new(random: &mut Random) -> Self {
        let followers = LETTERS.iter().map(|_| [0; 3].map(|_| *random.one(LETTERS)));
        Self { followers: followers.collect() }
    }

    fn texts(&self, count: usize, random: &mut Random) -> Vec<Example> {
        (0..count).map(|_| Example::text(self.text(40, random))).collect()
    }

    fn text(&self, length: usize, random: &mut Random) -> String {
        let mut last = *random.one(LETTERS);
        let mut text = String::new();
        for _ in 0..length {
            text.push(last as char);
            let next = match random.unit() {
                unit if unit < 0.7 => 0,
                unit if unit < 0.9 => 1,
                _ => 2,
            };
            last = self.followers[(last - LETTERS[0]) as usize][next];
        }
        text
    }
}

const CLASSES: [&str; 6] = ["refund", "parcel", "account", "card", "limit", "other"];

/// Questions of random letters. The class is that of their first letter, but for a share of them,
/// which have any.
fn questions(count: usize, wrong: f64, random: &mut Random) -> Vec<Example> {
    let question = |_| {
        let letters: String = (0..8).map(|_| *random.one(LETTERS) as char).collect();
        let first = (letters.as_bytes()[0] - LETTERS[0]) as usize % CLASSES.len();
        let class = if random.unit() < wrong { random.below(CLASSES.len()) } else { first };
        Example::new(letters, CLASSES[class])
    };
    (0..count).map(question).collect()
}

fn cases(seed: u64) -> Vec<Case> {
    let mut random = Random::new(seed);
    let random = &mut random;
    let language = Language::new(random);
    let usual = |random: &mut Random| Case {
        file: "",
        kind: "",
        how: "",
        train: language.texts(400, random),
        validation: language.texts(40, random),
        lora: None,
        learning_rate: 1e-3,
        noise: None,
        warmup_ratio: 0.05,
        lr_scheduler: LrScheduler::Linear,
        steps: 240,
        evaluations: 12,
    };
    let small = questions(32, 0.5, random);
    let leaked = small[..16].to_vec();
    vec![
        Case {
            file: "learning_language",
            kind: "learning",
            how: "texts of a made-up language, the run ends early",
            steps: 120,
            ..usual(random)
        },
        Case {
            file: "learning_classes",
            kind: "learning",
            how: "questions whose class follows from their first letter",
            train: questions(600, 0.0, random),
            validation: questions(60, 0.0, random),
            lora: Some((8, 0.0)),
            learning_rate: 5e-3,
            lr_scheduler: LrScheduler::Constant,
            steps: 300,
            ..usual(random)
        },
        Case {
            file: "overfitting_language",
            kind: "overfitting",
            how: "24 texts of a made-up language, again and again",
            train: language.texts(24, random),
            learning_rate: 3e-3,
            steps: 360,
            ..usual(random)
        },
        Case {
            file: "overfitting_classes",
            kind: "overfitting",
            how: "48 questions, half of the classes wrong, again and again",
            train: questions(48, 0.5, random),
            validation: questions(60, 0.5, random),
            learning_rate: 3e-3,
            lr_scheduler: LrScheduler::Constant,
            steps: 480,
            ..usual(random)
        },
        Case {
            file: "divergence",
            kind: "divergence",
            how: "a learning rate far too high, reached by warming up",
            learning_rate: 1.0,
            warmup_ratio: 0.9,
            ..usual(random)
        },
        Case {
            file: "plateau",
            kind: "plateau",
            how: "texts of a made-up language, long after all of it is learned",
            train: language.texts(2000, random),
            learning_rate: 5e-3,
            steps: 1200,
            evaluations: 20,
            ..usual(random)
        },
        Case {
            file: "only_noise",
            kind: "only noise",
            how: "a learning rate that moves nothing",
            learning_rate: 1e-9,
            ..usual(random)
        },
        Case {
            file: "too_few_evaluations",
            kind: "too few evaluations",
            how: "texts of a made-up language, evaluated twice",
            evaluations: 2,
            ..usual(random)
        },
        Case {
            file: "validation_below_training",
            kind: "validation below training",
            how: "the validation rows are among the training rows, which are trained on with noise",
            train: small,
            validation: leaked,
            learning_rate: 2e-3,
            noise: Some(10.0),
            steps: 480,
            ..usual(random)
        },
        Case {
            file: "nothing_carries_over",
            kind: "nothing carries over",
            how: "questions with a class drawn at random",
            train: questions(64, 1.0, random),
            validation: questions(60, 1.0, random),
            learning_rate: 2e-3,
            steps: 960,
            evaluations: 6,
            ..usual(random)
        },
    ]
}
