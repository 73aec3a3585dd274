//! The card of a model on the Hugging Face hub, written from a recorded run: `README.md` with its front
//! matter (<https://huggingface.co/docs/hub/model-cards>), and scores on a benchmark of the hub as
//! `.eval_results/NAME.yaml` (<https://huggingface.co/docs/hub/eval-results>).
//!
//! A card says what was recorded, and where nothing was, it says so. Of the data it has counts, hashes
//! and the names of steps: no row, no name of a file, column, run or folder. What else is to be said is
//! given in [`CardArgs`].

mod base;
mod front_matter;
mod markdown;
mod sections;
mod yaml;

use tunebook_evaluate::Score;
use tunebook_tune::RunRecord;

pub(crate) use self::base::recorded_name;
pub use self::base::{License, hub_name};
use crate::error::Error;
use crate::registry::Registry;
use crate::summary::Summary;
use crate::why::WhyLink;

/// What a card says that no run knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CardArgs {
    /// The repository that the card is for: `owner/name`.
    pub repo: String,
    /// The base's name on the hub. `None`: the name that it was loaded by, if it is one.
    pub base_model: Option<String>,
    /// The base's licence. `None`: only of the tutorials' base it is known.
    pub license: Option<License>,
    /// The languages of the data: `en`, `de`.
    pub languages: Vec<String>,
    /// The data sets on the hub that it was trained on: `owner/name`.
    pub datasets: Vec<String>,
    /// More tags.
    pub tags: Vec<String>,
    /// What it is for, in Markdown.
    pub intended_use: Option<String>,
    /// Where the data come from, in Markdown.
    pub data: Option<String>,
    /// What else it cannot do, in Markdown.
    pub limits: Option<String>,
    /// The weights are those of a whole model, into which the adapter was merged.
    pub merged: bool,
    /// The benchmark on the hub that a score was measured on.
    pub benchmark: Option<Benchmark>,
}

/// A benchmark on the hub, for `.eval_results/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Benchmark {
    /// The data set: `openai/gsm8k`.
    pub dataset: String,
    /// The task, by the name in the data set's `eval.yaml`.
    pub task: String,
    /// The metric whose score it is.
    pub metric: String,
}

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// A run that has trained it is not recorded.
    #[error(
        "there is no run behind `{what}`, and a card is written from a run. Write README.md yourself"
    )]
    NoRun {
        /// What was asked for.
        what: String,
    },

    /// Something that a card must have is not known.
    #[error("the card needs {field}, which {problem}. {advice}")]
    Lacks {
        /// What it needs.
        field: &'static str,
        /// Why it is not known.
        problem: String,
        /// What to do.
        advice: &'static str,
    },

    /// The registry.
    #[error(transparent)]
    Registry(Box<Error>),
}

impl From<Error> for CardError {
    fn from(error: Error) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// The field of an error that the base's card on the hub may help with.
const LICENSE: &str = "the base's licence";

impl CardError {
    /// Whether the licence of the base is all that is not known.
    pub fn is_about_the_license(&self) -> bool {
        matches!(self, Self::Lacks { field, .. } if *field == LICENSE)
    }
}

/// The card of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    readme: String,
    eval_results: Option<(String, String)>,
}

impl ModelCard {
    /// The text of `README.md`.
    pub fn readme(&self) -> &str {
        &self.readme
    }

    /// All files, by their names in the repository, with their text.
    pub fn files(&self) -> Vec<(&str, &str)> {
        let mut files = vec![("README.md", self.readme.as_str())];
        files.extend(self.eval_results.as_ref().map(|(name, text)| (&name[..], &text[..])));
        files
    }
}

/// All that a card is written from.
struct Facts<'a> {
    args: &'a CardArgs,
    base_model: &'a str,
    license: License,
    link: &'a WhyLink,
    run: &'a RunRecord,
    summary: &'a Summary,
    /// The scores of the adapter's answers, the newest of each kind.
    scores: Vec<Measured<'a>>,
}

/// A score, and what it was measured on.
struct Measured<'a> {
    score: &'a Score,
    /// A hash of the rows.
    rows: &'a str,
    judged: usize,
    planned: usize,
}

