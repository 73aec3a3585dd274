//! A plan before the bill.

use tunebook_export::cluster::{Accelerate, CARDS, Card, ClusterPlan, Prices, plan};
use tunebook_runs::{ModelDtype, Recipe, StrategyRecipe};
use tunebook_tune::Full;

use super::recipe;

#[test]
fn tokens_and_steps_are_counted_and_cards_compared() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let prices = folder.path().join("prices.toml");
    std::fs::write(&prices, "currency = \"EUR\"\n[gpus]\nH100 = 3.0\n").unwrap();
    let prices = Prices::read(&prices).unwrap();
    let plan = plan(&recipe, &[], 1, None, Some(&prices)).unwrap();
    let of = |i: usize| 21 + format!("what is {i}?").len() + format!("it is {}", i * i).len();
    let tokens = (0..12).map(of).sum::<usize>() + 2 * 21 + 4;
    assert_eq!((plan.rows, plan.steps, plan.tokens), (13, 12, 3 * tokens));
    assert_eq!(plan.cards.len(), CARDS.len());
    for card in &plan.cards {
        assert!(card.hours > 0.0 && card.hours < 1.0 && card.fits, "{card:?}");
        assert_eq!(card.price.is_some(), card.card.name == "H100");
    }
    let shown = plan.to_string();
    assert!(shown.contains("none of it has been measured") && shown.contains("EUR"), "{shown}");
}

#[test]
fn more_work_takes_longer_and_more_cards_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path());
    let card = [Card::named("t4").unwrap()];
    let of = |recipe: &tunebook_runs::Recipe, gpus, accelerate| {
        plan(recipe, &card, gpus, accelerate, None).unwrap()
    };
    let one = of(&base, 1, None);
    let mut longer = base.clone();
    longer.training.epochs = 6;
    let twice = of(&longer, 1, None);
    // But for the padding, which the order of the rows changes.
    assert!((twice.flops / one.flops - 2.0).abs() < 0.05, "{} {}", twice.flops, one.flops);
    assert!(twice.cards[0].hours > 1.9 * one.cards[0].hours);
    let shared = of(&base, 2, Some(Accelerate::Fsdp2));
    assert!(shared.cards[0].hours < 0.6 * one.cards[0].hours);
    assert!(shared.cards[0].bytes < one.cards[0].bytes);
    let mut half = base.clone();
    half.model.dtype = ModelDtype::Bfloat16;
    assert!(of(&half, 1, None).cards[0].bytes < one.cards[0].bytes);
    let mut again = base;
    again.training.gradient_checkpointing = true;
    let again = of(&again, 1, None);
    assert!(again.cards[0].bytes < one.cards[0].bytes && again.flops > one.flops);
}

#[test]
fn a_card_that_nobody_knows_is_refused_with_those_that_are() {
    let error = Card::named("H99").unwrap_err().to_string();
    assert!(error.starts_with("no card `H99` is known, expected one of T4, L4"), "{error}");
}

fn on_a_t4(recipe: &Recipe) -> ClusterPlan {
    plan(recipe, &[Card::named("T4").unwrap()], 1, None, None).unwrap()
}

#[test]
fn blocks_that_are_run_again_count_however_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path());
    let with = |all: bool, blocks: Option<usize>| {
        let mut recipe = base.clone();
        recipe.training.gradient_checkpointing = all;
        recipe.training.checkpointed_blocks = blocks;
        on_a_t4(&recipe)
    };
    let (none, all) = (with(false, None), with(true, None));
    // The tiny model has two.
    assert_eq!((with(true, Some(0)), with(false, Some(2))), (none.clone(), all.clone()));
    assert_eq!(with(false, Some(99)), all);
    let one = with(false, Some(1));
    assert!(none.flops < one.flops && one.flops < all.flops, "{}", one.flops);
}

/// In f32 a number that is trained takes 16 bytes: itself, its gradient, and AdamW's two.
#[test]
fn full_fine_tuning_counts_each_number_once() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = recipe(folder.path());
    let mut full = adapter.clone();
    full.strategy = StrategyRecipe::new(Full::default());
    let (adapter, full) = (on_a_t4(&adapter), on_a_t4(&full));
    assert_eq!(full.trainable_parameters, full.parameters);
    let numbers = full.parameters as f64;
    let without = 1.1 * (4.0 * numbers + 16.0 * adapter.trainable_parameters as f64);
    let found = full.cards[0].bytes as f64 - (adapter.cards[0].bytes as f64 - without);
    assert!((found / (1.1 * 16.0 * numbers) - 1.0).abs() < 1e-3, "{}", found / numbers / 1.1);
}

#[test]
fn the_base_s_pass_for_kl_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path());
    let mut kl = base.clone();
    kl.training.kl_coef = 0.5;
    let (without, with) = (on_a_t4(&base), on_a_t4(&kl));
    let more = with.flops / without.flops;
    assert!((1.2..1.6).contains(&more), "{more}");
    assert!(with.cards[0].bytes > without.cards[0].bytes);
    assert!(with.cards[0].hours > without.cards[0].hours);
}

/// A plan of a run that would be refused is none.
#[test]
fn a_recipe_that_is_not_trained_has_no_plan() {
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path());
    let refused = |change: fn(&mut Recipe), gpus: usize, says: &str| {
        let mut recipe = base.clone();
        change(&mut recipe);
        let error = plan(&recipe, &[], gpus, None, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(|_| {}, 3, "`--gpus` is 3, and a step has 4 rows");
    refused(|r| r.training.eval_metrics = vec!["nope".to_owned()], 1, "eval_metrics");
    refused(|r| r.training.metric_for_best_model = "foo".to_owned(), 1, "`foo`, expected one");
    refused(|r| r.training.epochs = 99_999_999_999, 1, "`TrainingArgs.epochs` is 99999999999");
    refused(|r| r.training.epochs = 1 << 31, 1, "`TrainingArgs.epochs` is 2147483648, with 13");
    refused(|r| r.training.max_steps = Some(1 << 31), 1, "`TrainingArgs.max_steps` is 2147483648");
    let wide = |r: &mut Recipe| r.training.gradient_accumulation_steps = 1 << 62;
    refused(wide, 1, "`TrainingArgs.gradient_accumulation_steps` is 4611686018427387904");
    // More rows in a batch than there are is one step an epoch.
    let mut large = base.clone();
    large.training.batch_size = 1 << 30;
    let plan = on_a_t4(&large);
    assert_eq!((plan.steps, plan.rows), (large.training.epochs, 13));
}

#[test]
fn a_price_is_found_by_any_spelling_of_its_card_and_never_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let path = folder.path().join("prices.toml");
    let with = |name: &str| {
        std::fs::write(&path, format!("currency = \"EUR\"\n[gpus]\n{name} = 3.0\n")).unwrap();
        plan(&recipe, &[Card::named("H100").unwrap()], 1, None, Some(&Prices::read(&path).unwrap()))
    };
    assert!(with("h100").unwrap().cards[0].price.is_some());
    let error = with("H99").unwrap_err().to_string();
    assert!(error.starts_with("no card `H99` is known"), "{error}");
}
