//! `tunebook export RECIPE`, `tunebook plan`, `tunebook import-run`.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tunebook_export::cluster::{
    self, Accelerate, Card, Engine, EngineRun, ExportOptions, HostedData, Prices,
};
use tunebook_export::folder;
use tunebook_runs::Registry;

use crate::recipe::{self, Overrides};

/// What a recipe is exported to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum To {
    /// `trl sft`.
    Trl,
    /// `axolotl train`.
    Axolotl,
    /// A provider that reads OpenAI's chat format.
    Openai,
}

/// How a model is shared out among cards.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    /// PyTorch's fully sharded data parallel, second version.
    Fsdp2,
    /// DeepSpeed's ZeRO, stage 3.
    Zero3,
}

impl From<Profile> for Accelerate {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Fsdp2 => Self::Fsdp2,
            Profile::Zero3 => Self::Zero3,
        }
    }
}

/// The arguments of a recipe's export.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The engine or provider that a recipe is exported to.
    #[arg(long, value_name = "ENGINE")]
    pub(crate) to: Option<To>,
    /// How the model is shared out among the cards [default: each has all of it].
    #[arg(long, value_name = "PROFILE", requires = "to")]
    accelerate: Option<Profile>,
    /// How many cards there are [default: 1, or 8 with --accelerate].
    #[arg(long, value_name = "N", requires = "to")]
    gpus: Option<usize>,
    /// Which ones, by SkyPilot's name.
    #[arg(long, value_name = "NAME", default_value = "H100")]
    gpu: String,
    /// Writes a task for SkyPilot, too.
    #[arg(long, requires = "to")]
    sky: bool,
    /// The base model for the engine, a repository of the hub or a folder, where the recipe's is a
    /// file. It has to be the same model.
    #[arg(long, value_name = "MODEL", requires = "to")]
    base: Option<String>,
    /// Your own table of prices, as TOML.
    #[arg(long, value_name = "FILE", requires = "to")]
    prices: Option<PathBuf>,
}

/// Writes the folder of a recipe, and says what to do in it.
pub(crate) fn export(
    path: &Path,
    overrides: &Overrides,
    out: Option<&Path>,
    arguments: &ExportArguments,
) -> Result<(), Box<dyn Error>> {
    let to =
        arguments.to.ok_or("name what the recipe is exported to: --to trl, axolotl or openai")?;
    let mut recipe = recipe::read(path, overrides)?;
    let stem = path.file_stem().unwrap_or_default();
    recipe.name.get_or_insert_with(|| stem.to_string_lossy().into_owned());
    let out = match out {
        Some(out) => out.to_owned(),
        None => Path::new("out/export").join(stem),
    };
    let from = std::fs::canonicalize(path)?.to_string_lossy().into_owned();
    let engine = match to {
        To::Trl => Engine::Trl,
        To::Axolotl => Engine::Axolotl,
        To::Openai => {
            let prices = arguments.prices.as_ref().map(Prices::read).transpose()?;
            let data = cluster::hosted(&recipe, prices.as_ref())?;
            folder::write_files(&data.files, &from, &out)?;
            say(&data, prices.as_ref());
            println!("{}", out.display());
            return Ok(());
        }
    };
    let accelerate = arguments.accelerate.map(Accelerate::from);
    let options = ExportOptions {
        accelerate,
        gpus: arguments.gpus.unwrap_or(if accelerate.is_some() { 8 } else { 1 }),
        gpu: arguments.gpu.clone(),
        sky: arguments.sky,
        base: arguments.base.clone(),
        ..ExportOptions::new(engine)
    };
    let export = cluster::export(&recipe, &options)?;
    folder::write_files(&export.files, &from, &out)?;
    export.notes.iter().for_each(|note| eprintln!("note: {note}"));
    println!("{}", out.display());
    let there = if options.sky { "sky launch sky.yaml" } else { export.command.as_str() };
    eprintln!(
        "Train: cd {0} && pip install -r requirements.txt && python verify.py && {there}\n\
         Back: tunebook import-run {0} --registry registry",
        out.display()
    );
    Ok(())
}

fn say(data: &HostedData, prices: Option<&Prices>) {
    let HostedData { rows, tokens, longest, epochs, .. } = data;
    eprintln!(
        "{rows} rows, {tokens} tokens by the recipe's tokenizer, {longest} the longest, {epochs} epochs"
    );
    let currency = prices.map(|prices| prices.currency.as_str()).unwrap_or_default();
    for (model, price) in &data.prices {
        eprintln!("{model}: {price:.2} {currency}");
    }
    data.notes.iter().for_each(|note| eprintln!("note: {note}"));
}

/// `tunebook plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    /// The recipe.
    recipe: PathBuf,
    /// The cards to plan for [default: all that are known].
    #[arg(long = "gpu", value_name = "NAME")]
    cards: Vec<String>,
    /// How many cards there are.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    gpus: u32,
    /// How the model is shared out among them [default: each has all of it].
    #[arg(long, value_name = "PROFILE")]
    accelerate: Option<Profile>,
    /// Your own table of prices, as TOML: what an hour of a card costs.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn plan(arguments: &PlanArguments) -> Result<(), Box<dyn Error>> {
    let recipe = recipe::read(&arguments.recipe, &arguments.overrides)?;
    let cards =
        arguments.cards.iter().map(|name| Card::named(name)).collect::<Result<Vec<_>, _>>()?;
    let prices = arguments.prices.as_ref().map(Prices::read).transpose()?;
    let accelerate = arguments.accelerate.map(Accelerate::from);
    let gpus = arguments.gpus as usize;
    println!("{}", cluster::plan(&recipe, &cards, gpus, accelerate, prices.as_ref())?);
    Ok(())
}

/// `tunebook import-run`.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The folder that `tunebook export` wrote, with what the engine wrote to its `out`.
    folder: PathBuf,
    /// The registry; it is made where there is none.
    #[arg(long, value_name = "DIR", default_value = "registry")]
    registry: PathBuf,
}

pub(crate) fn import(arguments: &ImportArguments) -> Result<(), Box<dyn Error>> {
    // First the run: no registry is made for one that cannot be used.
    let run = EngineRun::read(&arguments.folder)?;
    let imported = run.record(&Registry::open(&arguments.registry)?)?;
    imported.notes.iter().for_each(|note| eprintln!("note: {note}"));
    eprintln!("{}", imported.record);
    match &imported.adapter {
        Some(adapter) => println!("run {}, adapter {adapter}", imported.run),
        None => println!("run {}", imported.run),
    }
    Ok(())
}
