//! What an engine has no option for is refused by its name, with what to do.

use std::collections::BTreeMap;

use tunebook_export::cluster::{self, Accelerate, Engine, Error, ExportOptions, RunShape};
use tunebook_models::Quantization;
use tunebook_runs::{ModelDtype, Recipe, StrategyRecipe};
use tunebook_tune::{
    AdaLora, Bias, Bottleneck, EvalStrategy, Full, Ia3, Lora, LoraInit, LrScheduler, Optim,
    PrefixTuning, PromptTuning, TrainingArgs,
};

use super::{axolotl, recipe_of, trl};

const SHAPE: RunShape = RunShape {
    total_steps: 12,
    steps_per_epoch: 4,
    rows: 16,
    blocks: 2,
    longest: 40,
    validates: true,
    passes: 1,
    initial: false,
};

struct Case {
    option: &'static str,
    refused_by: &'static [Engine],
    recipe: Recipe,
    options: ExportOptions,
}

const BOTH: &[Engine] = &[Engine::Trl, Engine::Axolotl];
const TRL: &[Engine] = &[Engine::Trl];
const AXOLOTL: &[Engine] = &[Engine::Axolotl];

fn case(
    option: &'static str,
    refused_by: &'static [Engine],
    change: impl FnOnce(&mut Recipe),
) -> Case {
    let mut recipe = recipe_of("rows.jsonl");
    change(&mut recipe);
    Case { option, refused_by, recipe, options: trl() }
}

fn training(
    option: &'static str,
    refused_by: &'static [Engine],
    change: impl FnOnce(&mut TrainingArgs),
) -> Case {
    case(option, refused_by, |recipe| change(&mut recipe.training))
}

fn lora(option: &'static str, refused_by: &'static [Engine], config: Lora) -> Case {
    case(option, refused_by, |recipe| recipe.strategy = StrategyRecipe::new(config))
}

fn strategy(option: &'static str, config: impl Into<tunebook_tune::Strategy>) -> Case {
    case(option, BOTH, |recipe| recipe.strategy = StrategyRecipe::new(config))
}

fn options(
    option: &'static str,
    refused_by: &'static [Engine],
    change: impl FnOnce(&mut Recipe, &mut ExportOptions),
) -> Case {
    let mut case = case(option, refused_by, |_| {});
    change(&mut case.recipe, &mut case.options);
    case
}

