//! TRL itself on what is exported to it. Runs where `TUNEBOOK_PEERS` names a Python environment that
//! has it (`tests/peers/requirements.txt`), and says so where it does not.

use std::path::Path;
use std::process::Command;

use tunebook_export::cluster::import_run;
use tunebook_models::{Device, Model, Tensor};
use tunebook_runs::{RecipeArgs, Registry};
use tunebook_testing::Python;
use tunebook_tune::Adapters as _;

use super::{export, recipe, results, text, tiny, trl, written};

const IDS: [u32; 12] = [1, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 250];

fn python() -> Option<Python> {
    Python::peers("torch, transformers, peft, trl, datasets, accelerate, yaml")
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{error}");
    said
}

/// `trl sft --config train.yaml` on the CPU, as it would be typed.
fn train(python: &Python, folder: &Path) {
    let mut command = python.command();
    command.args(["-m", "trl.cli.main", "sft", "--config", "train.yaml"]);
    command.current_dir(folder).env("CUDA_VISIBLE_DEVICES", "").env("HF_HUB_OFFLINE", "1");
    command.env("HF_HOME", folder.join("hf")).env("OMP_NUM_THREADS", "1");
    succeeds(&mut command);
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    f64::from(error / largest)
}

fn logits(model: &Model) -> Vec<f32> {
    let ids = Tensor::new(&[IDS], &Device::Cpu).unwrap();
    model.forward(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn trl_takes_the_same_steps_and_its_run_comes_back() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let out = written(&recipe, &trl(), folder.path());
    let said = succeeds(python.command().arg(out.join("verify.py")).current_dir(folder.path()));
    assert!(said.contains("26 rows have the same tokens"), "{said}");
    train(&python, &out);

    let registry = Registry::open(folder.path().join("registry")).unwrap();
    let imported = import_run(&out, &registry).unwrap();
    let here = recipe
        .train(&RecipeArgs { out: folder.path().join("here"), ..RecipeArgs::default() })
        .unwrap();
    let (theirs, ours) = (&imported.record, here.run.record());
    assert_eq!((theirs.steps.len(), ours.steps.len()), (12, 12));
    let mut largest: f64 = 0.0;
    for (theirs, ours) in theirs.steps.iter().zip(&ours.steps) {
        let error = (theirs.loss - ours.loss).abs() / ours.loss;
        eprintln!("step {}: {:.6} there, {:.6} here", ours.step, theirs.loss, ours.loss);
        largest = largest.max(error);
    }
    assert!(largest < 1e-3, "losses differ by {largest}");
    assert!(ours.steps[10].loss < 0.97 * ours.steps[0].loss, "nothing was learned");
    eprintln!("largest relative difference of a loss: {largest:.1e}");
    // Its evaluations take the mean of the batches' means, ours the mean of all labels.
    assert_eq!((theirs.evals.len(), ours.evals.len()), (3, 3));
    for (theirs, ours) in theirs.evals.iter().zip(&ours.evals) {
        eprintln!("evaluation {}: {:.6} there, {:.6} here", ours.step, theirs.loss, ours.loss);
        let error = (theirs.loss - ours.loss).abs() / ours.loss;
        assert!(theirs.step == ours.step && error < 1e-3, "{theirs:?} {ours:?}");
    }

    // Its adapter here, and in PEFT.
    let model = Model::load(tiny(), &Device::Cpu).unwrap();
    let base = logits(&model);
    model.load_adapter(results(&out), "theirs").unwrap();
    let found = logits(&model);
    let ids = serde_json::to_string(&IDS).unwrap();
    let said =
        python.run("peft_adapter.py", &["logits", &tiny(), results(&out).to_str().unwrap(), &ids]);
    let expected: Vec<f32> = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let error = relative(&found, &expected);
    eprintln!("largest relative difference of a logit: {error:.1e}");
    assert!(error < 1e-4, "logits differ by {error}");
    assert!(relative(&found, &base) > 1e-2, "the adapter does nothing");
    let kept = registry.adapter_folder(imported.adapter.as_deref().unwrap()).unwrap();
    model.load_adapter(kept, "kept").unwrap();
    assert_eq!(logits(&model), found);
}

#[test]
fn the_first_token_that_differs_is_shown() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = written(&recipe(folder.path()), &trl(), folder.path());
    let other = folder.path().join("other.jinja");
    std::fs::write(
        &other,
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}",
    )
    .unwrap();
    let mut command = python.command();
    let output =
        command.arg(out.join("verify.py")).arg("--chat-template").arg(&other).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("token 5: ours is") && said.contains("'\\n'"), "{said}");
    assert!(said.contains("26 of 26 rows differ"), "{said}");
}

