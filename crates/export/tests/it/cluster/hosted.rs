//! The data for providers.

use tunebook_export::cluster::{Error, Prices, hosted};

use super::{recipe, recipe_of};

const PRICES: &str = r#"
currency = "EUR"
[gpus]
H100 = 3.0
[hosted.large]
per_million_tokens = 25.0
[hosted.small]
per_million_tokens = 5.0
max_example_tokens = 64
[hosted.short]
per_million_tokens = 1.0
max_example_tokens = 40
"#;

fn prices(folder: &std::path::Path, text: &str) -> Result<Prices, Error> {
    let path = folder.join("prices.toml");
    std::fs::write(&path, text).unwrap();
    Prices::read(path)
}

#[test]
fn rows_are_written_counted_and_priced() {
    let folder = tempfile::tempdir().unwrap();
    let prices = prices(folder.path(), PRICES).unwrap();
    let data = hosted(&recipe(folder.path()), Some(&prices)).unwrap();
    let path = folder.path().join("train.jsonl");
    std::fs::write(&path, &data.files["train.jsonl"]).unwrap();
    assert_eq!(tunebook_data::validate_openai_chat(&path).unwrap(), []);
    let text = String::from_utf8(data.files["train.jsonl"].clone()).unwrap();
    assert!(text.lines().last().unwrap().contains(r#""content":"b","weight":0"#), "{text}");
    assert_eq!((data.rows, data.epochs), (13, 3));
    // One token a byte, and of the template 19 bytes and 4 tokens a row of two turns.
    let of = |i: usize| 21 + format!("what is {i}?").len() + format!("it is {}", i * i).len();
    let expected = (0..12).map(of).sum::<usize>() + 2 * 21 + 4;
    assert_eq!(data.tokens, expected);
    let names: Vec<&str> = data.prices.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["small", "large"]);
    assert!((data.prices[0].1 - 3.0 * expected as f64 / 1e6 * 5.0).abs() < 1e-12);
    let short = data.notes.iter().find(|note| note.contains("`short`")).unwrap();
    assert!(short.contains("max_example_tokens"), "{short}");
}

#[test]
fn steps_become_whole_epochs_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let prices = prices(folder.path(), PRICES).unwrap();
    let mut recipe = recipe(folder.path());
    let all = hosted(&recipe, Some(&prices)).unwrap();
    // Thirteen rows in steps of 4.
    recipe.training.max_steps = Some(8);
    let some = hosted(&recipe, Some(&prices)).unwrap();
    assert_eq!((all.epochs, some.epochs), (3, 2));
    assert!((some.prices[0].1 / all.prices[0].1 - 2.0 / 3.0).abs() < 1e-12);
    let job = String::from_utf8(some.files["job.json"].clone()).unwrap();
    assert!(job.contains("\"n_epochs\": 2"), "{job}");
    recipe.training.max_steps = Some(1);
    let error = hosted(&recipe, None).unwrap_err().to_string();
    assert!(
        error.starts_with("`training.max_steps: 1`: a provider counts whole epochs")
            && error.contains("an epoch has 4 steps here"),
        "{error}"
    );
}

#[test]
fn what_a_provider_would_refuse_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let write = |lines: &[String]| {
        let path = folder.path().join("bad.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        recipe_of(path.to_str().unwrap())
    };
    let row = |i: usize| format!(r#"{{"prompt": "question {i}", "completion": "answer {i}"}}"#);
    let few: Vec<String> = (0..9).map(row).collect();
    let error = hosted(&write(&few), None).unwrap_err().to_string();
    assert!(
        error.contains("the file of the training set: expected at least 10 examples"),
        "{error}"
    );
    let mut unasked: Vec<String> = (0..12).map(row).collect();
    unasked[4] = r#"{"prompt": "", "completion": "answer 4"}"#.to_owned();
    let error = hosted(&write(&unasked), None).unwrap_err().to_string();
    assert!(error.contains("row 5 of the training set") && error.contains("not empty"), "{error}");
    let plain: Vec<String> = (0..12).map(|i| format!(r#"{{"text": "text {i}"}}"#)).collect();
    let error = hosted(&write(&plain), None).unwrap_err().to_string();
    assert!(error.contains("row 1 of the training set"), "{error}");
}

#[test]
fn a_table_of_prices_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("currency = \"EUR\"\n[gpus]\nH100 = -1.0\n", "the price of `H100` is -1"),
        ("currency = \"EUR\"\n[gpu]\nH100 = 1.0\n", "unknown field `gpu`"),
        ("[gpus]\n", "missing field `currency`"),
    ] {
        let error = prices(folder.path(), text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("prices.toml"), "{error}");
    }
}
