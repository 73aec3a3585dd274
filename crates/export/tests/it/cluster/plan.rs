//! A plan before the bill.

use tunebook_export::cluster::{Accelerate, CARDS, Card, Prices, plan};
use tunebook_runs::ModelDtype;

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
