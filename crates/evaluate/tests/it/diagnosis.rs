//! The diagnosis of seeded curves of every kind, and of curves of real runs. Thresholds were set on
//! seeds below 100; these are judged on others. The real ones lie in `tests/curves`, written by
//! `examples/record_curves.rs`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tunebook_evaluate::{Diagnosis, Finding};
use tunebook_tune::{EvalRecord, StepRecord};

const KINDS: [&str; 8] = [
    "learning",
    "overfitting",
    "divergence",
    "plateau",
    "only noise",
    "too few evaluations",
    "validation below training",
    "nothing carries over",
];

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (u, v) = (self.within(1e-12, 1.0), self.within(0.0, 1.0));
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }
}

/// A curve of a kind, by its number: the losses of steps and evaluations.
fn curve(kind: usize, seed: u64) -> (Vec<StepRecord>, Vec<EvalRecord>) {
    let mut random = Random::new(seed * 100 + kind as u64);
    let steps = random.within(60.0, 600.0) as usize;
    let (turn, height) = (random.within(0.25, 0.6), random.within(0.08, 0.5));
    let evaluations = match kind {
        // The validation loss is seen to fall: twice before it rises, and twice after.
        1 => random.within(f64::max(3.0 / turn, 2.5 / (1.0 - turn)), 20.999) as usize,
        5 => random.within(1.0, 2.999) as usize,
        _ => random.within(5.0, 20.999) as usize,
    };
    let floor = random.within(0.2, 1.8);
    let fall = floor * random.within(0.5, 2.5);
    let batches = random.within(0.04, 0.2);
    let tau = match kind {
        3 => random.within(0.03, 0.07),
        _ => random.within(0.2, 0.5),
    };
    let (gap, leak) = (random.within(1.0, 1.15), random.within(0.6, 0.82));
    let by_heart = random.within(0.25, 0.7);
    let growth = random.within(0.7, 2.5);
    let noise = random.within(0.0005, 0.003);
    let from_start = random.within(0.0, 1.0) < 0.5;
    let train = |x: f64| match kind {
        1 => floor * (1.0 - 0.35 * x) + fall * (-x / (0.4 * turn)).exp(),
        2 => {
            let after = (x - turn).max(0.0) / (1.0 - turn);
            (floor + fall * (-x.min(turn) / tau).exp()) * (growth * after).exp()
        }
        4 => floor,
        7 => floor * (1.0 - by_heart * x) + 0.5 * fall * (-x / 0.01).exp(),
        _ => floor + fall * (-x / tau).exp(),
    };
    let validation = |x: f64| match kind {
        1 => {
            let after = (x - turn).max(0.0) / (1.0 - turn);
            gap * (floor + fall * (-x / (0.4 * turn)).exp()) * (1.0 + height * after)
        }
        2 | 4 => gap * train(x),
        6 => leak * train(x),
        7 => gap * floor * (1.0 + 0.3 * height * x) + 0.5 * fall * (-x / 0.01).exp(),
        _ => gap * train(x),
    };
    let at = |step: usize| step as f64 / steps as f64;
    let records = (1..=steps)
        .map(|step| StepRecord {
            step,
            epoch: 3.0 * at(step),
            loss: train(at(step)) * (1.0 + batches * random.normal()),
            learning_rate: 2e-4,
            grad_norm: 1.0,
            loss_scale: None,
            skipped: false,
            kl: None,
            tokens: 100,
            label_tokens: 50,
            secs: 0.1,
            memory_bytes: None,
            rows: Vec::new(),
            ranks: Vec::new(),
        })
        .collect();
    let first = if from_start && kind != 5 { 0 } else { 1 };
    let evals = (first..=evaluations)
        .map(|n| {
            let step = n * steps / evaluations;
            EvalRecord {
                step,
                epoch: 3.0 * at(step),
                loss: validation(at(step)) * (1.0 + noise * random.normal()),
                label_tokens: 500,
                secs: 1.0,
                metrics: Default::default(),
            }
        })
        .collect();
    (records, evals)
}

/// A curve of a real run.
#[derive(serde::Deserialize)]
struct Recorded {
    /// What its setting leads to.
    kind: String,
    /// The setting.
    made: String,
    train: Vec<(usize, f64)>,
    validation: Vec<(usize, f64)>,
}

/// The recorded curves by the names of their files.
fn recorded() -> Vec<(String, Recorded)> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/curves");
    let mut files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let curve = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        (path.file_stem().unwrap().to_string_lossy().into_owned(), curve)
    };
    files.iter().map(read).collect()
}

