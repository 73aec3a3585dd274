//! Names of Python's libraries, for which this one has others.

use super::diagnostic::Diagnostic;
use super::{Kind, Notebook, Said};

pub(super) const KINDS: &[Kind] = &[Kind {
    name: "name of another library",
    codes: &["E0412", "E0422", "E0423", "E0425", "E0433"],
    advise: of_another_library,
}];

/// Types and functions, and what to write here.
const NAMES: [(&[&str], &str); 13] = [
    (
        &["AutoModelForCausalLM", "AutoModel", "AutoTokenizer", "AutoConfig"],
        "Write `Model::load(\"SmolLM2-135M-Instruct\", &Device::best()?)?`; its tokenizer is `model.tokenizer()`.",
    ),
    (&["LoraConfig"], "Write `Lora { r: 8, lora_alpha: 32.0, ..Default::default() }`."),
    (&["AdaLoraConfig"], "Write `AdaLora { target_r: 4, ..Default::default() }`."),
    (
        &["TrainingArguments", "SFTConfig"],
        "Write `TrainingArgs { epochs: 3, batch_size: 4, ..Default::default() }`.",
    ),
    (&["SFTTrainer"], "Write `Trainer::new(&model, &args).train(&split)?`."),
    (&["get_peft_model"], "Write `model.add_adapter(\"name\", &Lora::default())?`."),
    (&["PeftModel", "PeftConfig"], "Write `model.load_adapter(\"folder\", \"name\")?`."),
    (
        &["BitsAndBytesConfig"],
        "Write `Model::load_quantized(\"…\", Quantization::Nf4, &Device::best()?)?`.",
    ),
    (&["load_dataset"], "Write `Dataset::read(\"file.jsonl\")?`."),
    (&["train_test_split"], "Write `data.split(&Split::holdout(0.1).seed(42))?`."),
    (
        &["pipeline"],
        "Write `model.chat(\"…\")?`, or `model.generate(\"…\", &GenerationConfig::default())?`.",
    ),
    (
        &["read_csv", "read_json", "read_parquet"],
        "Write `Dataset::read(\"file.csv\")?`; its frame is `data.frame()`.",
    ),
    (
        &["plot"],
        "Write `line_chart(\"title\", \"step\", \"loss\", &[Line::over_steps(\"run\", losses)])`.",
    ),
];

fn of_another_library(error: &Diagnostic, _: &Notebook) -> Said {
    let is_missing = error.message.starts_with("cannot find ")
        || error.message.contains("undeclared type")
        || error.message.contains("unresolved");
    instead_of(error.name(0).filter(|_| is_missing)?)
}

/// What is here in place of a name.
pub(super) fn instead_of(name: &str) -> Said {
    let (_, ours) = NAMES.iter().find(|(names, _)| names.contains(&name))?;
    Some((format!("there is no `{name}` here: it has another name."), (*ours).to_owned()))
}
