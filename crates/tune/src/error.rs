//! What can go wrong while adapting a model, each with what was expected, what was found and what
//! to do.

use std::path::PathBuf;

use tunebook_progress::interrupt::Interrupted;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A handle that answers each text with an adapter of its own, where one adapter is meant.
    #[error(
        "this handle answers each text with an adapter of its own (`with_adapter_names`), so it \
         cannot be trained or judged as one model; take one adapter with `with_adapter`"
    )]
    MixedHandle,
    /// Metrics that cannot be measured.
    #[error("`TrainingArgs.eval_metrics` is {wanted}, expected {expected}")]
    EvalMetrics {
        /// Their names.
        wanted: String,
        /// What can be measured.
        expected: String,
    },
    /// A field of a configuration holds a value that cannot work.
    #[error("`{field}` is {value}, expected {expected}")]
    Config {
        /// The field as the user writes it, with its type: `Lora.r`.
        field: &'static str,
        /// The value found.
        value: String,
        /// The range or form that is accepted.
        expected: &'static str,
    },

    /// A target module matches no projection of the model.
    #[error(
        "target module `{target}` matches no projection of this model; it has: {}. {}",
        available.join(", "), target_advice(target, available, example, *is_pattern)
    )]
    UnknownTarget {
        /// The name or pattern that matched nothing.
        target: String,
        /// The short names that exist.
        available: Vec<String>,
        /// One full path of this model.
        example: String,
        /// Whether it was given as a string, which is a pattern over full paths, and not in a list
        /// of names.
        is_pattern: bool,
    },

    /// A name is taken by another adapter of this model.
    #[error(
        "an adapter named `{name}` is already on this model; choose another name, or `delete_adapter(\"{name}\")` first"
    )]
    AdapterExists {
        /// The name.
        name: String,
    },

    /// No adapter of that name is on this model.
    #[error(
        "no adapter named `{name}` on this model; it has: {}",
        list_or(available, "none (see `add_adapter`)")
    )]
    NoSuchAdapter {
        /// The name asked for.
        name: String,
        /// The adapters that exist.
        available: Vec<String>,
    },

    /// An adapter's name cannot be used.
    #[error("adapter name `{name}` {problem}; use letters, digits, `-` and `_`")]
    AdapterName {
        /// The name asked for.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// There is nothing to train.
    #[error(
        "nothing to train: no adapter is active on this model{}, and its own weights are frozen. Call `model.add_adapter(\"name\", &Lora::default())`, `model.set_adapter(\"name\")` or `model.unfreeze(&Full::default())` first",
        if resident.is_empty() { String::new() } else { format!(" (resident but not active: {})", resident.join(", ")) }
    )]
    NothingToTrain {
        /// Adapters on the model that are switched off.
        resident: Vec<String>,
    },

    /// The adapter that answers is merged into copies of the weights.
    #[error(
        "nothing to train: `{name}` is merged into copies of the weights, which hold no adapter \
         that could be trained. `model.set_adapter(\"{name}\")` undoes the merging"
    )]
    Merged {
        /// The adapter.
        name: String,
    },

    /// The adapter that answers is a copy that is not trained.
    #[error(
        "nothing to train: this handle answers with a frozen copy of `{name}`. Load it with \
         `load_adapter`, and train that"
    )]
    Frozen {
        /// The adapter.
        name: String,
    },

    /// The model's own weights are served, and are to be trained.
    #[error(
        "the model's own weights are served at {at}, and full fine-tuning moves them in place: \
         its answers would come from weights between two steps. Stop the server first, train on a \
         model that is loaded a second time, or train an adapter, which goes on beside the server"
    )]
    Served {
        /// The address.
        at: String,
    },

    /// The model's own weights are in training, and are to be served.
    #[error(
        "the model's own weights are in training, and a server would answer from weights between \
         two steps. Serve the model when the run has ended"
    )]
    InTraining,

    /// An adapter that was trained on another base than this model.
    #[error(
        "the adapter in `{}` was trained on `{base}`, and this model is `{model}`: on another base \
         it answers nonsense. Serve it with its own base; if the two are the same under two names, \
         say so (`any_base`)", path.display()
    )]
    OtherBase {
        /// Its folder.
        path: PathBuf,
        /// The base that its files name.
        base: String,
        /// The model.
        model: String,
    },

    /// A folder holds no adapter.
    #[error(
        "no adapter here: looked for {}{}",
        looked.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(" and "),
        below_advice(below)
    )]
    AdapterNotFound {
        /// The files looked for.
        looked: Vec<PathBuf>,
        /// Folders below that hold adapters, by name; the first few.
        below: Vec<PathBuf>,
    },

    /// A repository of the Hugging Face hub holds no adapter that can be loaded.
    #[error("no adapter in `{repository}` on the hub: {problem}")]
    NotOnHub {
        /// The repository.
        repository: String,
        /// What it lacks, and what to do.
        problem: String,
    },

    /// The two arguments of `load_adapter` in the wrong order.
    #[error(
        "`load_adapter(\"{dir}\", \"{name}\")`: the place comes first, then the name; \
         `load_adapter(\"{name}\", \"{dir}\")` loads the adapter at `{name}` under the name `{dir}`"
    )]
    Swapped {
        /// The first argument, which is no folder.
        dir: String,
        /// The second argument, which is a folder or a path.
        name: String,
    },

    /// An adapter's file says or holds something that cannot be used.
    #[error("`{}`: {problem}", path.display())]
    AdapterFile {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },

    /// A checkpoint cannot be used.
    #[error("`{}`: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },

    /// A folder holds something else than what is to be written there. Nothing of it was changed.
    #[error("`{}` {problem}; nothing in it was changed. {advice}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What stands there.
        problem: String,
        /// What to do.
        advice: &'static str,
    },

    /// A file could not be read or written.
    #[error("could not {action} `{}`: {source}", path.display())]
    Io {
        /// `read`, `write` …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },

    /// A set of examples is empty.
    #[error("the {set} set is empty: at least one example is needed")]
    NoExamples {
        /// `training` or `validation`.
        set: &'static str,
    },

    /// Some examples do not fit into the model's context.
    #[error(
        "{count} of {total} examples of the {set} set are longer than {limit} tokens, the model's context \
         (the longest is row {row} with {tokens} tokens). Shorten them, or set `max_length: Some({limit})` to cut them off"
    )]
    TooLong {
        /// `training` or `validation`.
        set: &'static str,
        /// How many are too long.
        count: usize,
        /// How many there are.
        total: usize,
        /// The longest one's row, counted from 0.
        row: usize,
        /// Its length.
        tokens: usize,
        /// The model's context.
        limit: usize,
    },

    /// Texts are to be cut off beyond the model's context.
    #[error(
        "`TrainingArgs.max_length` is {max_length}, expected at most {context}: the model's context \
         (`model.config().max_position_embeddings`) less the virtual tokens before a text. `None` \
         cuts nothing"
    )]
    MaxLength {
        /// What the arguments say, in tokens.
        max_length: usize,
        /// The room for a text, in tokens.
        context: usize,
    },

    /// No token of a set bears a loss.
    #[error(
        "no token of the {set} set bears a loss: every completion is empty or was cut off (`max_length` is {max_length} tokens)"
    )]
    NoLabels {
        /// `training` or `validation`.
        set: &'static str,
        /// The limit in force.
        max_length: usize,
    },

    /// An example cannot be tokenised.
    #[error("row {row} of the {set} set: {source}")]
    Row {
        /// `training` or `validation`.
        set: &'static str,
        /// The row, counted from 0.
        row: usize,
        /// The cause.
        source: Box<Error>,
    },

    /// The loss is not a number, or infinite.
    #[error(
        "the loss of step {step} is {loss} (training rows {}); the weights are those of step {}, the last good one. \
         `trainer.last_run()` is the run up to there: `resume` goes on with it as it was, `continue_from` with a lower `learning_rate` or without these rows",
        rows.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        step.saturating_sub(1)
    )]
    NotFinite {
        /// The step that failed, counted from 1.
        step: usize,
        /// `NaN` or `inf`.
        loss: f64,
        /// The rows of its batch.
        rows: Vec<usize>,
    },

    /// A gradient is not a number, or infinite, although the loss is finite.
    #[error(
        "the gradient of step {step} is not finite (norm {norm}; training rows {}); the weights are those of step {}, the last good one. \
         `trainer.last_run()` is the run up to there: `resume` goes on with it as it was, `continue_from` with a lower `learning_rate` or without these rows",
        rows.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        step.saturating_sub(1)
    )]
    GradientNotFinite {
        /// The step that failed, counted from 1.
        step: usize,
        /// The norm found.
        norm: f64,
        /// The rows of its batch.
        rows: Vec<usize>,
    },

    /// Not even the smallest settings fit into the budget.
    #[error(
        "`TrainingArgs.memory_budget` is {:.2} GB; with one row at a time and every block run again the run needs {:.2} GB. \
         Raise it, cut the longest examples (`max_length`), train fewer numbers or keep the optimizer's state in 8 bits (`optim`)",
        *budget as f64 / 1e9, *least as f64 / 1e9
    )]
    Budget {
        /// In bytes.
        budget: u64,
        /// What would do, in bytes.
        least: u64,
    },

    /// A metric that the arguments name is not measured.
    #[error("`TrainingArgs.metric_for_best_model` is `{name}`, expected one that is measured: {}", known.join(", "))]
    UnknownMetric {
        /// What the arguments say.
        name: String,
        /// What there is.
        known: Vec<String>,
    },

    /// A trainable tensor has no gradient, so that it would never change.
    #[error("no gradient reached {}: an operation between it and the loss does not pass gradients on", names.join(", "))]
    NoGradient {
        /// The tensors' names.
        names: Vec<String>,
    },

    /// A run cannot be continued with these arguments.
    #[error("this run cannot be continued: {problem}")]
    Continue {
        /// What differs.
        problem: String,
    },

    /// A callback ended the run.
    #[error("a callback failed: {0}")]
    Callback(String),

    /// The model failed.
    #[error(transparent)]
    Model(#[from] tunebook_models::Error),

    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),

    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// A tensor file could not be read or written.
    #[error("tensor file: {0}")]
    SafeTensors(#[from] safetensors::SafeTensorError),

    /// A configuration could not be read or written.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Whether this is the user's wish to stop, and nothing went wrong.
    pub fn is_interruption(&self) -> bool {
        use tunebook_models::Error as Models;
        matches!(self, Self::Interrupted(_) | Self::Model(Models::Interrupted(_)))
    }
}