fn cases() -> Vec<Case> {
    let base = Lora::default;
    let pattern = |rank: usize| BTreeMap::from([("up_proj".to_owned(), rank)]);
    vec![
        training("training.l2_sp", BOTH, |args| args.l2_sp = 10.0),
        training("training.kl_coef", BOTH, |args| args.kl_coef = 0.5),
        training("training.packing", BOTH, |args| {
            (args.packing, args.max_length) = (true, Some(64));
        }),
        training("training.eval_metrics", BOTH, |args| {
            args.eval_metrics = vec!["exact_match".into()];
        }),
        training("training.eval_metrics_rows", BOTH, |args| args.eval_metrics_rows = Some(10)),
        training("training.metric_for_best_model", BOTH, |args| {
            args.metric_for_best_model = "accuracy".into();
        }),
        training("training.early_stopping_threshold", BOTH, |args| {
            args.early_stopping_threshold = 0.01;
        }),
        training("training.memory_budget", BOTH, |args| args.memory_budget = Some(1 << 31)),
        training("training.checkpointed_blocks", BOTH, |args| args.checkpointed_blocks = Some(1)),
        case("training.fp16_init_scale", BOTH, |recipe| {
            recipe.model.dtype = ModelDtype::Float16;
            (recipe.training.fp16, recipe.training.fp16_init_scale) = (true, 1024.0);
        }),
        case("training.fp16", BOTH, |recipe| recipe.model.dtype = ModelDtype::Float16),
        case("model.dtype", AXOLOTL, |recipe| {
            recipe.model.dtype = ModelDtype::Bfloat16;
            recipe.strategy = StrategyRecipe::new(Full::default());
        }),
        case("strategy.modules_to_save", BOTH, |recipe| {
            (recipe.model.dtype, recipe.training.fp16) = (ModelDtype::Float16, true);
            let saved = vec!["lm_head".into()];
            recipe.strategy = StrategyRecipe::new(Lora { modules_to_save: saved, ..base() });
        }),
        training("training.batch_size", TRL, |args| args.batch_size = 100_000_000),
        training("training.batch_size", TRL, |args| {
            args.gradient_accumulation_steps = usize::MAX / 2;
        }),
        training("training.lr_scheduler", BOTH, |args| {
            args.lr_scheduler = LrScheduler::WarmupStableDecay { num_decay_steps: 11 };
        }),
        training("training.early_stopping_patience", TRL, |args| {
            args.early_stopping_patience = Some(2);
        }),
        training("training.loraplus_lr_ratio", TRL, |args| args.loraplus_lr_ratio = Some(16.0)),
        training("training.eval_on_start", AXOLOTL, |args| args.eval_on_start = true),
        training("training.label_smoothing_factor", AXOLOTL, |args| {
            args.label_smoothing_factor = 0.1;
        }),
        training("training.warmup_steps", AXOLOTL, |args| args.warmup_steps = Some(1)),
        strategy("strategy.type", AdaLora::default()),
        strategy("strategy.type", Ia3::default()),
        strategy("strategy.type", PromptTuning::default()),
        strategy("strategy.type", PrefixTuning::default()),
        strategy("strategy.type", Bottleneck::default()),
        strategy("strategy.bias_only", Full { bias_only: true, ..Default::default() }),
        strategy(
            "strategy.target_modules",
            Full { target_modules: Some(["q_proj"].into()), ..Default::default() },
        ),
        strategy(
            "strategy.layers_to_transform",
            Full { layers_to_transform: Some(vec![1]), ..Default::default() },
        ),
        lora("strategy.lora_alpha", BOTH, Lora { lora_alpha: 7.5, ..base() }),
        lora("strategy.bias", BOTH, Lora { bias: Bias::All, ..base() }),
        lora(
            "strategy.exclude_modules",
            BOTH,
            Lora { exclude_modules: Some(["q_proj"].into()), ..base() },
        ),
        lora("strategy.lora_init", BOTH, Lora { lora_init: LoraInit::Pissa, ..base() }),
        lora("strategy.lora_init", BOTH, Lora { lora_init: LoraInit::Olora, ..base() }),
        lora("strategy.lora_init", TRL, Lora { lora_init: LoraInit::Gaussian, ..base() }),
        lora("strategy.init_lora_weights", TRL, Lora { init_lora_weights: false, ..base() }),
        lora(
            "strategy.layers_to_transform",
            TRL,
            Lora { layers_to_transform: Some(vec![1]), ..base() },
        ),
        lora(
            "strategy.layers_pattern",
            TRL,
            Lora { layers_pattern: vec!["layers".into()], ..base() },
        ),
        lora("strategy.ensure_weight_tying", TRL, Lora { ensure_weight_tying: true, ..base() }),
        lora("strategy.rank_pattern", TRL, Lora { rank_pattern: pattern(3), ..base() }),
        lora(
            "strategy.alpha_pattern",
            TRL,
            Lora { alpha_pattern: [("up_proj".to_owned(), 4.0)].into(), ..base() },
        ),
        lora(
            "strategy.alpha_pattern",
            BOTH,
            Lora { alpha_pattern: [("up_proj".to_owned(), 4.5)].into(), ..base() },
        ),
        options("model.quantization", BOTH, |recipe, _| {
            recipe.model.quantization = Some(Quantization::Stored);
        }),
        options("model.quantization", BOTH, |recipe, options| {
            recipe.model.quantization = Some(Quantization::Nf4);
            options.accelerate = Some(Accelerate::Fsdp2);
        }),
        options("training.optim", BOTH, |recipe, options| {
            recipe.training.optim = Optim::AdamW8bit;
            options.accelerate = Some(Accelerate::Zero3);
        }),
        options("model.name_or_path", BOTH, |recipe, _| {
            recipe.model.name_or_path = "SmolLM2-135M-Instruct".into();
        }),
        options("model.name_or_path", BOTH, |recipe, _| {
            recipe.model.name_or_path = "models/smollm.gguf".into();
        }),
        options("--sky", BOTH, |_, options| options.sky = true),
        options("--gpus", BOTH, |_, options| options.gpus = 3),
    ]
}

