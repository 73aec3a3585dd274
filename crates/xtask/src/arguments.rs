//! The command line of `cargo xtask`.

use std::path::PathBuf;

use crate::dist::Dist;
use crate::error::{Error, Result};
use crate::gpu_kit::GpuKit;

/// The text for `cargo xtask`, `--help` and a wrong command line.
pub(crate) const USAGE: &str = "\
usage: cargo xtask COMMAND

  lab [--no-browser] [--port N] [--cuda]
                                  set everything up, then open JupyterLab on notebook 00
  run NOTEBOOK [-p NAME=VALUE]... [--kernel NAME] [--out DIR] [--cuda]
                                  set everything up, then execute a notebook headless;
                                  the executed notebook and an HTML page go to DIR
                                  (default: out/ in the repository)
                                  -p: a value for a variable of the cell tagged `parameters`
                                  --cuda: cells compute on an NVIDIA GPU
                                  (built apart; never run on one so far)
  test [--long]                   everything that a change must pass;
                                  --long adds slow tests and fails on skips
  bench train|generate|serve|cells|data|judge [CASE...] [--json FILE]
                                  compare with the peer in one run
  setup                           the set-up alone (for a machine that goes offline later)
  dist [--with-toolchain] [--out DIR]
                                  a kit for machines without a network: kernel, compiled
                                  crates, Python packages, model and notebooks in one archive
                                  (default: target/tunebook/dist; see docs/workshop.md)
  gpu-kit [--arch 90] [--out DIR]
                                  a kit that proves the code for GPUs on a machine with one
                                  (default: target/tunebook/gpu-kit; see docs/gpu.md)
                                  --try: every part in small on this CPU
                                  --check: all that can be proven of a kit without a GPU
                                  --read result.json: its table into docs/measurements.md
  features [--check]              renew crates/workspace-hack after a change of dependencies";

/// A parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Set up and open JupyterLab.
    Lab { browser: bool, port: Option<u16>, cuda: bool },
    /// Set up and execute one notebook.
    Run {
        notebook: PathBuf,
        kernel: String,
        out: Option<PathBuf>,
        parameters: Vec<String>,
        cuda: bool,
    },
    /// Run the tests.
    Test { long: bool },
    /// Run a benchmark.
    Bench { which: Bench, cases: Vec<String>, json: Option<PathBuf> },
    /// Set up only.
    Setup,
    /// Make a workshop kit.
    Dist(Dist),
    /// Make, run or read a kit for a machine with a GPU.
    GpuKit(GpuKit),
    /// Renew or check the unified features.
    Features { check: bool },
    /// Show the usage.
    Help,
}

/// A family of benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bench {
    /// Training steps, compared with PyTorch and PEFT.
    Train,
    /// Generated text, compared with llama.cpp, transformers and mistral.rs.
    Generate,
    /// Answers over HTTP, compared with llama.cpp and mistral.rs.
    Serve,
    /// Kernel start and cells, compared with the stock kernel.
    Cells,
    /// Cleaning and deduplication, compared with datasets and datatrove.
    Data,
    /// Accuracy on held-out rows before and after training.
    Judge,
}

