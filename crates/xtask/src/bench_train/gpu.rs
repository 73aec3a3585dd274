//! The cases on a CUDA device: Llama shapes with random weights, in bf16.
//!
//! One side has the card at a time, so that the card's own count of its memory is that side's;
//! nothing else runs on it, so turns would gain nothing. A step ends when the device has done its
//! work. `TUNEBOOK_BENCH_TINY=1` runs the same on the CPU, in f32 and in small: it shows on a
//! machine without a GPU that both sides do what they are asked for, and its rows are named so that
//! nobody takes them for measurements.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::card::Card;
use super::case::{Case, Gpu, GpuPeer, Packages};
use super::measure::{Measured, batches, without};
use super::shape::{Method, TINY};
use super::{Bench, random_model};
use crate::bench::rows::{row, write};
use crate::bench::side::{Side, median, number};
use crate::bench::{THREADS, peer};
use crate::error::{Error, Result};
use crate::process;
use crate::setup::cuda;

/// Steps before measuring: kernels are then loaded and chosen, the allocator's reserve is full.
const WARM_UP: usize = 3;
/// Rows and tokens on the CPU.
const TINY_BATCH: (usize, usize) = (2, 48);
/// How far first losses may lie apart, relatively, in bf16 and in f32: adapters start without
/// effect, so equal work gives equal losses.
const FIRST_LOSS: [f64; 2] = [5e-3, 1e-5];
/// The same of all further losses, which drift with the adapters' random start.
const LATER_LOSS: f64 = 5e-2;

/// Where a case runs.
pub(crate) enum Place {
    /// On a card.
    Card(Card),
    /// To try it out.
    Cpu,
}

/// The programs of a case and the folders of its files: the repository's, or those of a GPU kit.
pub(crate) struct Programs {
    /// Our side, and the words before its own arguments.
    pub ours: (PathBuf, Vec<&'static str>),
    /// The variables that our side runs with.
    pub environment: Vec<(&'static str, OsString)>,
    /// `tests/golden`.
    pub golden: PathBuf,
    /// Where models and batches are written.
    pub work: PathBuf,
    /// `tests/peers`.
    pub peers: PathBuf,
    /// The Python with the packages, or the reason why there is none.
    pub python: Box<dyn Fn(Packages) -> std::result::Result<PathBuf, String>>,
}

impl Place {
    fn device(&self) -> &'static str {
        match self {
            Self::Card(_) => "cuda",
            Self::Cpu => "cpu",
        }
    }

    fn dtype(&self) -> &'static str {
        match self {
            Self::Card(_) => "bf16",
            Self::Cpu => "f32",
        }
    }

    fn first_loss(&self) -> f64 {
        match self {
            Self::Card(_) => FIRST_LOSS[0],
            Self::Cpu => FIRST_LOSS[1],
        }
    }
}

/// The measurements of one side.
struct Done {
    name: String,
    suffix: &'static str,
    secs: Vec<f64>,
    losses: Vec<f64>,
    /// Of the card; `None` on the CPU.
    peak_mb: Option<f64>,
    end: Value,
}

impl Bench<'_> {
    /// Every batch of the case, for our program and the peers.
    pub(super) fn gpu(&self, case: &Case, what: &Gpu) -> Result<Measured> {
        if std::env::var_os("TUNEBOOK_BENCH_TINY").is_some_and(|value| value == "1") {
            return self.tiny(case, what);
        }
        let card = match Card::find() {
            Ok(card) => card,
            Err(reason) => return Ok(without(case.name, &reason)),
        };
        let toolkit = self.setup.ensure_cuda_toolkit()?;
        if !toolkit.has_gpu() {
            return Ok(without(
                case.name,
                "no libcuda.so.1: the driver of the CUDA device is not installed",
            ));
        }
        let environment = toolkit.environment();
        println!("building our side for CUDA");
        let mut build = process::cargo(&self.setup.root);
        build.args(["build", "--quiet", "--package", "tunebook-tune", "--features", "cuda"]);
        cuda::set(&mut build, &environment);
        process::run(build.args(["--example", "bench_train"]), "building the bench for CUDA")?;
        let program = self.setup.cuda_target().join(&self.setup.triple);
        let programs = self.programs(program, environment);
        measure(case.name, what, &Place::Card(card), &programs).and_then(same)
    }

    /// The case in small, on the CPU.
    fn tiny(&self, case: &Case, what: &Gpu) -> Result<Measured> {
        let programs = self.programs(self.setup.target.join(&self.setup.triple), Vec::new());
        in_small(case.name, what, &programs).and_then(same)
    }

    fn programs(&self, built: PathBuf, environment: Vec<(&'static str, OsString)>) -> Programs {
        let (python, setup) = (self.python.clone(), self.setup.clone());
        Programs {
            ours: (built.join("debug/examples/bench_train"), Vec::new()),
            environment,
            golden: self.setup.root.join("tests/golden"),
            work: self.setup.target.clone(),
            peers: self.setup.root.join("tests/peers"),
            python: Box::new(move |packages| match packages {
                Packages::Peft => Ok(python.clone()),
                Packages::AdapterHub => {
                    setup.ensure_adapterhub().map_err(|error| error.to_string())
                }
            }),
        }
    }
}