/// What to give instead of a target module that matches nothing.
fn target_advice(target: &str, available: &[String], example: &str, is_pattern: bool) -> String {
    let name = available.iter().any(|name| name == target || target.ends_with(&format!(".{name}")));
    match (is_pattern, name) {
        (true, true) => format!(
            "A single string is a regular expression over full paths, as in PEFT: for every \
             projection of that name write `[\"{target}\"].into()` or `\".*{target}\".into()`"
        ),
        (true, false) => format!(
            "A single string is a regular expression over full paths such as `{example}`; names \
             stand in a list, as `[\"{}\"].into()`, and \"all-linear\" is every projection",
            available.first().map_or("q_proj", String::as_str)
        ),
        (false, _) => format!(
            "Give one of these names, a full path such as `{example}`, a regular expression over \
             full paths, or \"all-linear\""
        ),
    }
}

/// Where there are adapters, if not where they were looked for.
fn below_advice(below: &[PathBuf]) -> String {
    let Some(first) = below.first() else { return String::new() };
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = below.iter().map(|path| format!("`{}`", name(path))).collect();
    format!(
        ". Adapters lie below: {}; give one of these folders as the place: \
         `load_adapter(\"{}\", \"{}\")`",
        names.join(", "),
        first.display(),
        name(first)
    )
}

fn list_or(names: &[String], none: &str) -> String {
    if names.is_empty() { none.to_owned() } else { names.join(", ") }
}
