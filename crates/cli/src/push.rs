//! `tunebook push`.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use tunebook_hub::{Hub, Kind, UploadArgs, UploadContent, UploadFile, UploadState, folder_files};
use tunebook_progress::interrupt;
use tunebook_runs::{Benchmark, CardArgs, License, ModelCard, Registry, hub_name};

/// PEFT's configuration, which names the base.
const CONFIG: &str = "adapter_config.json";
const BASE: &str = "base_model_name_or_path";
const CARD: &str = "README.md";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A folder with an adapter or a model, or what a registry has: an adapter's id, an alias, or a
    /// run's id or name.
    what: String,
    /// The repository on the hub; it is made if need be. `owner/name@branch` names a branch.
    #[arg(long, value_name = "OWNER/NAME")]
    to: String,
    /// A repository that is made is private; one that is there must be.
    #[arg(long)]
    private: bool,
    /// Opens a pull request, and leaves the branch as it is.
    #[arg(long)]
    create_pr: bool,
    /// Shows the files and the card, and sends nothing.
    #[arg(long)]
    dry_run: bool,
    /// The commit's message.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// The registry's folder.
    #[arg(long, value_name = "DIR", default_value = "registry")]
    registry: PathBuf,
    /// The run that a folder's card is written from.
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Sends no card that the folder does not have.
    #[arg(long, conflicts_with = "run")]
    no_card: bool,
    /// The base's name on the hub, where the run has loaded it by another.
    #[arg(long, value_name = "OWNER/NAME")]
    base_model: Option<String>,
    /// The base's licence, by the hub's name for it [default: the one on the base's card].
    #[arg(long)]
    license: Option<String>,
    /// A language of the data: `en`. May be given several times.
    #[arg(long = "language", value_name = "CODE")]
    languages: Vec<String>,
    /// A data set on the hub that it was trained on. May be given several times.
    #[arg(long = "dataset", value_name = "OWNER/NAME")]
    datasets: Vec<String>,
    /// A tag. May be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// What it is for, for the card.
    #[arg(long, value_name = "TEXT")]
    intended_use: Option<String>,
    /// Where the data come from, for the card.
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// What it cannot do, for the card.
    #[arg(long, value_name = "TEXT")]
    limits: Option<String>,
    /// The benchmark on the hub that a recorded score was measured on: `openai/gsm8k:main:exact_match`.
    #[arg(long, value_name = "DATASET:TASK:METRIC", value_parser = benchmark)]
    benchmark: Option<Benchmark>,
}

fn benchmark(text: &str) -> Result<Benchmark, String> {
    let parts: Vec<&str> = text.split(':').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [dataset, task, metric] => Ok(Benchmark {
            dataset: dataset.to_owned(),
            task: task.to_owned(),
            metric: metric.to_owned(),
        }),
        _ => Err("expected DATASET:TASK:METRIC".to_owned()),
    }
}

/// Sends the files with a card, or shows them, and says where they are.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    interrupt::catch_ctrl_c();
    let (repo, branch) = match arguments.to.split_once('@') {
        Some((repo, branch)) => (repo, Some(branch)),
        None => (&*arguments.to, None),
    };
    if !tunebook_hub::is_repository(&arguments.to) {
        return Err(format!("--to `{}`: expected OWNER/NAME", arguments.to).into());
    }
    let hub = Hub::from_env();
    let source = Source::find(arguments)?;
    let (mut files, left_out) = folder_files(&source.folder)
        .map_err(|error| format!("{}: {error}", source.folder.display()))?;
    let has = |files: &[UploadFile], name: &str| files.iter().any(|file| file.path == name);
    let base = source.base(arguments)?;
    let card = match &source.run {
        Some(run) if !arguments.no_card => {
            if has(&files, CARD) {
                let folder = source.folder.display();
                return Err(format!(
                    "`{folder}` has a {CARD}, and --run would put another in its place: move it \
                     away, or leave --run out"
                )
                .into());
            }
            let merged = !has(&files, CONFIG);
            Some(card(arguments, repo, run, base.as_deref(), merged, &source, &hub)?)
        }
        _ => None,
    };
    if card.is_none() && !arguments.no_card && !has(&files, CARD) {
        return Err(format!(
            "`{}` has no {CARD}. Name the run that it comes from (--run), write one, or send it \
             without (--no-card)",
            source.folder.display()
        )
        .into());
    }
    if let Some(config) = files.iter_mut().find(|file| file.path == CONFIG) {
        name_base(config, base.as_deref())?;
    }
    for (name, text) in card.iter().flat_map(ModelCard::files) {
        files.push(UploadFile::text(name, text));
    }
    if arguments.dry_run {
        return show(&files, &left_out, repo);
    }
    let usual = UploadArgs::default();
    let args = UploadArgs {
        message: arguments.message.clone().unwrap_or(usual.message),
        revision: branch.map_or(usual.revision, str::to_owned),
        private: arguments.private,
        create_pr: arguments.create_pr,
        ..UploadArgs::default()
    };
    let uploaded = hub.upload(repo, &files, &args)?;
    for file in &uploaded.files {
        let state = match file.state {
            UploadState::Sent => "sent",
            UploadState::Stored => "was on the hub already",
            UploadState::Unchanged => "unchanged",
            UploadState::Ignored => "left out by the repository's .gitignore",
            _ => "done",
        };
        eprintln!("{:>10}  {}  {state}", size(file.bytes), file.path);
    }
    left_out.iter().for_each(|name| eprintln!("note: `{name}` stays here"));
    println!("{}", uploaded.pull_request.as_ref().unwrap_or(&uploaded.url));
    Ok(())
}