fn number(finding: &Finding) -> usize {
    match finding {
        Finding::Learning => 0,
        Finding::Overfitting { .. } => 1,
        Finding::Divergence { .. } => 2,
        Finding::Plateau { .. } => 3,
        Finding::OnlyNoise => 4,
        Finding::TooFewEvaluations { .. } => 5,
        Finding::ValidationBelowTraining { .. } => 6,
        Finding::NothingCarriesOver => 7,
    }
}

/// The table of confusions over some seeds, a row a kind, and how many are wrong.
fn confusions(seeds: std::ops::Range<u64>) -> (Vec<[usize; 8]>, usize) {
    let mut table = vec![[0; 8]; KINDS.len()];
    for (kind, name) in KINDS.iter().enumerate() {
        for seed in seeds.clone() {
            let (steps, evals) = curve(kind, seed);
            let found = number(&Diagnosis::of(&steps, &evals).finding);
            if found != kind && std::env::var_os("SHOW_WRONG").is_some() {
                println!("{name} seed {seed}: {}", Diagnosis::of(&steps, &evals));
            }
            table[kind][found] += 1;
        }
    }
    let wrong = (0..KINDS.len()).map(|kind| table[kind].iter().sum::<usize>() - table[kind][kind]);
    let wrong = wrong.sum();
    (table, wrong)
}

#[test]
fn curves_of_every_kind_are_told_apart() {
    for (seeds, what) in [(0..20, "fitted on"), (100..120, "judged on"), (200..400, "more")] {
        let all = KINDS.len() * (seeds.end - seeds.start) as usize;
        let (table, wrong) = confusions(seeds);
        println!("{what}: {wrong} of {all} wrong");
        for (kind, row) in KINDS.iter().zip(&table) {
            println!("{kind:>26} {row:?}");
        }
        assert!(wrong * 20 <= all, "{what}: {wrong} of {all}");
    }
}

/// Ten runs of which the setting leads to a kind, beside the seeded curves. (Of a hundred such runs,
/// seeds 200 to 209 of the example, three are judged as another kind.)
#[test]
fn curves_of_real_runs_are_told_apart() {
    let curves = recorded();
    assert_eq!(curves.len(), 10);
    let (mut table, seeded) = confusions(100..120);
    let mut wrong = Vec::new();
    for (name, curve) in &curves {
        let kind = KINDS.iter().position(|kind| *kind == curve.kind).unwrap();
        let found = Diagnosis::of_losses(&curve.train, &curve.validation);
        table[kind][number(&found.finding)] += 1;
        if number(&found.finding) != kind {
            wrong.push(format!("{name} ({}): {found}", curve.made));
        }
    }
    let all: usize = table.iter().flatten().sum();
    println!(
        "real runs: {} of {} wrong; with seeded curves {} of {all}",
        wrong.len(),
        curves.len(),
        wrong.len() + seeded
    );
    for (kind, row) in KINDS.iter().zip(&table) {
        println!("{kind:>26} {row:?}");
        assert!(row.iter().sum::<usize>() > 20, "no run of {kind}");
    }
    println!("{wrong:#?}");
    assert!(wrong.len() <= 1, "{wrong:#?}");
    assert!((wrong.len() + seeded) * 20 <= all, "{} of {all}", wrong.len() + seeded);
}

/// How often the finding changes while a run goes on, once there is one.
fn changes(name: &str, train: &[(usize, f64)], validation: &[(usize, f64)]) -> usize {
    let mut findings: Vec<usize> = Vec::new();
    for n in 1..=validation.len() {
        let seen = train.partition_point(|(step, _)| *step <= validation[n - 1].0);
        let finding = Diagnosis::of_losses(&train[..seen], &validation[..n]).finding;
        if !matches!(finding, Finding::TooFewEvaluations { .. })
            && findings.last() != Some(&number(&finding))
        {
            findings.push(number(&finding));
        }
    }
    let changes = findings.len().saturating_sub(1);
    if changes > 2 && std::env::var_os("SHOW_WRONG").is_some() {
        println!("{name}: {findings:?}");
    }
    changes
}

/// Told while a run goes on, the finding changes at most twice once there is one.
#[test]
fn the_finding_changes_twice_at_most() {
    let mut most = 0;
    for (kind, name) in KINDS.iter().enumerate() {
        for seed in 100..140 {
            let (steps, evals) = curve(kind, seed);
            let train: Vec<_> = steps.iter().map(|step| (step.step, step.loss)).collect();
            let validation: Vec<_> = evals.iter().map(|eval| (eval.step, eval.loss)).collect();
            most = most.max(changes(&format!("{name} seed {seed}"), &train, &validation));
        }
    }
    for (name, curve) in recorded() {
        most = most.max(changes(&name, &curve.train, &curve.validation));
    }
    assert!(most <= 2, "{most} changes");
}