#[test]
fn tokens_at_the_end_differ_too_but_for_rows_that_are_cut_off() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.max_length = Some(40);
    let out = written(&recipe, &trl(), folder.path());
    let cut: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("data/cut.json")).unwrap()).unwrap();
    // The last of the thirteen rows has no label before the cut.
    assert_eq!(cut, serde_json::json!({ "train": [10, 11], "validation": [10, 11] }));
    let verify = |template: Option<&Path>| {
        let mut command = python.command();
        command.arg(out.join("verify.py"));
        if let Some(template) = template {
            command.arg("--chat-template").arg(template);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = verify(None);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("24 rows") && said.contains("(4 of them up to"), "{said}");

    let more = folder.path().join("more.jinja");
    let mut text = std::fs::read_to_string(Path::new(&tiny()).join("chat_template.jinja")).unwrap();
    text.push_str("<|im_end|>and more");
    std::fs::write(&more, text).unwrap();
    let (code, said) = verify(Some(&more));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ours is no token"), "{said}");
    assert!(said.contains("20 of 24 rows differ"), "{said}");
}

/// Every key of the file is one that the command knows, and of the type that it expects.
#[test]
fn trl_parses_every_form_of_the_file() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path());
    let mut full = base.clone();
    full.strategy = tunebook_runs::StrategyRecipe::new(tunebook_tune::Full::default());
    let mut more = base.clone();
    more.training.lr_scheduler =
        tunebook_tune::LrScheduler::WarmupStableDecay { num_decay_steps: 2 };
    more.training.label_smoothing_factor = 0.1;
    more.training.neftune_noise_alpha = Some(5.0);
    more.training.load_best_model_at_end = true;
    more.training.save_total_limit = Some(2);
    more.training.learning_rate = 1e-5;
    more.training.adam_epsilon = 1e-8;
    let mut half = full.clone();
    half.model.dtype = tunebook_runs::ModelDtype::Bfloat16;
    let script = "import json, sys, trl\n\
        from trl.scripts.sft import make_parser\n\
        for path in sys.argv[1:]:\n    \
            _, args, model, _ = make_parser().parse_args_and_config(['--config', path, '--use_cpu', 'true'])\n    \
            print(json.dumps([args.learning_rate, args.adam_epsilon, args.lr_scheduler_kwargs, args.max_length, model.dtype, args.mixed_precision, args.logging_nan_inf_filter]))\n";
    let mut paths = Vec::new();
    for (at, recipe) in [base, full, more, half].iter().enumerate() {
        let path = folder.path().join(format!("{at}.yaml"));
        std::fs::write(&path, text(&export(recipe, &trl()), "train.yaml")).unwrap();
        paths.push(path);
    }
    let said = succeeds(python.command().arg("-c").arg(script).args(&paths));
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with('[')).collect();
    let rest = r#", null, "float32", "no", false]"#;
    assert_eq!(lines[0], format!("[0.005, 1e-08, null{rest}"));
    let decay = r#"{"num_decay_steps": 2, "decay_type": "linear"}"#;
    assert_eq!(lines[2], format!("[1e-05, 1e-08, {decay}{rest}"));
    assert_eq!(lines[3], r#"[0.005, 1e-08, null, null, "float32", "bf16", false]"#);
    assert_eq!(lines.len(), 4);
}
