//! Settings as JSON: they come back as they were, and a field of another name is refused.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tunebook_data::{
    Cleaning, CleaningStep, Pii, Quality, ReadOptions, Repetition, RowShape, Shingles, Split,
    Survivor,
};

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
}

/// The message for this JSON, which names the field.
#[track_caller]
fn is_refused<T: DeserializeOwned + Debug>(json: &str, field: &str) {
    let error = serde_json::from_str::<T>(json).unwrap_err().to_string();
    assert!(error.contains("unknown") && error.contains(&format!("`{field}`")), "{error}");
}

fn every_step() -> Vec<CleaningStep> {
    let all = Cleaning::standard()
        .strip_markdown()
        .tidy_markdown()
        .strip_boilerplate(0.25)
        .mask_pii()
        .drop_short(3)
        .drop_long(4000)
        .keep_languages(&["en", "deu"])
        .drop_low_quality(Quality::gopher())
        .drop_low_quality(Quality::default())
        .drop_repetitive()
        .drop_near_duplicates()
        .drop_near_duplicates_by(Shingles::Words(5), 0.8, Survivor::Longest)
        .resolve_conflicts(Survivor::Nobody);
    let mut names: Vec<&str> = all.steps.iter().map(CleaningStep::name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 19, "a step is missing: {names:?}");
    all.steps
}

#[test]
fn settings_come_back_as_they_were() {
    comes_back(&Cleaning { steps: every_step() });
    every_step().iter().for_each(comes_back);
    comes_back(&Cleaning::default());
    comes_back(&Split::default());
    let split = Split::holdout(0.2).seed(7).test(0.1).group_by("g").stratify_by("s").by_time("t");
    comes_back(&split.near_duplicates_together());
    comes_back(&ReadOptions::default());
    comes_back(&ReadOptions::default().template("{a}", "{b}").files("*.jsonl"));
    for shape in [
        RowShape::PromptCompletion,
        RowShape::Alpaca,
        RowShape::Messages,
        RowShape::ShareGpt,
        RowShape::QuestionAnswer,
        RowShape::Text,
    ] {
        comes_back(&ReadOptions::default().shape(shape));
    }
    comes_back(&ReadOptions::default().columns("a", "b"));
    [Quality::gopher(), Quality::fineweb(), Quality::pairs()].iter().for_each(comes_back);
    comes_back(&Repetition::default());
    Pii::ALL.iter().for_each(comes_back);
}

#[test]
fn fields_left_out_are_the_defaults() {
    assert_eq!(serde_json::from_str::<Split>("{\"seed\":7}").unwrap(), Split::default().seed(7));
    assert_eq!(serde_json::from_str::<Cleaning>("{}").unwrap(), Cleaning::default());
    assert_eq!(serde_json::from_str::<ReadOptions>("{}").unwrap(), ReadOptions::default());
    assert_eq!(serde_json::from_str::<Quality>("{}").unwrap(), Quality::default());
    assert_eq!(serde_json::from_str::<Repetition>("{}").unwrap(), Repetition::default());
    let step = r#"{"drop_near_duplicates":{"threshold":0.72,"keep":"first"}}"#;
    assert_eq!(
        serde_json::from_str::<CleaningStep>(step).unwrap(),
        CleaningStep::near_duplicates()
    );
}

#[test]
fn fields_of_another_name_are_refused() {
    is_refused::<Split>(r#"{"holdout":0.1}"#, "holdout");
    is_refused::<Cleaning>(r#"{"stpes":[]}"#, "stpes");
    is_refused::<Cleaning>(r#"{"steps":["strip_htm"]}"#, "strip_htm");
    is_refused::<CleaningStep>(r#"{"drop_short":{"min_words":3,"max_words":4}}"#, "max_words");
    is_refused::<CleaningStep>(r#"{"drop_low_quality":{"min_word":3}}"#, "min_word");
    is_refused::<CleaningStep>(r#"{"drop_repetitive":{"words":3}}"#, "words");
    is_refused::<ReadOptions>(r#"{"file":"*"}"#, "file");
    is_refused::<RowShape>(r#"{"columns":{"prompt":"a","completion":"b","text":"c"}}"#, "text");
    is_refused::<Survivor>("\"best\"", "best");
    is_refused::<Shingles>(r#"{"letters":5}"#, "letters");
    is_refused::<Pii>("\"name\"", "name");
}
