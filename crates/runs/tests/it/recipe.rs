//! A recipe: what it says, what a run makes of it, and what comes back from the registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tunebook_data::{
    Cleaning, CleaningStep, Dataset, Pii, Pipeline, PipelineStep, Quality, RowShape, Shingles,
    Split, SplitSide, Survivor,
};
use tunebook_models::{Device, Model, Quantization};
use tunebook_runs::{
    DataRecipe, ModelDtype, ModelRecipe, Recipe, RecipeArgs, Registry, StrategyRecipe,
};
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters as _, Bias, Bottleneck, BottleneckInit, Callback,
    EvalStrategy, Full, Ia3, Lora, LoraInit, LrScheduler, Metric, Optim, PrefixTuning,
    PromptTuning, PromptTuningInit, ReductionFactor, Run, RunRecord, SaveStrategy, StepRecord,
    StopReason, Strategy, TargetModules, Trainer, TrainingArgs,
};

use crate::common::{StopAt, examples, golden, model, model_with};

/// A file of tickets, no two alike, with a customer's number and a day.
fn tickets(dir: &Path, name: &str, rows: usize) -> String {
    const WORDS: [&str; 23] = [
        "bus", "fee", "key", "lamp", "Oslo", "torn", "tag", "six", "red", "sock", "late", "May",
        "pin", "box", "wire", "tea", "gone", "jar", "hull", "zip", "rug", "vat", "ox",
    ];
    let path = dir.join(name);
    let line = |i: usize| {
        let mut at = name.len() * 7919 + name.as_bytes()[0] as usize * 104_729 + i * 1009;
        let mut word = || {
            at = (at * 48_271 + 11) % 2_147_483_647;
            WORDS[at % WORDS.len()]
        };
        let words: Vec<&str> = (0..4).map(|_| word()).collect();
        format!(
            "{{\"question\": \"<p>{}?</p>\", \"answer\": \"{} {i}.\", \"customer\": \"c{}\", \
             \"day\": {i}}}\n",
            words.join(" "),
            word(),
            i % 9
        )
    };
    fs::write(&path, (0..rows).map(line).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn tiny() -> ModelRecipe {
    ModelRecipe::new(golden("lora_tiny/model").to_str().unwrap())
}

fn lora() -> Lora {
    Lora { r: 4, lora_alpha: 16.0, ..Default::default() }
}

fn args() -> TrainingArgs {
    TrainingArgs { max_steps: Some(2), learning_rate: 2e-2, ..Default::default() }
}

/// A recipe on the tickets, cleaned and split.
fn recipe(dir: &Path) -> Recipe {
    let data = DataRecipe {
        steps: vec![PipelineStep::Clean(Cleaning::standard().steps)],
        split: Some(Split::holdout(0.3).seed(3)),
        ..DataRecipe::new(&tickets(dir, "tickets.jsonl", 24))
    };
    let strategy = StrategyRecipe::new(lora());
    Recipe { version: 1, name: None, data, model: tiny(), strategy, training: args() }
}

/// YAML, a run of it, the registry, YAML: the same bytes.
fn comes_back(dir: &Path, recipe: &Recipe) {
    let file = dir.join("recipe.yaml");
    recipe.write(&file).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let read = Recipe::read(&file).unwrap();
    assert_eq!(read, *recipe, "{text}");
    let registry = Registry::open(dir.join("registry")).unwrap();
    let args = RecipeArgs {
        out: dir.join("out"),
        overwrite: true, // one after the other
        registry: Some(registry.clone()),
        name: Some("support".to_owned()),
        ..Default::default()
    };
    let trained = read.train(&args).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let (id, _) = trained.recorded.unwrap();
    assert_eq!(registry.recipe(&id).unwrap().to_yaml().unwrap(), text);
    let kept =
        fs::read_to_string(registry.root().join("runs").join(&id).join("recipe.yaml")).unwrap();
    assert_eq!(kept, text);
    // And so does what the run says by itself, without being told its recipe.
    let own = by_itself(dir, recipe);
    assert_eq!(own, text);
}

/// The recipe that a run writes whose program has made each part by hand.
fn by_itself(dir: &Path, recipe: &Recipe) -> String {
    let registry = Registry::open(dir.join("by itself")).unwrap();
    let data = recipe.data.load().unwrap();
    let model = recipe.model.load(&Device::Cpu).unwrap();
    recipe.strategy.add_to(&model).unwrap();
    let record = registry.record("support").with_data(&data);
    // Folders of checkpoints are one run's.
    if let Some(folder) = &recipe.training.output_dir {
        let _ = fs::remove_dir_all(folder);
    }
    let trainer = Trainer::new(&model, &recipe.training).with_callback(record.clone());
    let sets = tunebook_tune::ExampleSets::new(
        tunebook_runs::training_examples(data.train()),
        data.validation().map(tunebook_runs::training_examples).unwrap_or_default(),
    );
    let (train, held_out) = (data.train().clone(), data.validation().cloned());
    let sets = match held_out {
        Some(held_out) => sets.judged_by(Box::new(move |args| {
            tunebook_runs::answer_measures(args, &train, &held_out, Default::default())
        })),
        None => sets,
    };
    trainer.train(sets).unwrap();
    assert_eq!(record.warnings(), Vec::<String>::new());
    let mut own = record.recipe().unwrap();
    own.name.clone_from(&recipe.name);
    if recipe.training.memory_budget.is_some() {
        // The settings that the budget led to stand in the place of those asked for.
        own.training = recipe.training.clone();
    }
    own.to_yaml().unwrap()
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn every_strategy_comes_back() {
    let strategies: Vec<Strategy> = vec![
        (&lora()).into(),
        (&Lora {
            r: 2,
            lora_alpha: 3.7,
            lora_dropout: 0.1,
            target_modules: TargetModules::all_linear(),
            exclude_modules: Some(["down_proj"].into()),
            use_rslora: true,
            layers_to_transform: Some(vec![1]),
            layers_pattern: vec!["layers".to_owned()],
            rank_pattern: [("q_proj".to_owned(), 3)].into(),
            alpha_pattern: [("v_proj".to_owned(), 1e-3)].into(),
            init_lora_weights: false,
            lora_init: LoraInit::Gaussian,
            init_seed: u64::MAX,
            ..Default::default()
        })
            .into(),
        (&Lora { use_dora: true, ..lora() }).into(),
        (&Lora { lora_init: LoraInit::Pissa, ..lora() }).into(),
        (&Lora { lora_init: LoraInit::Olora, ..lora() }).into(),
        (&Lora {
            modules_to_save: vec!["embed_tokens".to_owned()],
            ensure_weight_tying: true,
            ..lora()
        })
            .into(),
        (&AdaLora {
            target_r: 2,
            init_r: 3,
            tinit: 1,
            tfinal: 1,
            delta_t: 2,
            beta1: 0.8,
            beta2: 0.7,
            orth_reg_weight: 0.25,
            total_step: Some(5),
            init_seed: 7,
            ..Default::default()
        })
            .into(),
        (&Ia3::default()).into(),
        (&PromptTuning { num_virtual_tokens: 3, init_seed: 9, ..Default::default() }).into(),
        (&PromptTuning {
            num_virtual_tokens: 2,
            prompt_tuning_init: PromptTuningInit::Text,
            prompt_tuning_init_text: Some("no: \"a\"\n# b".to_owned()),
            ..Default::default()
        })
            .into(),
        (&PrefixTuning { num_virtual_tokens: 2, ..Default::default() }).into(),
        (&Bottleneck { reduction_factor: 4.0.into(), init_seed: 8, ..Bottleneck::double_seq_bn() })
            .into(),
        (&Bottleneck {
            reduction_factor: ReductionFactor::Blocks(
                [("0".to_owned(), 2.0), ("default".to_owned(), 8.0)].into(),
            ),
            init_weights: BottleneckInit::MamAdapter,
            ..Bottleneck::par_bn()
        })
            .into(),
        Full::default().into(),
        Full { layers_to_transform: Some(vec![1]), ..Full::default() }.into(),
        Full { target_modules: Some(["q_proj", "v_proj"].into()), ..Full::default() }.into(),
    ];
    for config in strategies {
        let dir = dir();
        let mut recipe = recipe(dir.path());
        recipe.strategy = StrategyRecipe::new(config);
        comes_back(dir.path(), &recipe);
    }
    // The tiny model has no biases to train.
    let dir = dir();
    let strategy = StrategyRecipe::new(Lora { bias: Bias::All, ..lora() });
    let with_bias = Recipe { strategy, ..recipe(dir.path()) };
    assert_eq!(Recipe::from_yaml(&with_bias.to_yaml().unwrap()).unwrap(), with_bias);
}

#[test]
fn every_argument_comes_back() {
    let dir = dir();
    let output_dir = Some(dir.path().join("checkpoints"));
    let changed: Vec<TrainingArgs> = vec![
        TrainingArgs {
            epochs: 1,
            max_steps: None,
            batch_size: 2,
            eval_batch_size: 3,
            gradient_accumulation_steps: 2,
            learning_rate: 1.234_567_890_123_456_7e-3,
            lr_scheduler: LrScheduler::Linear,
            warmup_ratio: 0.1 + 0.2,
            weight_decay: 1e-7,
            adam_beta1: 0.87,
            adam_beta2: 0.997,
            adam_epsilon: 1e-7,
            max_grad_norm: 0.3,
            label_smoothing_factor: 0.05,
            neftune_noise_alpha: Some(5.0),
            loraplus_lr_ratio: Some(16.0),
            group_by_length: true,
            max_length: Some(60),
            eval_strategy: EvalStrategy::Steps(2),
            eval_on_start: true,
            early_stopping_patience: Some(2),
            early_stopping_threshold: 1e-3,
            seed: 7,
            data_seed: Some(u64::MAX),
            ..args()
        },
        TrainingArgs {
            lr_scheduler: LrScheduler::CosineWithRestarts { num_cycles: 2 },
            warmup_steps: Some(1),
            optim: Optim::AdamW8bit,
            l2_sp: 0.5,
            kl_coef: 0.1,
            packing: true,
            max_length: Some(64),
            load_best_model_at_end: true,
            save_strategy: SaveStrategy::Steps(2),
            output_dir,
            save_total_limit: Some(1),
            gradient_checkpointing: true,
            checkpointed_blocks: Some(1),
            ..args()
        },
        TrainingArgs {
            lr_scheduler: LrScheduler::WarmupStableDecay { num_decay_steps: 1 },
            eval_strategy: EvalStrategy::Epoch,
            eval_metrics: vec!["exact_match".to_owned(), "rougeL".to_owned()],
            eval_metrics_rows: Some(2),
            metric_for_best_model: "exact_match".to_owned(),
            ..args()
        },
        TrainingArgs { eval_strategy: EvalStrategy::No, ..args() },
        TrainingArgs {
            memory_budget: Some(60_000_000_000),
            lr_scheduler: LrScheduler::Constant,
            ..args()
        },
    ];
    let default = serde_json::to_value(TrainingArgs::default()).unwrap();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for training in changed {
        let value = serde_json::to_value(&training).unwrap();
        let fields = value.as_object().unwrap().iter();
        let other = fields.filter(|(field, value)| default[field.as_str()] != **value);
        seen.extend(other.map(|(field, _)| field.clone()));
        let mut recipe = recipe(dir.path());
        recipe.training = training;
        comes_back(dir.path(), &recipe);
    }
    // Scaling of losses needs a model in f16.
    let mut recipe = recipe(dir.path());
    recipe.model.dtype = ModelDtype::Float16;
    recipe.training = TrainingArgs { fp16: true, fp16_init_scale: 1024.0, ..args() };
    comes_back(dir.path(), &recipe);
    seen.extend(["fp16".to_owned(), "fp16_init_scale".to_owned()]);
    let all = default.as_object().unwrap().keys().filter(|field| !seen.contains(*field));
    assert_eq!(all.collect::<Vec<_>>(), Vec::<&String>::new(), "not changed by any case");
}

#[test]
fn every_base_comes_back() {
    let dir = dir();
    for (dtype, quantization) in
        [(ModelDtype::Bfloat16, None), (ModelDtype::Float32, Some(Quantization::Nf4))]
    {
        let mut recipe = recipe(dir.path());
        recipe.model = ModelRecipe { dtype, quantization, ..tiny() };
        comes_back(dir.path(), &recipe);
    }
}

/// Pipelines of all steps.
fn pipelines(dir: &Path) -> Vec<DataRecipe> {
    let (a, b) = (tickets(dir, "a.jsonl", 30), tickets(dir, "b.jsonl", 24));
    let clean = |cleaning: Cleaning| PipelineStep::Clean(cleaning.steps);
    let new = || DataRecipe::new(&a);
    let old = |steps: Vec<PipelineStep>| Pipeline {
        path: b.clone(),
        shape: Some(RowShape::QuestionAnswer),
        files: None,
        steps,
    };
    let split = Split::holdout(0.25).seed(11);
    let train = PipelineStep::Side { side: SplitSide::Train, split: split.clone() };
    vec![
        new(),
        DataRecipe {
            shape: Some(RowShape::Template {
                prompt: "{question}\n\n#{day}: ".to_owned(),
                completion: "{answer}".to_owned(),
            }),
            steps: vec![
                PipelineStep::Head { rows: 28 },
                clean(
                    Cleaning::default()
                        .strip_html()
                        .mask_pii()
                        .step(CleaningStep::MaskPii { kinds: vec![Pii::Email] })
                        .keep_languages(&[
                            "en", "de", "fr", "es", "nl", "da", "sv", "it", "pt", "pl", "fi",
                        ])
                        .drop_short(1)
                        .drop_long(10_000)
                        .strip_boilerplate(0.9)
                        .drop_low_quality(Quality { max_words: Some(900), ..Default::default() })
                        .drop_repetitive()
                        .resolve_conflicts(Survivor::Longest),
                ),
                PipelineStep::Sample { rows: 24, seed: 5 },
                clean(Cleaning::default().drop_near_duplicates_by(
                    Shingles::Words(40),
                    0.999,
                    Survivor::Last,
                )),
            ],
            split: Some(Split::holdout(0.25).group_by("customer").test(0.2)),
            ..new()
        },
        DataRecipe {
            shape: Some(RowShape::Columns {
                prompt: "question".into(),
                completion: "answer".into(),
            }),
            steps: vec![PipelineStep::Concat(Box::new(old(Vec::new())))],
            split: Some(Split::holdout(0.3).stratify_by("customer").near_duplicates_together()),
            ..new()
        },
        DataRecipe {
            split: Some(split.clone()),
            train_steps: vec![
                PipelineStep::Replay {
                    share: 0.1,
                    seed: 3,
                    old: Box::new(old(vec![clean(Cleaning::standard()), train.clone()])),
                },
                PipelineStep::Head { rows: 20 },
            ],
            validation_steps: vec![PipelineStep::Sample { rows: 3, seed: 1 }],
            ..new()
        },
        DataRecipe { split: Some(Split::holdout(0.2).by_time("day")), ..new() },
        DataRecipe {
            steps: vec![PipelineStep::WithoutOverlap(Box::new(old(Vec::new())))],
            validation: Some(old(vec![PipelineStep::Head { rows: 5 }])),
            ..new()
        },
        DataRecipe {
            steps: vec![PipelineStep::Fold { fold: 1, folds: 3, side: SplitSide::Train, split }],
            validation: Some(old(vec![train])),
            ..new()
        },
    ]
}

#[test]
fn every_pipeline_comes_back() {
    let dir = dir();
    for data in pipelines(dir.path()) {
        let mut recipe = recipe(dir.path());
        if data.split.is_none() && data.validation.is_none() {
            recipe.training.eval_strategy = EvalStrategy::No;
        }
        recipe.data = data;
        comes_back(dir.path(), &recipe);
    }
}

#[test]
fn a_set_is_made_again_from_its_pipeline() {
    let dir = dir();
    for data in pipelines(dir.path()) {
        let loaded = data.load().unwrap();
        for set in [Some(loaded.train()), loaded.validation(), loaded.test()].into_iter().flatten()
        {
            let pipeline = set.pipeline().unwrap();
            let again = pipeline.run().unwrap();
            assert_eq!(again.fingerprint(), set.fingerprint(), "{pipeline:?}");
            assert_eq!(again.pipeline(), Some(pipeline));
        }
    }
    let rows = Dataset::from_rows(&[("a", "b"), ("c", "d")]);
    assert_eq!(rows.pipeline(), None);
    assert_eq!(rows.head(1).pipeline(), None);
    let read = Dataset::read(tickets(dir.path(), "c.jsonl", 4)).unwrap();
    assert_eq!(read.concat(&rows).unwrap().pipeline(), None);
    assert_eq!(Dataset::from_frame(read.frame()).unwrap().pipeline(), None);
}

/// Trains a program's own way, and its recipe: the losses are the same bits.
#[test]
fn a_recipe_of_a_program_trains_the_same() {
    let dir = dir();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    let raw = Dataset::read(tickets(dir.path(), "tickets.jsonl", 24)).unwrap();
    let clean = raw.clean(&Cleaning::standard()).unwrap();
    let split = clean.split(&Split::holdout(0.3).seed(3)).unwrap();
    let model = model();
    model.add_adapter("tickets", &Lora { lora_dropout: 0.1, ..lora() }).unwrap();
    let record = registry.record("by hand").with_data(&split);
    let trainer = Trainer::new(&model, &args()).with_callback(record.clone());
    let sets = (&examples(&split.train), &examples(&split.validation));
    let run = trainer.train(sets).unwrap();

    let recipe = registry.recipe("by hand").unwrap();
    assert_eq!(recipe, record.recipe().unwrap());
    assert_eq!(recipe.strategy.adapter_name, "tickets");
    let out = RecipeArgs { out: dir.path().join("out"), ..Default::default() };
    let trained = recipe.train(&out).unwrap();
    let losses = |run: &tunebook_tune::Run| -> Vec<u64> {
        let steps = run.steps.iter().map(|step| step.loss.to_bits());
        steps.chain(run.evals.iter().map(|eval| eval.loss.to_bits())).collect()
    };
    assert_eq!(losses(&trained.run), losses(&run));
    assert_eq!(trained.folder, dir.path().join("out/tickets"));
    assert!(trained.folder.join("adapter_model.safetensors").is_file());
}

#[test]
fn a_run_that_no_recipe_can_say_is_refused_by_name() {
    let dir = dir();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    let split = Dataset::read(tickets(dir.path(), "tickets.jsonl", 24)).unwrap();
    let split = split.split(&Split::holdout(0.3)).unwrap();
    let sets = (&examples(&split.train), &examples(&split.validation));
    let why = |name: &str| registry.recipe(name).unwrap_err().to_string();

    let model = model_with("a");
    let plain = || Trainer::new(&model, &args());
    plain().with_callback(registry.record("no data")).train(sets).unwrap();
    assert!(why("no data").contains("`Recorder::with_data`"), "{}", why("no data"));

    let record = registry.record("trained before").with_data(&split);
    plain().with_callback(record).train(sets).unwrap();
    assert!(why("trained before").contains("the adapter `a`"), "{}", why("trained before"));

    let model = model_with("a");
    let record = registry.record("metric").with_data(&split);
    let trainer = Trainer::new(&model, &args()).with_callback(record);
    let trainer = trainer.with_metric(Metric::higher_is_better("taste"), |_| Ok(1.0));
    trainer.train(sets).unwrap();
    assert!(why("metric").contains("`taste`"), "{}", why("metric"));

    let model = model_with("a");
    let rows = crate::common::split();
    let record = registry.record("rows").with_data(&rows);
    let trainer = Trainer::new(&model, &args()).with_callback(record.clone());
    trainer.train((&examples(&rows.train), &examples(&rows.validation))).unwrap();
    assert!(why("rows").contains("the training rows"), "{}", why("rows"));
    assert!(record.recipe().is_err());
    assert_eq!(record.warnings(), Vec::<String>::new());

    let model = model_with("a");
    let record = registry.record("others").with_data(&split.train.head(3));
    Trainer::new(&model, &args()).with_callback(record).train(sets).unwrap();
    assert!(why("others").contains("3 other rows"), "{}", why("others"));
}

#[test]
fn a_run_of_before_recipes_says_so() {
    let dir = dir();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    let recipe = recipe(dir.path());
    let args = RecipeArgs {
        out: dir.path().join("out"),
        registry: Some(registry.clone()),
        ..Default::default()
    };
    let (id, _) = recipe.train(&args).unwrap().recorded.unwrap();
    assert_eq!(registry.recipe(&id).unwrap(), recipe);
    let file = registry.root().join("runs").join(&id).join("recipe.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("epochs: 3", "epochs: 4")).unwrap();
    let damaged = registry.verify().unwrap();
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].path.ends_with("recipe.yaml"));
    fs::remove_file(&file).unwrap();
    let why = registry.recipe(&id).unwrap_err().to_string();
    assert!(why.contains("before runs had recipes"), "{why}");
}

#[test]
fn a_run_that_was_interrupted_goes_on() {
    let dir = dir();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    let mut recipe = recipe(dir.path());
    recipe.training = TrainingArgs {
        max_steps: Some(6),
        save_strategy: SaveStrategy::Steps(2),
        output_dir: Some(dir.path().join("checkpoints")),
        ..args()
    };
    let args = RecipeArgs {
        out: dir.path().join("out"),
        registry: Some(registry.clone()),
        ..Default::default()
    };
    let stopped = recipe.train_watched(&args, StopAt(3, 0)).unwrap();
    assert_eq!(stopped.run.steps.len(), 3);
    let whole = recipe.train(&args).unwrap();
    assert_eq!(whole.run.steps.len(), 6);
    assert_eq!(whole.recorded.as_ref().unwrap().0, stopped.recorded.unwrap().0);
    assert_eq!(registry.runs().unwrap().height(), 1);
    assert_eq!(registry.recipe(&whole.recorded.unwrap().0).unwrap(), recipe);

    let error = recipe.train(&args).unwrap_err().to_string();
    assert!(error.contains("came to its end after step 6"), "{error}");

    let mut other = recipe.clone();
    other.training.output_dir = Some(dir.path().join("others"));
    let alone = other.train(&RecipeArgs { registry: None, ..args }).unwrap();
    let losses = |run: &tunebook_tune::Run| -> Vec<u64> {
        run.steps.iter().map(|step| step.loss.to_bits()).collect()
    };
    assert_eq!(losses(&alone.run), losses(&whole.run));
}

/// Fails the test if a run begins.
struct NoRun;

impl Callback for NoRun {
    fn on_begin(&mut self, _: &RunRecord, _: &Model) -> tunebook_tune::Result<()> {
        panic!("a run begins");
    }
}

fn out(dir: &Path) -> RecipeArgs {
    RecipeArgs { out: dir.join("out"), ..Default::default() }
}

/// Whether a recipe is refused before its first step; gives the error.
fn refused(recipe: &Recipe, args: &RecipeArgs) -> String {
    recipe.train_watched(args, NoRun).unwrap_err().to_string()
}

#[test]
fn checkpoints_of_another_recipe_are_refused_with_what_differs() {
    let dir = dir();
    let mut recipe = recipe(dir.path());
    recipe.training = TrainingArgs {
        max_steps: Some(6),
        save_strategy: SaveStrategy::Steps(2),
        output_dir: Some(dir.path().join("checkpoints")),
        ..args()
    };
    let args = out(dir.path());
    recipe.train_watched(&args, StopAt(3, 0)).unwrap();
    let other = RecipeArgs { out: dir.path().join("other"), ..args.clone() };
    let with = |change: &dyn Fn(&mut Recipe), says: &str| {
        let mut changed = recipe.clone();
        change(&mut changed);
        let error = refused(&changed, &other);
        assert!(error.contains(says), "{error}");
    };
    let of = |lora: Lora| {
        move |recipe: &mut Recipe| {
            recipe.strategy = StrategyRecipe::new(lora.clone());
        }
    };
    with(&of(Lora { lora_alpha: 99.0, ..lora() }), "`Lora.lora_alpha` is 99.0, and was 16.0");
    with(&of(Lora { init_seed: 7, ..lora() }), "`Lora.init_seed` is 7, and was 42");
    with(&of(Lora { lora_dropout: 0.5, ..lora() }), "`Lora.lora_dropout` is 0.5, and was 0.0");
    with(&|recipe| recipe.model.dtype = ModelDtype::Bfloat16, "the weights of the base");
    with(&|recipe| recipe.training.learning_rate = 1.0, "`TrainingArgs.learning_rate` is 1.0, and");
    let fewer = |recipe: &mut Recipe| {
        recipe.data.validation_steps = vec![PipelineStep::Head { rows: 2 }];
    };
    with(&fewer, "the validation set is not the run's");
    with(&|recipe| recipe.data.split = None, "the training set is not the run's");
    // Itself, saved at other times.
    recipe.training.save_total_limit = Some(3);
    assert_eq!(recipe.train(&args).unwrap().run.steps.len(), 6);
}

#[test]
fn a_place_that_cannot_hold_the_result_is_refused_before_the_run() {
    let dir = dir();
    let recipe = recipe(dir.path());
    fs::write(dir.path().join("out"), "a file").unwrap();
    let error = refused(&recipe, &out(dir.path()));
    assert!(error.contains("could not create") && error.contains("out"), "{error}");
    fs::remove_file(dir.path().join("out")).unwrap();

    // A folder in which nobody may make a file.
    let nowhere = RecipeArgs { out: "/proc/self".into(), ..Default::default() };
    let error = refused(&recipe, &nowhere);
    assert!(error.contains("could not write into `/proc/self`"), "{error}");

    let mut outside = recipe.clone();
    outside.strategy.adapter_name = "../outside".to_owned();
    assert!(refused(&outside, &out(&dir.path().join("in"))).contains("is no name of a folder"));
    assert!(!dir.path().join("outside").exists() && !dir.path().join("in").exists());

    let mut long = recipe.clone();
    long.strategy.adapter_name = "a".repeat(300);
    let error = refused(&long, &out(dir.path()));
    assert!(error.contains("could not create"), "{error}");

    fs::create_dir_all(dir.path().join("out/adapter_model.safetensors")).unwrap();
    let error = refused(&recipe, &out(dir.path()));
    assert!(error.contains("has a folder `adapter_model.safetensors`"), "{error}");
    let left: Vec<_> = fs::read_dir(dir.path().join("out")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing is left of the trial");
}

#[test]
fn a_full_fine_tune_never_takes_the_place_of_a_model_that_is_not_its_own() {
    let dir = dir();
    let mut full = recipe(dir.path());
    full.strategy = StrategyRecipe::new(Full::default());
    // The base as this program writes it, and as somebody else does.
    let base = tiny().load(&Device::Cpu).unwrap();
    base.save_pretrained(dir.path().join("base")).unwrap();
    crate::common::copy(&golden("lora_tiny/model"), &dir.path().join("foreign"));
    let tensors = fs::read(dir.path().join("base/model.safetensors")).unwrap();
    full.model = ModelRecipe::new(dir.path().join("base").to_str().unwrap());
    let at = |name: &str, overwrite| RecipeArgs {
        out: dir.path().join(name),
        overwrite,
        ..Default::default()
    };
    let error = refused(&full, &at("base", false));
    assert!(error.contains("holds the model of another recipe"), "{error}");
    let error = refused(&full, &at("base", true));
    assert!(error.contains("is the base model's own folder"), "{error}");
    let error = refused(&full, &at("foreign", true));
    assert!(error.contains("which tunebook did not write"), "{error}");
    assert_eq!(fs::read(dir.path().join("base/model.safetensors")).unwrap(), tensors);
    // Twice the same recipe is the same result.
    full.train(&at("tuned", false)).unwrap();
    full.train(&at("tuned", false)).unwrap();
    assert_ne!(fs::read(dir.path().join("tuned/model.safetensors")).unwrap(), tensors);
}

#[test]
fn the_adapter_of_another_recipe_stays_unless_it_is_to_be_replaced() {
    let dir = dir();
    let recipe = recipe(dir.path());
    let (keeps, replaces) = (out(dir.path()), RecipeArgs { overwrite: true, ..out(dir.path()) });
    recipe.train(&keeps).unwrap();
    let tensors = || fs::read(dir.path().join("out/adapter_model.safetensors")).unwrap();
    let before = tensors();
    // The same again, under another name.
    recipe.train(&RecipeArgs { name: Some("again".to_owned()), ..keeps.clone() }).unwrap();
    assert_eq!(tensors(), before);
    let mut other = recipe.clone();
    other.training.learning_rate *= 2.0;
    let error = refused(&other, &keeps);
    assert!(error.contains("holds the adapter of another recipe"), "{error}");
    assert!(error.contains("`--overwrite`"), "{error}");
    assert_eq!(tensors(), before);
    // Its own name gives it its own folder.
    let mut named = other.clone();
    named.strategy.adapter_name = "named".to_owned();
    named.train(&keeps).unwrap();
    other.train(&replaces).unwrap();
    assert_ne!(tensors(), before);
    // One that a notebook has put there is nobody's to replace, and what is trained loads.
    let model = model_with("notebook");
    model.save_adapter("notebook", dir.path().join("out")).unwrap();
    let mut notebook = recipe.clone();
    notebook.strategy.adapter_name = "notebook".to_owned();
    assert!(refused(&notebook, &keeps).contains("or of none"));
    let trained = notebook.train(&replaces).unwrap();
    crate::common::model().load_adapter(trained.folder, "notebook").unwrap();
}

/// A recipe that is trained while another run goes on.
struct Meanwhile(Recipe, RecipeArgs, std::sync::Arc<std::sync::Mutex<String>>);

impl Callback for Meanwhile {
    fn on_step(&mut self, _: &StepRecord) -> tunebook_tune::Result<()> {
        *self.2.lock().unwrap() = refused(&self.0, &self.1);
        Ok(())
    }
}

#[test]
fn two_trainings_at_once_do_not_share_a_folder() {
    let dir = dir();
    let recipe = recipe(dir.path());
    let mut other = recipe.clone();
    other.strategy = StrategyRecipe::new(Lora { r: 2, ..lora() });
    let told = std::sync::Arc::default();
    let overwrites = RecipeArgs { overwrite: true, ..out(dir.path()) };
    let meanwhile = Meanwhile(other, overwrites, std::sync::Arc::clone(&told));
    recipe.train_watched(&out(dir.path()), meanwhile).unwrap();
    let told = told.lock().unwrap();
    assert!(told.contains("of a training that is going on"), "{told}");
    // No lock is left.
    recipe.train(&out(dir.path())).unwrap();
}

/// Asks for a stop, as a signal does.
struct Signal;

impl Callback for Signal {
    fn on_step(&mut self, _: &StepRecord) -> tunebook_tune::Result<()> {
        tunebook_progress::interrupt::request();
        Ok(())
    }
}

#[test]
fn what_is_trained_until_a_stop_is_saved_whole() {
    let dir = dir();
    let mut full = recipe(dir.path());
    full.strategy = StrategyRecipe::new(Full::default());
    let trained = full.train_watched(&out(dir.path()), Signal).unwrap();
    assert_eq!(trained.run.stopped, Some(StopReason::Interrupted));
    assert_eq!(trained.run.steps.len(), 1);
    let saved = Model::load(trained.folder, &Device::Cpu).unwrap();
    let weights = |model: &Model| tunebook_tune::answering_fingerprint(model).unwrap();
    assert_ne!(weights(&saved), weights(&tiny().load(&Device::Cpu).unwrap()));
}

#[test]
fn what_a_run_was_stopped_at_takes_the_place_of_no_whole_result() {
    let dir = dir();
    let recipe = recipe(dir.path());
    let tensors =
        |folder: &str| fs::read(dir.path().join(folder).join("adapter_model.safetensors"));
    let stopped = || recipe.train_watched(&out(dir.path()), Signal).unwrap();
    // Nothing is there, or what a run was stopped at.
    for _ in 0..2 {
        assert_eq!(stopped().folder, dir.path().join("out"));
    }
    let at_stop = tensors("out").unwrap();
    recipe.train(&out(dir.path())).unwrap();
    let whole = tensors("out").unwrap();
    assert_ne!(whole, at_stop);
    for _ in 0..2 {
        assert_eq!(stopped().folder, dir.path().join("out-stopped"));
        assert_eq!(tensors("out").unwrap(), whole);
        assert_eq!(tensors("out-stopped").unwrap(), at_stop);
    }
}

#[test]
fn a_stop_leaves_a_checkpoint_of_its_own_step() {
    let dir = dir();
    let mut recipe = recipe(dir.path());
    recipe.training.save_strategy = SaveStrategy::Steps(5);
    recipe.training.output_dir = Some(dir.path().join("checkpoints"));
    let whole = {
        let mut whole = recipe.clone();
        whole.training.output_dir = Some(dir.path().join("whole"));
        whole.train(&out(&dir.path().join("other"))).unwrap()
    };
    let trained = recipe.train_watched(&out(dir.path()), Signal).unwrap();
    assert_eq!(trained.run.steps.len(), 1);
    assert!(!trained.run.record().to_string().contains("resume"), "{}", trained.run.record());
    let trained = recipe.train(&out(dir.path())).unwrap();
    assert_eq!(trained.run.plan.done_steps, 1);
    let losses = |run: &Run| run.steps.iter().map(|step| step.loss).collect::<Vec<_>>();
    assert_eq!(losses(&trained.run), losses(&whole.run));
}

/// Asks for a stop before the first step.
struct Early;

impl Callback for Early {
    fn on_begin(&mut self, _: &RunRecord, _: &Model) -> tunebook_tune::Result<()> {
        tunebook_progress::interrupt::request();
        Ok(())
    }
}

#[test]
fn a_run_that_is_stopped_before_its_first_step_replaces_nothing() {
    let dir = dir();
    let recipe = recipe(dir.path());
    let trained = recipe.train(&out(dir.path())).unwrap();
    let read = || std::fs::read(trained.folder.join("adapter_model.safetensors")).unwrap();
    let before = read();
    let error = recipe.train_watched(&out(dir.path()), Early).err().unwrap().to_string();
    assert!(error.contains("stopped before its first step"), "{error}");
    assert_eq!(read(), before);
}

const SMALL: &str = "\
data:
  path: tickets.jsonl
  steps:
  - clean: [strip_html, {drop_short: {min_words: 3}}]
  split: {fraction: 0.2}
model:
  name_or_path: SmolLM2-135M-Instruct
strategy:
  type: lora
  r: 16
  target_modules: all-linear
training:
  learning_rate: 1e-4
  eval_strategy: no
";

#[test]
fn a_recipe_may_leave_out_what_has_a_default() {
    let recipe = Recipe::from_yaml(SMALL).unwrap();
    assert_eq!(recipe.training.learning_rate, 1e-4);
    assert_eq!(recipe.training.eval_strategy, EvalStrategy::No);
    assert_eq!(recipe.data.split.as_ref().unwrap().seed, 42);
    let Strategy::Adapter(config) = &recipe.strategy.config else { panic!("no adapter") };
    assert!(matches!(&**config, AdapterConfig::Lora(Lora { r: 16, use_dora: false, .. })));
    let text = recipe.to_yaml().unwrap();
    for field in ["adam_epsilon: 1.0e-8", "use_dora: false", "seed: 42", "eval_strategy: \"no\""] {
        assert!(text.contains(field), "{text}");
    }
    assert_eq!(Recipe::from_yaml(&text).unwrap(), recipe);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let wrong = |from: &str, to: &str| {
        assert!(SMALL.contains(from), "{from}");
        Recipe::from_yaml(&SMALL.replacen(from, to, 1)).unwrap_err().to_string()
    };
    for (from, to, expected) in [
        (
            "learning_rate",
            "learning_rat",
            "`recipe.yaml`, line 13, `training.learning_rat`: there is no key `learning_rat` here; did \
             you mean `learning_rate`?",
        ),
        (
            "1e-4",
            "fast",
            "`recipe.yaml`, line 13, `training.learning_rate`: expected a number, found the text \"fast\"",
        ),
        (
            "1e-4",
            "-1.0",
            "`recipe.yaml`, line 13, `training.learning_rate`: is -1, expected a finite number above 0 \
             (1e-5 to 1e-3 are usual)",
        ),
        (
            "strip_html",
            "strip_htm",
            "`recipe.yaml`, line 4, `data.steps.1.clean.1`: there is no value `strip_htm` here; did you \
             mean `strip_html`?",
        ),
        (
            "min_words",
            "min_word",
            "`recipe.yaml`, line 4, `data.steps.1.clean.2.drop_short.min_word`: there is no key \
             `min_word` here; did you mean `min_words`?",
        ),
        (
            "type: lora",
            "type: lorra",
            "`recipe.yaml`, line 9, `strategy.type`: there is no type `lorra` here; did you mean `lora`?",
        ),
        (
            "r: 16",
            "r: 1.5",
            "`recipe.yaml`, line 10, `strategy.r`: expected a whole number of 0 or more, found 1.5",
        ),
        (
            "r: 16",
            "r: 0",
            "`recipe.yaml`, line 10, `strategy.r`: is 0, expected a rank of at least 1",
        ),
        (
            "all-linear",
            "3",
            "`recipe.yaml`, line 11, `strategy.target_modules`: expected a list of names, a regular \
             expression or all-linear",
        ),
        (
            "trainin",
            "trainig",
            "`recipe.yaml`, line 12, `trainigg`: there is no key `trainigg` here; did",
        ),
        (
            "model:",
            "modell:",
            "`recipe.yaml`, line 6, `modell`: there is no key `modell` here; did",
        ),
        ("  path: tickets.jsonl\n", "", "`recipe.yaml`, line 1, `data`: the key `path` is missing"),
        (
            "  type: lora\n",
            "",
            "`recipe.yaml`, line 8, `strategy`: the key `type` is missing: one of",
        ),
        (
            "data:",
            "version: 2\ndata:",
            "`recipe.yaml`, line 1, `version`: the version is 2, and this program reads 1",
        ),
        (
            "data:",
            "version: 2\nreward: {model: x}\ndata:",
            "`recipe.yaml`, line 1, `version`: the version is 2, and this program reads 1",
        ),
        (
            "eval_strategy: no",
            "seed: 010",
            "`recipe.yaml`, line 14, `training.seed`: expected a whole number of 0 or more, found the text \
             \"010\"",
        ),
        (
            "eval_strategy: no",
            "seed: 10.0",
            "`recipe.yaml`, line 14, `training.seed`: expected a whole number of 0 or more, found 10.0",
        ),
        (
            "eval_strategy: no",
            "eval_metrics: [exact_mach]",
            "`recipe.yaml`, line 14, `training.eval_metrics`: there is no metric `exact_mach` here; did \
             you mean `exact_match`?",
        ),
        (
            "eval_strategy: no",
            "metric_for_best_model: foo",
            "`recipe.yaml`, line 14, `training.metric_for_best_model`: is `foo`, expected one that is \
             measured: loss",
        ),
        (
            "eval_strategy: no",
            "epochs: 99999999999",
            "`recipe.yaml`, line 14, `training.epochs`: is 99999999999, expected at most 4294967295",
        ),
        (
            "eval_strategy: no",
            "gradient_accumulation_steps: 9223372036854775808",
            "`recipe.yaml`, line 14, `training.gradient_accumulation_steps`: is 9223372036854775808, \
             expected at most",
        ),
        (
            "r: 16",
            "r: 16\n  r: 8",
            "`recipe.yaml`, line 11: no YAML that can be read: duplicate mapping key `r` is not allowed",
        ),
        (
            "split: {fraction: 0.2}",
            "split: {fraction: 2}",
            "`recipe.yaml`, line 5, `data.split.fraction`: is 2, expected the share held out",
        ),
        (
            "split: {fraction: 0.2}",
            "split: {test: 0.9}",
            "`recipe.yaml`, line 5, `data.split.test`: is 0.9, expected the share held out for a test",
        ),
        (
            "  name_or_path: S",
            "  revision: main\n  name_or_path: S",
            "`recipe.yaml`, line 7, `model.revision`: only",
        ),
        (
            "name_or_path: SmolLM2",
            "quantization: nf4\n  dtype: bfloat16\n  name_or_path: SmolLM2",
            "`recipe.yaml`, line 8, `model.dtype`: with `quantization`",
        ),
        (
            "  split: {fraction: 0.2}",
            "  validation_steps: [head: {rows: 3}]",
            "`recipe.yaml`, line 5, `data.validation_steps`: there are no validation rows",
        ),
        (
            "eval_strategy: no",
            "eval_strategy: {steps: 3, epoch: 1}",
            "`recipe.yaml`, line 14, `training.eval_strategy.epoch`: expected one key, found several",
        ),
        (
            "eval_strategy: no",
            "lr_scheduler: {cosine_with_restarts: {num_cycles: 2, num_cycle: 3}}",
            "`recipe.yaml`, line 14, `training.lr_scheduler.cosine_with_restarts.num_cycle`: there is no \
             key `num_cycle` here; did you mean `num_cycles`?",
        ),
        (
            "eval_strategy: no",
            "eval_strategy: steps",
            "`recipe.yaml`, line 14, `training.eval_strategy`: `steps` does not stand alone: write \
             `{steps: …}`",
        ),
        (
            "[strip_html, {drop_short: {min_words: 3}}]",
            "[drop_short]",
            "`recipe.yaml`, line 4, `data.steps.1.clean.1`: `drop_short` does not stand alone: write \
             `{drop_short: {…}}`",
        ),
    ] {
        let error = wrong(from, to);
        assert!(error.starts_with(expected), "{error}\nexpected\n{expected}");
    }
}

#[test]
fn the_names_of_other_trainers_are_answered_with_those_of_a_recipe() {
    for (from, to, expected) in [
        ("learning_rate", "num_train_epochs", "did you mean `epochs`?"),
        ("learning_rate", "per_device_train_batch_size", "did you mean `batch_size`?"),
        ("learning_rate", "lora_r", "did you mean `strategy.r`?"),
        ("learning_rate: 1e-4", "bf16: true", "did you mean `model.dtype: bfloat16`?"),
        ("learning_rate: 1e-4", "eval_steps: 5", "did you mean `eval_strategy: {steps: 100}`?"),
        ("eval_strategy: no", "eval_strategy: none", "did you mean `no`?"),
        ("  r:", "  lora_r:", "did you mean `r`?"),
        ("  r:", "  epochs:", "did you mean `training.epochs`?"),
        ("type: lora", "type: qlora", "it is `type: lora` with `model.quantization: nf4`"),
        ("type: lora", "type: pissa", "it is `type: lora` with `lora_init: pissa`"),
        ("  r: 16", "  init_lora_weights: PiSSA", "how LoRA begins is `lora_init: pissa`"),
        ("name_or_path", "base_model", "did you mean `name_or_path`?"),
        ("  name_or_path", "  dtype: bf16\n  name_or_path", "did you mean `bfloat16`?"),
        ("  name_or_path", "  load_in_4bit: true\n  name_or_path", "`model.quantization: nf4`?"),
        ("model:", "learning_rate: 1.0\nmodel:", "did you mean `training.learning_rate`?"),
    ] {
        assert!(SMALL.contains(from), "{from}");
        let error = Recipe::from_yaml(&SMALL.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{from} -> {to}: {error}");
    }
    for (text, program) in [
        (
            "base_model: a/b\ndatasets:\n  - path: x\nadapter: lora\n",
            "Axolotl (it has base_model, ",
        ),
        ("model_name_or_path: a/b\ndataset_name: x\nuse_peft: true\n", "TRL or transformers ("),
        ("model_name_or_path: a\nstage: sft\nfinetuning_type: lora\n", "LLaMA-Factory (it has st"),
    ] {
        let error = Recipe::from_yaml(text).unwrap_err().to_string();
        let expected =
            format!("line 1, `{}`: this is a file for {program}", &text[..text.find(':').unwrap()]);
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_setting_that_does_not_go_with_the_model_is_named_as_in_the_file() {
    let dir = dir();
    let mut recipe = recipe(dir.path());
    for (config, expected) in [
        (
            Lora { target_modules: ["q_prj"].into(), ..lora() },
            "`strategy.target_modules`: `q_prj` matches no projection of this model, which has ",
        ),
        (Lora { target_modules: "q_proj".into(), ..lora() }, "names stand in a list, as [q_proj]"),
        (Lora { r: 500, ..lora() }, "`strategy.r`: is 500 for "),
    ] {
        recipe.strategy = StrategyRecipe::new(config);
        let error = refused(&recipe, &out(dir.path()));
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("into()"), "{error}");
    }
    recipe.strategy = StrategyRecipe::new(Lora { target_modules: ["q_prj"].into(), ..lora() });
    assert!(refused(&recipe, &out(dir.path())).ends_with("did you mean `q_proj`?"));
}

#[test]
fn what_is_judged_on_validation_rows_needs_some() {
    let without = SMALL.replace("  split: {fraction: 0.2}\n", "");
    for (key, value) in [
        ("eval_metrics", "[exact_match]"),
        ("early_stopping_patience", "2"),
        ("load_best_model_at_end", "true"),
    ] {
        let text = without.replace("eval_strategy: no", &format!("{key}: {value}"));
        let error = Recipe::from_yaml(&text).unwrap_err().to_string();
        let expected = format!("line 13, `training.{key}`: needs validation rows");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn values_are_put_in_from_outside() {
    let dir = dir();
    let file = dir.path().join("small.yaml");
    fs::write(&file, SMALL).unwrap();
    let put = |given: &[&str]| {
        let given: Vec<String> = given.iter().map(|given| (*given).to_owned()).collect();
        Recipe::read_with(&file, &given)
    };
    let recipe = put(&[
        "training.learning_rate=3e-4",
        "training.output_dir=out/x",
        "training.save_strategy={steps: 5}",
        "strategy.target_modules=[q_proj, o_proj]",
        "data.split.seed=7",
        "name=other",
    ])
    .unwrap();
    assert_eq!(recipe.training.learning_rate, 3e-4);
    assert_eq!(recipe.training.save_strategy, SaveStrategy::Steps(5));
    assert_eq!(recipe.training.output_dir, Some(PathBuf::from("out/x")));
    assert_eq!(recipe.data.split.unwrap().seed, 7);
    assert_eq!(recipe.name.as_deref(), Some("other"));
    // A value in quotes is all of it; so is one with `#` within a word.
    assert_eq!(put(&["name='#x'"]).unwrap().name.as_deref(), Some("#x"));
    assert_eq!(put(&["name=a#b"]).unwrap().name.as_deref(), Some("a#b"));
    assert_eq!(put(&["name="]).unwrap().name, None);
    for (given, expected) in [
        (
            "name=#x",
            "`name`: `#x` has a `#`, behind which YAML reads nothing: put the value in quotes",
        ),
        ("name=a #b", "`name`: `a #b` has a `#`"),
        (
            "data.split={fraction: 0.2} # a fifth",
            "`data.split`: `{fraction: 0.2} # a fifth` has a `#`",
        ),
        (
            "training.learning_rat=1",
            "`training.learning_rat`: there is no key `learning_rat` here; did",
        ),
        ("training.epochs=many", "`training.epochs`: expected a whole number of 0 or more, found"),
        ("epochs", "expected a key, `=` and a value"),
        ("name.first=a", "`name`: expected a text, found a map"),
        ("model.name_or_path.x=a", "`model.name_or_path.x`: `model.name_or_path` is no map"),
    ] {
        let error = put(&[given]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("line"), "{error}");
    }
}

#[test]
fn the_example_of_the_documentation_reads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipe.md");
    let page = fs::read_to_string(path).unwrap();
    let mut examples =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let whole = examples.next().unwrap();
    let recipe = Recipe::from_yaml(whole).unwrap();
    assert_eq!(recipe.to_yaml().unwrap(), whole, "the page has the file as it is written");
    for part in examples {
        assert!(Recipe::from_yaml(part).is_ok(), "{part}");
    }
}
