//! `tunebook push`.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use tunebook_hub::{Hub, Kind, UploadArgs, UploadContent, UploadFile, UploadState, folder_files};
use tunebook_progress::interrupt;
use tunebook_runs::{Benchmark, CardArgs, License, ModelCard, Registry, hub_name};

/// The configuration of an adapter, which names the base.
const CONFIG: &str = "adapter_config.json";
/// The base's name in it: PEFT's key, AdapterHub's and MLX's.
const BASES: [&str; 3] = ["base_model_name_or_path", "model_name", "model"];
/// The tokenizer's place, which is the base's: of prompt tuning.
const TOKENIZER: &str = "tokenizer_name_or_path";
/// What a whole model's files say of where they were loaded from. Nobody needs it.
const LOADED_FROM: [(&str, &str); 2] =
    [("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")];
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
    /// Leaves a file or a folder out. May be given several times.
    #[arg(long, value_name = "NAME")]
    exclude: Vec<String>,
    /// Sends a file that is a link to elsewhere, or looks like a secret or like rows of data. May be
    /// given several times.
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
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
    let (mut files, mut left_out) = folder_files(&source.folder)
        .map_err(|error| format!("{}: {error}", source.folder.display()))?;
    leave_out(&mut files, &mut left_out, &arguments.exclude)?;
    let is_model = |file: &UploadFile| {
        let name = file_name(file);
        name == CONFIG || name == "config.json" || name.ends_with(".gguf")
    };
    if !files.iter().any(is_model) {
        return Err(format!(
            "`{}` has neither an adapter ({CONFIG}) nor a model (config.json, a GGUF file): \
             nothing is sent",
            source.folder.display()
        )
        .into());
    }
    for name in &arguments.allow {
        if !files.iter().any(|file| file.path == *name) {
            return Err(format!("--allow `{name}`: there is no such file to send").into());
        }
    }
    let has = |files: &[UploadFile], name: &str| files.iter().any(|file| file.path == name);
    let base = source.base(arguments, &hub)?;
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
    let given = arguments.base_model.is_some();
    for file in &mut files {
        name_base(file, base.as_deref(), given, &source, &hub)?;
    }
    for (name, text) in card.iter().flat_map(ModelCard::files) {
        files.push(UploadFile::text(name, text));
    }
    let usual = UploadArgs::default();
    let args = UploadArgs {
        message: arguments.message.clone().unwrap_or(usual.message),
        revision: branch.map_or(usual.revision, str::to_owned),
        private: arguments.private,
        create_pr: arguments.create_pr,
        allowed: arguments.allow.clone(),
        ..UploadArgs::default()
    };
    hub.check_upload(repo, &files, &args)?;
    if arguments.dry_run {
        return show(&files, &left_out, &hub.page(repo));
    }
    let all = files.iter().map(|file| file.content.size()).sum::<std::io::Result<u64>>()?;
    let (count, page) = (files.len(), hub.page(repo));
    let pr = if args.create_pr { ", as a pull request" } else { "" };
    eprintln!("{count} files, {}, go to {page}, branch {}{pr}", size(all), args.revision);
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
    fn base(&self, arguments: &Arguments, hub: &Hub) -> Result<Option<String>, Box<dyn Error>> {
        if let Some(given) = &arguments.base_model {
            return match tunebook_hub::is_repository(given) && !given.contains('@') {
                true => Ok(Some(given.clone())),
                false => Err(format!("--base-model `{given}`: expected OWNER/NAME").into()),
            };
        }
        if let (Some(registry), Some(run)) = (&self.registry, &self.run) {
            let why = registry.why(run)?;
            let name = why.links.first().and_then(|link| link.base_model.as_deref());
            // Where the run names a place, its files know no better.
            return Ok(name
                .filter(|name| !self.is_near(name))
                .and_then(hub_name)
                .map(str::to_owned));
        }
        Ok(config_base(&self.folder).and_then(|name| self.on_hub(&name, hub)))
    }

    /// The hub's name of a base that a file names, if it is known to be one: the same letters may be a
    /// folder of the computer that it was trained on, and a stranger's repository.
    fn on_hub(&self, name: &str, hub: &Hub) -> Option<String> {
        let on_hub = hub_name(name).filter(|_| !self.is_near(name))?;
        let was_fetched = || hub.clone().offline(true).open(Kind::Model, name).is_ok();
        (on_hub != name || was_fetched()).then(|| on_hub.to_owned())
    }

    /// Whether a name is a file or folder, seen from here or from a folder that the files lie in.
    fn is_near(&self, name: &str) -> bool {
        let roots = [Some(&*self.folder), self.registry.as_ref().map(Registry::root)];
        let roots = roots.into_iter().flatten().filter_map(|root| root.canonicalize().ok());
        let is_below = |root: PathBuf| root.ancestors().any(|above| above.join(name).exists());
        Path::new(name).exists() || roots.into_iter().any(is_below)
    }
}