impl Facts<'_> {
    /// The type of adapter, as PEFT calls it, in lower case; `full` for a model's own weights.
    fn kind(&self) -> &'static str {
        use tunebook_tune::{AdapterConfig, Strategy};
        match &self.run.strategy {
            Strategy::Full(_) => "full",
            Strategy::Adapter(config) => match **config {
                AdapterConfig::Lora(ref lora) if lora.use_dora => "dora",
                AdapterConfig::Lora(_) => "lora",
                AdapterConfig::AdaLora(_) => "adalora",
                AdapterConfig::Ia3(_) => "ia3",
                AdapterConfig::PromptTuning(_) => "prompt-tuning",
                AdapterConfig::PrefixTuning(_) => "prefix-tuning",
                AdapterConfig::Bottleneck(_) => "bottleneck",
                _ => "adapter",
            },
        }
    }

    /// The engine that has trained it, where that was not this program: its run was imported
    /// (`tunebook import-run`), and has the engine in the place of a device.
    fn engine(&self) -> Option<&'static str> {
        match &*self.run.device {
            "trl" => Some("TRL"),
            "axolotl" => Some("Axolotl"),
            _ => None,
        }
    }

    /// The weights are a whole model's.
    fn is_whole(&self) -> bool {
        self.args.merged || self.kind() == "full"
    }

    /// The library on the hub that loads it.
    fn library(&self) -> &'static str {
        match self.kind() {
            _ if self.is_whole() => "transformers",
            "bottleneck" => "adapters",
            _ => "peft",
        }
    }
}

impl Registry {
    /// The card of an adapter: by its id, an alias, or the run that has trained it.
    ///
    /// ```no_run
    /// # fn f(registry: tunebook_runs::Registry) -> Result<(), Box<dyn std::error::Error>> {
    /// use tunebook_runs::{CardArgs, License};
    /// let args = CardArgs {
    ///     repo: "owner/support".into(),
    ///     license: Some(License::new("apache-2.0")),
    ///     intended_use: Some("Answers to questions about parcels.".into()),
    ///     ..Default::default()
    /// };
    /// println!("{}", registry.card("support v1", &args)?.readme());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Nothing of that name, no recorded run behind it, or a base whose name on the hub or licence is
    /// not known.
    pub fn card(&self, what: &str, args: &CardArgs) -> Result<ModelCard, CardError> {
        let why = self.why(what)?;
        let no_run = || CardError::NoRun { what: what.to_owned() };
        let link = why.links.first().ok_or_else(no_run)?;
        let run = link.run.as_deref().ok_or_else(no_run)?;
        let record = self.run(run)?;
        let summary = Summary::read(&self.run_folder(run))?;
        let base_model = args.base_model.as_deref().or_else(|| hub_name(&record.base_model));
        let base_model = base_model.ok_or_else(|| CardError::Lacks {
            field: "the base's name on the hub",
            problem: "the run does not know: it has loaded it by a path or another name".to_owned(),
            advice: "Give it (`base_model`, `--base-model owner/name`)",
        })?;
        check_repository("base_model", base_model)?;
        check_repository("repo", &args.repo)?;
        for dataset in &args.datasets {
            check_repository("datasets", dataset)?;
        }
        let license = args.license.clone().or_else(|| base::known_license(base_model));
        let license = license.ok_or_else(|| CardError::Lacks {
            field: LICENSE,
            problem: format!("is not known of `{base_model}`"),
            advice: "It stands on its page on the hub; give it (`license`, `--license`)",
        })?;
        if !base::is_identifier(&license.license) {
            return Err(CardError::Lacks {
                field: "the base's licence by the hub's name for it",
                problem: format!("`{}` is not", license.license),
                advice: "Give one such as apache-2.0, mit, llama3.2, gemma, or other",
            });
        }
        let scores = scores(link);
        let facts =
            Facts { args, base_model, license, link, run: &record, summary: &summary, scores };
        let eval_results = match &args.benchmark {
            Some(benchmark) => Some(front_matter::eval_results(&facts, benchmark)?),
            None => None,
        };
        let readme = format!("{}\n{}", front_matter::write(&facts), sections::write(&facts));
        Ok(ModelCard { readme, eval_results })
    }
}

/// # Errors
/// The name is none of a repository.
fn check_repository(field: &'static str, name: &str) -> Result<(), CardError> {
    match tunebook_hub::is_repository(name) && !name.contains('@') {
        true => Ok(()),
        false => Err(CardError::Lacks {
            field,
            problem: format!("is to be the name of a repository, and `{name}` is none"),
            advice: "Give `owner/name`",
        }),
    }
}

/// Of each metric on the same rows the newest score.
fn scores(link: &WhyLink) -> Vec<Measured<'_>> {
    let mut scores: Vec<Measured<'_>> = Vec::new();
    for evaluation in &link.evaluations {
        let rows = evaluation.settings.get("rows").map_or("", String::as_str);
        for score in &evaluation.scores {
            let (judged, planned) = (evaluation.rows, evaluation.planned_rows);
            let measured = Measured { score, rows, judged, planned };
            let same = |other: &&mut Measured<'_>| {
                other.rows == rows && other.score.metric.name == score.metric.name
            };
            match scores.iter_mut().find(same) {
                Some(older) => *older = measured,
                None => scores.push(measured),
            }
        }
    }
    scores
}