/// Parses the words after `cargo xtask`.
///
/// # Errors
/// [`Error::Usage`] names the word that is not understood, and what would be.
pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Command> {
    let mut words = words.into_iter();
    let Some(command) = words.next() else { return Ok(Command::Help) };
    let mut words = Words(words.collect::<Vec<_>>().into());
    let parsed = match command.as_str() {
        "lab" => {
            let (mut browser, mut port, mut cuda) = (true, None, false);
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--no-browser" => browser = false,
                    "--cuda" => cuda = true,
                    "--port" => {
                        let value = words.value("--port")?;
                        let number = value.parse().map_err(|_| {
                            usage(format!(
                                "--port takes a number between 0 and 65535, not `{value}`"
                            ))
                        })?;
                        port = Some(number);
                    }
                    other => return Err(unknown("lab", other, "--no-browser, --port N, --cuda")),
                }
            }
            Command::Lab { browser, port, cuda }
        }
        "run" => {
            let (mut notebook, mut kernel, mut out, mut parameters, mut cuda) =
                (None, "tunebook".to_owned(), None, Vec::new(), false);
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--cuda" => cuda = true,
                    "--kernel" => kernel = words.value("--kernel")?,
                    "--out" => out = Some(words.value("--out")?.into()),
                    "-p" => parameters.push(words.value("-p")?),
                    other if other.starts_with('-') => {
                        let options = "-p NAME=VALUE, --kernel NAME, --out DIR, --cuda";
                        return Err(unknown("run", other, options));
                    }
                    path if notebook.is_none() => notebook = Some(PathBuf::from(path)),
                    other => {
                        return Err(usage(format!(
                            "`run` takes one notebook; `{other}` is one too many"
                        )));
                    }
                }
            }
            let notebook = notebook.ok_or_else(|| {
                usage("`run` needs a notebook: cargo xtask run notebooks/00….ipynb".to_owned())
            })?;
            Command::Run { notebook, kernel, out, parameters, cuda }
        }
        "test" => {
            let mut long = false;
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--long" => long = true,
                    other => return Err(unknown("test", other, "--long")),
                }
            }
            Command::Test { long }
        }
        "bench" => {
            let which = match words.next().as_deref() {
                Some("train") => Bench::Train,
                Some("generate") => Bench::Generate,
                Some("serve") => Bench::Serve,
                Some("cells") => Bench::Cells,
                Some("data") => Bench::Data,
                Some("judge") => Bench::Judge,
                Some(other) => {
                    return Err(usage(format!(
                        "there is no bench `{other}`; there are: train, generate, serve, cells, data, judge"
                    )));
                }
                None => {
                    return Err(usage(
                        "`bench` needs one of: train, generate, serve, cells, data, judge"
                            .to_owned(),
                    ));
                }
            };
            let (mut cases, mut json) = (Vec::new(), None);
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--json" => json = Some(words.value("--json")?.into()),
                    other if other.starts_with('-') => {
                        return Err(unknown("bench", other, "--json FILE"));
                    }
                    _ => cases.push(word),
                }
            }
            Command::Bench { which, cases, json }
        }
        "setup" => {
            if let Some(other) = words.next() {
                return Err(unknown("setup", &other, "none"));
            }
            Command::Setup
        }
        "dist" => {
            let mut dist = Dist { out: None, with_toolchain: false };
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--with-toolchain" => dist.with_toolchain = true,
                    "--out" => dist.out = Some(words.value("--out")?.into()),
                    other => return Err(unknown("dist", other, "--with-toolchain, --out DIR")),
                }
            }
            Command::Dist(dist)
        }
        "gpu-kit" => Command::GpuKit(gpu_kit(&mut words)?),
        "features" => {
            let mut check = false;
            while let Some(word) = words.next() {
                match word.as_str() {
                    "--check" => check = true,
                    other => return Err(unknown("features", other, "--check")),
                }
            }
            Command::Features { check }
        }
        "help" | "--help" | "-h" => Command::Help,
        other => return Err(usage(format!("there is no command `{other}`"))),
    };
    Ok(parsed)
}

/// The words after `gpu-kit`. `--run` and `--part` are for the kit itself.
fn gpu_kit(words: &mut Words) -> Result<GpuKit> {
    const OPTIONS: &str = "--arch N, --out DIR, --try, --check, --read FILE";
    let (mut arch, mut out, mut tries) = ("90".to_owned(), None, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--arch" => arch = words.value("--arch")?,
            "--out" => out = Some(words.value("--out")?.into()),
            "--try" => tries = true,
            "--check" => return Ok(GpuKit::Check),
            "--read" => return Ok(GpuKit::Read(words.value("--read")?.into())),
            "--run" => {
                let kit = words.value("--run")?.into();
                let parts = std::iter::from_fn(|| words.next()).collect();
                return Ok(GpuKit::Run { kit, parts });
            }
            "--part" => {
                let name = words.value("--part")?;
                let kit = words.next().unwrap_or_else(|| ".".to_owned()).into();
                return Ok(GpuKit::Part { name, kit });
            }
            other => return Err(unknown("gpu-kit", other, OPTIONS)),
        }
    }
    if !arch.bytes().all(|digit| digit.is_ascii_digit()) || arch.len() < 2 {
        return Err(usage(format!(
            "--arch takes a compute capability without its dot, such as 90 for 9.0, not `{arch}`"
        )));
    }
    Ok(if tries { GpuKit::Try { out } } else { GpuKit::Build { arch, out } })
}

/// The words that remain; `--option=value` counts as two.
struct Words(std::collections::VecDeque<String>);