/// What is sent, and the run behind it.
struct Source {
    folder: PathBuf,
    registry: Option<Registry>,
    /// The name by which the registry knows it.
    run: Option<String>,
}

impl Source {
    fn find(arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let folder = PathBuf::from(&arguments.what);
        if folder.is_file() {
            return Err(format!("`{}` is a file: give its folder", folder.display()).into());
        }
        let open = || -> Result<Registry, Box<dyn Error>> {
            let place = &arguments.registry;
            if !place.is_dir() {
                return Err(format!(
                    "there is no registry `{}`; name it (--registry)",
                    place.display()
                )
                .into());
            }
            Ok(Registry::open(place)?)
        };
        if folder.is_dir() {
            let registry = arguments.run.is_some().then(open).transpose()?;
            return Ok(Self { folder, registry, run: arguments.run.clone() });
        }
        let named =
            |error: Box<dyn Error>| format!("there is no folder `{}`, and {error}", arguments.what);
        let registry = open().map_err(named)?;
        let folder =
            registry.adapter_folder(&arguments.what).map_err(|error| named(error.into()))?;
        let run = arguments.run.clone().unwrap_or_else(|| arguments.what.clone());
        Ok(Self { folder, registry: Some(registry), run: Some(run) })
    }

    /// The base's name on the hub: as it is given, as the run knows it, or as the files do.
    fn base(&self, arguments: &Arguments) -> Result<Option<String>, Box<dyn Error>> {
        if let Some(given) = &arguments.base_model {
            return Ok(Some(given.clone()));
        }
        let mut names = Vec::new();
        if let (Some(registry), Some(run)) = (&self.registry, &self.run) {
            let why = registry.why(run)?;
            names.extend(why.links.first().and_then(|link| link.base_model.clone()));
        }
        names.extend(config_base(&self.folder));
        Ok(names.iter().find_map(|name| hub_name(name)).map(str::to_owned))
    }
}

/// The base that an adapter's files name.
fn config_base(folder: &Path) -> Option<String> {
    let bytes = std::fs::read(folder.join(CONFIG)).ok()?;
    let config: Value = serde_json::from_slice(&bytes).ok()?;
    config[BASE].as_str().map(str::to_owned)
}

/// Lets the configuration name the base as everybody can load it: what a run has loaded it by may be a
/// place on this computer.
fn name_base(config: &mut UploadFile, base: Option<&str>) -> Result<(), Box<dyn Error>> {
    let UploadContent::File(path) = &config.content else { return Ok(()) };
    let mut json: Value = serde_json::from_slice(&std::fs::read(path)?)
        .map_err(|error| format!("`{}`: {error}", path.display()))?;
    let Some(named) = json[BASE].as_str() else { return Ok(()) };
    let Some(base) = base else {
        return Err(format!(
            "{CONFIG} names the base as `{named}`, which nobody else can load: give its name on the \
             hub (--base-model OWNER/NAME)"
        )
        .into());
    };
    if named != base {
        eprintln!("note: {CONFIG} is sent with the base's name on the hub, `{base}`");
        json[BASE] = Value::from(base);
        *config = UploadFile::text(CONFIG, &format!("{json:#}\n"));
    }
    Ok(())
}

fn card(
    arguments: &Arguments,
    repo: &str,
    run: &str,
    base: Option<&str>,
    merged: bool,
    source: &Source,
    hub: &Hub,
) -> Result<ModelCard, Box<dyn Error>> {
    let mut args = CardArgs {
        repo: repo.to_owned(),
        base_model: base.map(str::to_owned),
        license: arguments.license.as_deref().map(License::new),
        languages: arguments.languages.clone(),
        datasets: arguments.datasets.clone(),
        tags: arguments.tags.clone(),
        intended_use: arguments.intended_use.clone(),
        data: arguments.data.clone(),
        limits: arguments.limits.clone(),
        merged,
        benchmark: arguments.benchmark.clone(),
    };
    let registry = source.registry.as_ref().ok_or("there is no registry (--registry)")?;
    let card = match registry.card(run, &args) {
        // Only the base's own card knows.
        Err(error) if args.license.is_none() && error.is_about_the_license() => {
            let Some(base) = base else { return Err(error.into()) };
            let readme = hub.open(Kind::Model, base).and_then(|base| base.get(CARD));
            let readme = readme.map_err(|reason| format!("{error}. ({reason})"))?;
            args.license = License::of_card(&std::fs::read_to_string(readme)?);
            registry.card(run, &args)?
        }
        card => card?,
    };
    Ok(card)
}

fn show(files: &[UploadFile], left_out: &[String], repo: &str) -> Result<(), Box<dyn Error>> {
    let mut all = 0;
    for file in files {
        let bytes = file.content.size().map_err(|error| format!("`{}`: {error}", file.path))?;
        println!("{:>10}  {}", size(bytes), file.path);
        all += bytes;
    }
    println!("{:>10}  {} files for {repo}; nothing was sent", size(all), files.len());
    left_out.iter().for_each(|name| println!("`{name}` stays here"));
    for file in files.iter().filter(|file| file.path == CARD || file.path.starts_with(".eval")) {
        let text = match &file.content {
            UploadContent::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            UploadContent::File(path) => std::fs::read_to_string(path)?,
            _ => continue,
        };
        println!("\n{}\n{}\n{}", file.path, "=".repeat(file.path.len()), text.trim_end());
    }
    Ok(())
}

/// `12.3 MB`.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