#[test]
fn each_option_that_does_not_map_is_refused_by_its_name() {
    let cases = cases();
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.option).collect();
    assert!(cases.len() >= 40 && names.len() >= 30, "{} cases, {} names", cases.len(), names.len());
    for Case { option, refused_by, recipe, options } in cases {
        for engine in BOTH {
            let options = ExportOptions { engine: *engine, ..options.clone() };
            let unmapped = cluster::unmapped(&recipe, &options, Some(&SHAPE));
            let found: Vec<&str> = unmapped.iter().map(|one| one.option.as_str()).collect();
            let expected: &[&str] = if refused_by.contains(engine) { &[option] } else { &[] };
            assert_eq!(found, expected, "{engine}");
            for one in &unmapped {
                assert!(one.reason.contains(':'), "no advice: {one}");
                assert!(!one.value.is_empty(), "{one}");
            }
        }
    }
}

#[test]
fn watching_evaluations_that_there_are_not_is_refused() {
    let without = RunShape { validates: false, ..SHAPE };
    let mut recipe = recipe_of("rows.jsonl");
    recipe.training.load_best_model_at_end = true;
    let names = |recipe: &Recipe, options: &ExportOptions, shape: &RunShape| -> Vec<String> {
        let unmapped = cluster::unmapped(recipe, options, Some(shape));
        unmapped.into_iter().map(|one| one.option).collect()
    };
    for options in [trl(), axolotl()] {
        assert_eq!(names(&recipe, &options, &SHAPE), [""; 0]);
        assert_eq!(
            names(&recipe, &options, &without),
            ["training.load_best_model_at_end"],
            "{}",
            options.engine
        );
    }
    recipe.training.load_best_model_at_end = false;
    recipe.training.early_stopping_patience = Some(1);
    assert_eq!(names(&recipe, &axolotl(), &without), ["training.early_stopping_patience"]);
    // An evaluation before the first step is none, here as there.
    recipe.training.early_stopping_patience = None;
    recipe.training.eval_on_start = true;
    assert_eq!(names(&recipe, &axolotl(), &without), [""; 0]);
    recipe.training.eval_strategy = EvalStrategy::No;
    assert_eq!(names(&recipe, &axolotl(), &without), [""; 0]);
}

#[test]
fn the_usual_maps() {
    for options in [trl(), axolotl()] {
        let recipe = recipe_of("rows.jsonl");
        assert_eq!(cluster::unmapped(&recipe, &options, Some(&SHAPE)), []);
        let full = Recipe { strategy: StrategyRecipe::new(Full::default()), ..recipe };
        assert_eq!(cluster::unmapped(&full, &options, Some(&SHAPE)), []);
    }
}

#[test]
fn all_of_them_are_named_at_once_and_nothing_is_written() {
    let mut recipe = recipe_of("there/is/no/such/file.jsonl");
    (recipe.training.l2_sp, recipe.training.packing) = (1.0, true);
    let error = cluster::export(&recipe, &trl()).unwrap_err();
    assert!(matches!(&error, Error::Unmapped { unmapped, .. } if unmapped.len() == 2), "{error}");
    let error = error.to_string();
    assert!(
        error.starts_with("TRL has nothing for 2 options of this recipe:\n  `training.l2_sp: 1`")
    );
    assert!(error.contains("\n  `training.packing: true`: it packs by another rule"), "{error}");
}