impl Words {
    fn next(&mut self) -> Option<String> {
        let word = self.0.pop_front()?;
        if word.starts_with("--")
            && let Some((option, value)) = word.split_once('=')
        {
            self.0.push_front(value.to_owned());
            return Some(option.to_owned());
        }
        Some(word)
    }

    fn value(&mut self, option: &str) -> Result<String> {
        match self.0.pop_front() {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(usage(format!("{option} needs a value"))),
        }
    }
}

fn usage(what: String) -> Error {
    Error::Usage(format!("{what}\n\n{USAGE}"))
}

fn unknown(command: &str, word: &str, options: &str) -> Error {
    usage(format!("`{command}` does not know `{word}`; its options are: {options}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn refusal(line: &str) -> String {
        match words(line) {
            Err(Error::Usage(text)) => text.lines().next().unwrap_or_default().to_owned(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn commands_and_defaults() {
        assert_eq!(words("").unwrap(), Command::Help);
        assert_eq!(words("lab").unwrap(), Command::Lab { browser: true, port: None, cuda: false });
        assert_eq!(
            words("lab --no-browser --port=9000").unwrap(),
            Command::Lab { browser: false, port: Some(9000), cuda: false }
        );
        assert_eq!(
            words("lab --cuda").unwrap(),
            Command::Lab { browser: true, port: None, cuda: true }
        );
        assert_eq!(
            words("run a.ipynb").unwrap(),
            Command::Run {
                notebook: "a.ipynb".into(),
                kernel: "tunebook".into(),
                out: None,
                parameters: vec![],
                cuda: false
            }
        );
        assert_eq!(
            words("run --kernel=tunebook-stock a.ipynb --out x/y -p epochs=5 -p name=a=b").unwrap(),
            Command::Run {
                notebook: "a.ipynb".into(),
                kernel: "tunebook-stock".into(),
                out: Some("x/y".into()),
                parameters: vec!["epochs=5".into(), "name=a=b".into()],
                cuda: false
            }
        );
        assert_eq!(words("test --long").unwrap(), Command::Test { long: true });
        assert_eq!(
            words("bench train lora-4x128-f32 --json t.json").unwrap(),
            Command::Bench {
                which: Bench::Train,
                cases: vec!["lora-4x128-f32".into()],
                json: Some("t.json".into())
            }
        );
        assert_eq!(
            words("bench generate").unwrap(),
            Command::Bench { which: Bench::Generate, cases: vec![], json: None }
        );
        assert_eq!(
            words("bench serve clients-8").unwrap(),
            Command::Bench { which: Bench::Serve, cases: vec!["clients-8".into()], json: None }
        );
        assert_eq!(
            words("dist --with-toolchain --out=x").unwrap(),
            Command::Dist(Dist { out: Some("x".into()), with_toolchain: true })
        );
        assert_eq!(
            words("gpu-kit --arch 80 --out x").unwrap(),
            Command::GpuKit(GpuKit::Build { arch: "80".into(), out: Some("x".into()) })
        );
        assert_eq!(
            words("gpu-kit --run kit a b").unwrap(),
            Command::GpuKit(GpuKit::Run { kit: "kit".into(), parts: vec!["a".into(), "b".into()] })
        );
        assert_eq!(words("gpu-kit --check").unwrap(), Command::GpuKit(GpuKit::Check));
        assert_eq!(words("features --check").unwrap(), Command::Features { check: true });
    }

    #[test]
    fn a_wrong_word_is_named_with_what_would_do() {
        assert_eq!(refusal("lap"), "there is no command `lap`");
        assert_eq!(
            refusal("test --lnog"),
            "`test` does not know `--lnog`; its options are: --long"
        );
        assert_eq!(refusal("run"), "`run` needs a notebook: cargo xtask run notebooks/00….ipynb");
        assert_eq!(
            refusal("run a.ipynb b.ipynb"),
            "`run` takes one notebook; `b.ipynb` is one too many"
        );
        assert_eq!(
            refusal("gpu-kit --arch 9.0"),
            "--arch takes a compute capability without its dot, such as 90 for 9.0, not `9.0`"
        );
        assert_eq!(refusal("run a.ipynb --kernel"), "--kernel needs a value");
        assert_eq!(
            refusal("bench gpu"),
            "there is no bench `gpu`; there are: train, generate, serve, cells, data, judge"
        );
        assert_eq!(
            refusal("lab --port many"),
            "--port takes a number between 0 and 65535, not `many`"
        );
    }
}