/// The case in small, on the CPU.
///
/// # Errors
/// As [`measure`].
pub(crate) fn in_small(name: &str, what: &Gpu, programs: &Programs) -> Result<Measured> {
    let tiny = Gpu { shape: TINY, batches: &[TINY_BATCH], steps: 2, most_mb: None, ..*what };
    measure(&format!("{name}-tiny-on-the-cpu"), &tiny, &Place::Cpu, programs)
}

/// Every batch of a case, for our program and the peers that are there.
///
/// # Errors
/// Our side when it ends early, a file that cannot be written. Peers that end early are in `missing`,
/// those that do not compute the same thing in `different`.
pub(crate) fn measure(
    name: &str,
    what: &Gpu,
    place: &Place,
    programs: &Programs,
) -> Result<Measured> {
    let model = random_model::ensure(&programs.work, &programs.golden, &what.shape)?;
    let mut rows = Vec::new();
    let mut about_batches = Vec::new();
    let (mut missing, mut different) = (Vec::new(), Vec::new());
    for &(count, length) in what.batches {
        println!("{name}: {count} x {length} tokens, {} steps each", what.steps);
        let steps = WARM_UP + what.steps;
        let vocabulary = what.shape.vocab_size as u64;
        let ids = programs
            .work
            .join("tunebook")
            .join(format!("bench-{vocabulary}-{count}x{length}x{steps}.json"));
        write(&ids, &batches(vocabulary, count, length, steps))?;
        let files = [model.as_path(), ids.as_path()];
        let mut ours = programs.ours(place, what, files);
        let mut done = vec![side(place, "ours", "", what.steps, &mut ours)?];
        for peer in what.peers {
            let peer_name = format!("{:?} {}", peer.packages, peer.options.join(" "));
            let peer_name = peer_name.trim_end();
            let python = match (programs.python)(peer.packages) {
                Ok(python) => python,
                Err(reason) => {
                    missing.push(format!("{peer_name}: {reason}"));
                    continue;
                }
            };
            let mut command = programs.peer(place, &python, what, peer, files);
            // Our own figures stay when a peer fails.
            match side(place, peer_name, peer.suffix, what.steps, &mut command) {
                Ok(peer) => {
                    let Some(ours) = done.first() else { continue };
                    match check_losses(name, place, ours, &peer) {
                        Ok(()) => done.push(peer),
                        Err(error) => different.push(error.to_string()),
                    }
                }
                Err(error) => missing.push(format!("{peer_name}: {error}")),
            }
        }
        let only = what.batches.len() == 1;
        let batch = if only { String::new() } else { format!("_{count}x{length}") };
        rows.extend(figures(name, what, place, &batch, (count, length), &done));
        about_batches.push(about(what, (count, length), &done));
    }
    let card = match place {
        Place::Card(card) => card.about(),
        Place::Cpu => json!("none: tried out on the CPU, in small"),
    };
    let about = json!({
        "case": name, "shape": what.shape.name, "card": card, "batches": about_batches, "missing": missing,
        "different": different,
    });
    Ok(Measured { rows, about })
}