/// Leaves files and folders out that the user names.
fn leave_out(
    files: &mut Vec<UploadFile>,
    left_out: &mut Vec<String>,
    names: &[String],
) -> Result<(), Box<dyn Error>> {
    for name in names {
        let name = name.trim_end_matches('/');
        let is_meant = |path: &str| {
            path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let before = files.len();
        files.retain(|file| !is_meant(&file.path));
        if files.len() == before && !left_out.iter().any(|left| is_meant(left)) {
            return Err(format!("--exclude `{name}`: there is no such file or folder").into());
        }
        left_out.push(name.to_owned());
    }
    left_out.sort();
    left_out.dedup();
    Ok(())
}

/// The base that an adapter's files name.
fn config_base(folder: &Path) -> Option<String> {
    let bytes = std::fs::read(folder.join(CONFIG)).ok()?;
    let config: Value = serde_json::from_slice(&bytes).ok()?;
    BASES.iter().find_map(|key| config[key].as_str()).map(str::to_owned)
}

/// The last part of a file's path in the repository.
fn file_name(file: &UploadFile) -> &str {
    file.path.rsplit('/').next().unwrap_or_default()
}

/// Lets a configuration, at the top or in a subfolder, name the base as everybody can load it: what a run
/// has loaded it by may be a place on this computer.
fn name_base(
    file: &mut UploadFile,
    base: Option<&str>,
    given: bool,
    source: &Source,
    hub: &Hub,
) -> Result<(), Box<dyn Error>> {
    let UploadContent::File(path) = &file.content else { return Ok(()) };
    let name = file_name(file);
    let loaded_from = LOADED_FROM.iter().find(|(file, _)| *file == name).map(|(_, key)| *key);
    if name != CONFIG && loaded_from.is_none() {
        return Ok(());
    }
    let mut json: Value = serde_json::from_slice(&std::fs::read(path)?)
        .map_err(|error| format!("`{}`: {error}", path.display()))?;
    let Some(fields) = json.as_object_mut() else { return Ok(()) };
    let mut changed = Vec::new();
    if let Some(key) = loaded_from {
        let is_place = |name: &str| {
            name.starts_with(['/', '.', '~']) || name.contains('\\') || source.is_near(name)
        };
        if fields.get(key).and_then(Value::as_str).is_some_and(is_place) {
            fields.remove(key);
            changed.push(format!("without `{key}`, a place on this computer"));
        }
    }
    let keys = BASES.iter().chain([&TOKENIZER]).filter(|_| name == CONFIG);
    for key in keys {
        let Some(named) = fields.get(*key).and_then(Value::as_str) else { continue };
        // An adapter in a subfolder may have another base.
        let is_own = |_: &&str| given && file.path == CONFIG;
        let on_hub = base.filter(is_own).map(str::to_owned).or_else(|| source.on_hub(named, hub));
        let Some(base) = on_hub.or_else(|| base.map(str::to_owned)) else {
            return Err(format!(
                "`{}` names the base as `{named}`. That it is a repository of the hub, and no folder \
                 of the computer that it was trained on, is not known: give its name on the hub \
                 (--base-model OWNER/NAME)",
                file.path
            )
            .into());
        };
        if named != base {
            changed.push(format!("with the base's name on the hub, `{base}`"));
            fields.insert((*key).to_owned(), Value::from(base));
        }
    }
    if !changed.is_empty() {
        changed.dedup();
        eprintln!("note: {} is sent {}", file.path, changed.join(" and "));
        *file = UploadFile::text(&file.path, &format!("{json:#}\n"));
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

fn show(files: &[UploadFile], left_out: &[String], page: &str) -> Result<(), Box<dyn Error>> {
    let mut all = 0;
    for file in files {
        let bytes = file.content.size().map_err(|error| format!("`{}`: {error}", file.path))?;
        println!("{:>10}  {}", size(bytes), file.path);
        all += bytes;
    }
    println!("{:>10}  {} files for {page}; nothing was sent", size(all), files.len());
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