/// Runs one side to its end.
fn side(
    place: &Place,
    name: &str,
    suffix: &'static str,
    steps: usize,
    command: &mut Command,
) -> Result<Done> {
    let watch = match place {
        Place::Card(card) => Some(card.watch()?),
        Place::Cpu => None,
    };
    let mut side = Side::start(name, command)?;
    let (mut secs, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + steps {
        let answer = side.ask("step")?;
        losses.push(number(&answer, "loss")?);
        if step >= WARM_UP {
            secs.push(number(&answer, "secs")?);
        }
    }
    let end = side.end()?;
    println!("  {name}: {:.3} s a step", median(&secs));
    let peak_mb = watch.map(super::card::Watch::end).transpose()?;
    Ok(Done { name: name.to_owned(), suffix, secs, losses, peak_mb, end })
}

impl Programs {
    fn ours(&self, place: &Place, what: &Gpu, [model, ids]: [&Path; 2]) -> Command {
        let mut command = process::command(&self.ours.0);
        cuda::set(&mut command, &self.environment);
        command
            .args(&self.ours.1)
            .args([model, ids])
            .arg(format!("--device={}", place.device()))
            .arg(format!("--dtype={}", place.dtype()))
            .args(method(what.method))
            .args(what.most_mb.map(|most| format!("--budget-mb={most}")))
            .env("RAYON_NUM_THREADS", THREADS.to_string());
        command
    }

    fn peer(
        &self,
        place: &Place,
        python: &Path,
        what: &Gpu,
        of: &GpuPeer,
        [model, ids]: [&Path; 2],
    ) -> Command {
        let mut command = peer::script_in(&self.peers, python, "bench_train.py", THREADS);
        command
            .arg("serve")
            .args([model, ids])
            .arg(format!("--threads={THREADS}"))
            .arg(format!("--device={}", place.device()))
            .arg(format!("--dtype={}", place.dtype()))
            .args(method(what.method))
            .args(of.options)
            .stderr(Stdio::inherit());
        command
    }
}

/// The training that both sides are asked for.
fn method(method: Method) -> Vec<String> {
    match method {
        Method::Lora { r } => {
            vec![
                "--method=lora".to_owned(),
                format!("--rank={r}"),
                "--targets=all-linear".to_owned(),
            ]
        }
        Method::Adapter => vec!["--method=adapter".to_owned()],
        Method::Full => vec!["--method=full".to_owned()],
    }
}

/// Whether the sides compute the same thing. So written that a NaN is refused, too.
fn check_losses(case: &str, place: &Place, ours: &Done, peer: &Done) -> Result<()> {
    for (step, (our, their)) in ours.losses.iter().zip(&peer.losses).enumerate() {
        let tolerance = if step == 0 { place.first_loss() } else { LATER_LOSS };
        let same = (our - their).abs() <= tolerance * their.abs();
        if !same {
            return Err(Error::Other(format!(
                "{case}, step {}: our loss is {our}, that of {} {their}: this would compare two different things",
                step + 1,
                peer.name
            )));
        }
    }
    Ok(())
}

/// A bench whose sides do not compute the same thing has no figures.
fn same(measured: Measured) -> Result<Measured> {
    match measured.about["different"][0].as_str() {
        Some(error) => Err(Error::Other(error.to_owned())),
        None => Ok(measured),
    }
}

/// The rows of one batch.
fn figures(
    case: &str,
    what: &Gpu,
    place: &Place,
    batch: &str,
    (count, length): (usize, usize),
    done: &[Done],
) -> Vec<Value> {
    let Some((ours, peers)) = done.split_first() else { return Vec::new() };
    let speed = |side: &Done| (count * length) as f64 / median(&side.secs);
    let (flops, _) = what.shape.flops_per_token(what.method, length);
    let peak = match place {
        Place::Card(card) => card.peak_flops(),
        Place::Cpu => None,
    };
    let mut rows = Vec::new();
    // Without a peer there is one row of each metric all the same.
    let beside: Vec<Option<&Done>> =
        if peers.is_empty() { vec![None] } else { peers.iter().map(Some).collect() };
    for peer in beside {
        let suffix = peer.map_or("", |peer| peer.suffix);
        let metric = |name: &str| format!("{name}{batch}{suffix}");
        rows.push(row(case, &metric("tokens_per_s"), speed(ours), peer.map(speed)));
        if let Some(most) = ours.peak_mb {
            rows.push(row(case, &metric("peak_gpu_mb"), most, peer.and_then(|peer| peer.peak_mb)));
        }
        if let Some(peak) = peak {
            let mfu = |side: &Done| speed(side) * flops / peak;
            rows.push(row(case, &metric("mfu"), mfu(ours), peer.map(mfu)));
        }
    }
    if let (Some(limit), Some(most)) = (what.most_mb, ours.peak_mb) {
        rows.push(row(case, &format!("peak_gpu_mb_against_limit{batch}"), most, Some(limit)));
    }
    rows
}

fn about(what: &Gpu, (count, length): (usize, usize), done: &[Done]) -> Value {
    let (flops, formula) = what.shape.flops_per_token(what.method, length);
    let side = |done: &Done| {
        json!({
            "side": done.name, "secs": done.secs, "losses": done.losses, "peak_gpu_mb": done.peak_mb, "end": done.end,
        })
    };
    json!({
        "rows": count,
        "length": length,
        "flops_per_token": flops,
        "flops_formula": formula,
        "sides": done.iter().map(side).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::case::{CASES, Kind};
    use super::*;

    fn done(name: &str, losses: &[f64], secs: f64, peak_mb: Option<f64>) -> Done {
        Done {
            name: name.to_owned(),
            suffix: "",
            secs: vec![secs; 5],
            losses: losses.to_vec(),
            peak_mb,
            end: Value::Null,
        }
    }

    #[test]
    fn sides_that_do_not_compute_the_same_are_refused() {
        let sides = |first: f64, second: f64| {
            let [ours, peer] = [("ours", [6.0, 5.9]), ("peer", [first, second])]
                .map(|(n, l)| done(n, &l, 1.0, None));
            check_losses("c", &Place::Cpu, &ours, &peer)
        };
        assert!(sides(6.0, 5.8).is_ok());
        for (first, second) in [(6.001, 5.9), (6.0, 4.0), (f64::NAN, 5.9)] {
            assert!(sides(first, second).is_err(), "{first} {second}");
        }
    }

    /// Sides that are shells: ours answers, PEFT's ends at once or computes something else.
    #[cfg(unix)]
    #[test]
    fn our_figures_stay_when_a_peer_fails() {
        use std::os::unix::fs::PermissionsExt;
        let work = std::env::temp_dir().join(format!("xtask-peer-{}", std::process::id()));
        std::fs::create_dir_all(&work).unwrap();
        let side = |name: &str, loss: f64| {
            let path = work.join(name);
            let script = format!(
                "#!/bin/sh\necho '{{}}'; while read -r x; do [ \"$x\" = end ] && echo '{{}}' && exit; echo '{{\"loss\": {loss}, \"secs\": 0.1}}'; done\n"
            );
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let Some(Kind::Gpu(what)) =
            CASES.iter().find(|case| case.name == "h100-lora-1b").map(|case| &case.kind)
        else {
            unreachable!("h100-lora-1b is a case on a GPU")
        };
        let measured = |python: PathBuf| {
            let programs = Programs {
                ours: (side("ours", 6.0), Vec::new()),
                environment: Vec::new(),
                golden: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
                work: work.clone(),
                peers: work.clone(),
                python: Box::new(move |_| Ok(python.clone())),
            };
            in_small("x", what, &programs).unwrap()
        };
        let gone = measured(PathBuf::from("/bin/false"));
        assert_eq!(gone.rows[0]["ratio"], Value::Null, "{:?}", gone.rows);
        assert!(gone.rows[0]["ours"].as_f64().is_some_and(|speed| speed > 0.0));
        assert!(gone.about["missing"][0].is_string() && gone.about["different"][0].is_null());
        let other = measured(side("other", 5.0));
        assert!(other.rows[0]["ours"].is_number() && other.rows[0]["peer"].is_null());
        assert!(other.about["different"][0].is_string());
        assert!(same(other).is_err(), "a bench has no figures then");
        std::fs::remove_dir_all(&work).unwrap();
    }

    /// Both sides of every case, started as on a GPU, have the same first loss (`check_losses`).
    #[test]
    #[ignore = "needs the Python peers, AdapterHub's for one case; a minute"]
    fn every_case_runs_in_small_on_the_cpu() -> Result<()> {
        let setup = crate::setup::Setup::locate()?;
        let Some(python) = setup.peers_python() else {
            println!("SKIPPED: no Python peers in {}", setup.peers_folder().display());
            return Ok(());
        };
        crate::bench::build(&setup, "tunebook-tune", "bench_train")?;
        let bench =
            Bench { setup: &setup, python, gguf: PathBuf::new(), peer_model: PathBuf::new() };
        for case in CASES {
            let Kind::Gpu(what) = &case.kind else { continue };
            let needs_hub = what.peers.iter().any(|peer| peer.packages == Packages::AdapterHub);
            if needs_hub && std::env::var_os("TUNEBOOK_ADAPTERHUB").is_none() {
                println!(
                    "SKIPPED: {}: TUNEBOOK_ADAPTERHUB names no environment with the package `adapters`",
                    case.name
                );
                continue;
            }
            let measured = bench.tiny(case, what)?;
            let speed = &measured.rows[0];
            assert_eq!(speed["case"], format!("{}-tiny-on-the-cpu", case.name));
            assert!(speed["ours"].as_f64().is_some_and(|speed| speed > 0.0), "{speed}");
            assert_eq!(speed["ratio"].is_null(), what.peers.is_empty(), "{speed}");
            println!("{}", measured.about);
        }
        Ok(())
    }

    #[test]
    fn a_limit_is_a_row_and_each_batch_has_its_own() {
        let Some(Case { name, kind: Kind::Gpu(what) }) = CASES.last() else {
            unreachable!("the last case is h100-lora-7b")
        };
        let done = [done("ours", &[9.0], 0.5, Some(18_000.0))];
        let rows = figures(name, what, &Place::Cpu, "_4x1024", (4, 1024), &done);
        let found = |metric: &str| rows.iter().find(|row| row["metric"] == metric);
        assert_eq!(
            found("tokens_per_s_4x1024").map(|row| row["ours"].clone()),
            Some(json!(8192.0))
        );
        assert_eq!(
            found("peak_gpu_mb_against_limit_4x1024").map(|row| row["ratio"].clone()),
            Some(json!(0.75))
        );
    }
}
