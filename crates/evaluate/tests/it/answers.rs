//! The metrics that have no counterpart to compare with: answers and their expected scores.

use tunebook_evaluate::metric::{
    Bleu, Contains, DistinctN, EditDistance, ExactMatch, JsonSchema, JsonValid, Normalise,
    NumericAnswer, Occurrence, RegexMatch, metric_fn,
};
use tunebook_evaluate::{Error, TextMetric};

#[track_caller]
fn score(metric: &dyn TextMetric, answer: &str, reference: &str) -> f64 {
    metric.row_score(answer, &[reference.to_owned()]).unwrap()
}

#[test]
fn exact_match_ignores_what_it_is_told() {
    let strict = ExactMatch { normalise: Normalise::NOTHING };
    assert_eq!(score(&strict, "a ", "a"), 0.0);
    assert_eq!(score(&ExactMatch::default(), "\u{1c} a\u{a0}\n", "a"), 1.0);
    assert_eq!(score(&ExactMatch::default(), "A", "a"), 0.0);
    assert_eq!(score(&ExactMatch::normalised(), "The cat's", "cats"), 1.0);
    assert_eq!(score(&ExactMatch::normalised(), "สวัสดี", "สวัสดี"), 1.0);
    let references = ["x".to_owned(), "y".to_owned()];
    assert_eq!(ExactMatch::default().row_score("y", &references).unwrap(), 1.0);
}

#[test]
fn a_number_is_found_however_it_is_written() {
    let metric = NumericAnswer::default();
    for (answer, reference) in [
        ("72", "72"),
        ("72.", "72"),
        ("The total is $1,000.50!", "1000.5"),
        ("1000", "1,000"),
        ("so 50%", "50"),
        ("-$5", "-5"),
        ("$-5.00", "-5"),
        ("\u{2212}5", "-5"),
        ("- 5", "5"),
        ("3-4", "4"),
        ("007", "7"),
        ("0.50", ".5"),
        ("-0", "0"),
        ("1e3", "1000"),
        ("She has 3 left.\n#### 3 of 10", "Work.\n#### 3"),
        ("ราคา ฿1,250", "1250"),
        ("12345678901234567890123", "12345678901234567890123.0"),
    ] {
        assert_eq!(score(&metric, answer, reference), 1.0, "{answer:?} and {reference:?}");
    }
    for (answer, reference) in [
        ("no number", "5"),
        ("", "5"),
        ("5", "-5"),
        ("5 of 10", "5"),
        ("####", "5"),
        ("5\n#### none", "5"),
        ("12345678901234567890123", "12345678901234567890124"),
        ("0.1", "0.10000000000000001"),
    ] {
        assert_eq!(score(&metric, answer, reference), 0.0, "{answer:?} and {reference:?}");
    }
    let tolerant = NumericAnswer { tolerance: 0.01 };
    assert_eq!(score(&tolerant, "3.14", "3.1416"), 1.0);
    assert_eq!(score(&tolerant, "3.1", "3.1416"), 0.0);
    let error = metric.row_score("5", &["five".into()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the reference \"five\" holds no number, so `numeric_answer` cannot compare with it"
    );
}

#[test]
fn contains_needs_something_to_contain() {
    let metric = Contains { normalise: Normalise { ignore_case: true, ..Default::default() } };
    assert_eq!(score(&metric, "I live in PARIS.", "paris"), 1.0);
    assert_eq!(score(&metric, "par is", "paris"), 0.0);
    let error = metric.row_score("x", &[" ".into()]).unwrap_err();
    assert!(error.to_string().contains("is empty after normalisation"), "{error}");
}

#[test]
fn a_pattern_extracts_its_group() {
    let first = RegexMatch::extract(r"(?i)answer:\s*(?:\(([A-D])\)|([A-D])\b)").unwrap();
    let last = first.clone().occurrence(Occurrence::Last);
    let answer = "Answer: (B). Wait, answer: C";
    assert_eq!((score(&first, answer, "B"), score(&first, answer, "C")), (1.0, 0.0));
    assert_eq!((score(&last, answer, "B"), score(&last, answer, "C")), (0.0, 1.0));
    assert_eq!(score(&first, "B", "B"), 0.0);
    let whole = RegexMatch::extract(r"\d+").unwrap();
    assert_eq!(score(&whole, "about 12 or 13", "12"), 1.0);
    let caseless = Normalise { ignore_case: true, ..Default::default() };
    let word = RegexMatch::extract(r"\w+").unwrap().normalise(caseless);
    assert_eq!(score(&word, "YES!", "yes"), 1.0);

    let found = RegexMatch::found("^[a-z]+$").unwrap();
    assert!(!found.needs_references());
    assert_eq!(found.row_score("abc", &[]).unwrap(), 1.0);
    assert_eq!(found.row_score("abC", &[]).unwrap(), 0.0);
    let error = RegexMatch::found("(").unwrap_err().to_string();
    assert!(error.starts_with("the pattern `(` is no regular expression: "), "{error}");
}

#[test]
fn signatures_keep_their_fields_apart() {
    let metric = RegexMatch::found(r"a|b").unwrap();
    assert_eq!(metric.signature(Some(0)), r"nrefs:0|pattern:a\x7cb|compare:no|version:1");
    let schema = JsonSchema::new(r#"{"enum": ["a|b"]}"#).unwrap();
    assert_eq!(
        schema.signature(None),
        r#"nrefs:var|schema:{"enum":["a\u007cb"]}|fenced:no|version:1"#
    );
}

#[test]
fn json_is_valid_or_not() {
    let plain = JsonValid::default();
    let valid = |metric: &JsonValid, answer: &str| metric.row_score(answer, &[]).unwrap() == 1.0;
    for answer in ["{}", " [1, 2.5e3, null]\n", "\"ส\"", "0", r#"{"a": {"a": []}}"#] {
        assert!(valid(&plain, answer), "{answer}");
    }
    for answer in ["", "{", "{} {}", "{'a': 1}", "[1,]", "NaN", "Here: {}", "```json\n{}\n```"] {
        assert!(!valid(&plain, answer), "{answer}");
    }
    let fenced = JsonValid { fenced: true };
    for answer in ["{}", "```json\n{}\n```", "\n```\n[1]\n```\n"] {
        assert!(valid(&fenced, answer), "{answer}");
    }
    for answer in ["```", "``````", "```json {}```", "```json\n{}\n``` done"] {
        assert!(!valid(&fenced, answer), "{answer}");
    }
    assert!(!valid(&plain, &"[".repeat(100_000)));
}

#[test]
fn a_schema_is_complete_and_offline() {
    let schema = r##"{
        "$defs": {"name": {"type": "string", "minLength": 2}},
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/name"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"],
        "additionalProperties": false
    }"##;
    let metric = JsonSchema::new(schema).unwrap();
    for (answer, expected) in [
        (r#"{"name": "Ada"}"#, 1.0),
        (r#"{"name": "Ada", "age": 36}"#, 1.0),
        (r#"{"name": "A"}"#, 0.0),
        (r#"{"name": "Ada", "age": -1}"#, 0.0),
        (r#"{"name": "Ada", "mail": "x"}"#, 0.0),
        ("[]", 0.0),
        ("Ada", 0.0),
    ] {
        assert_eq!(metric.row_score(answer, &[]).unwrap(), expected, "{answer}");
    }
    assert_eq!(metric.fenced().row_score("```json\n{\"name\": \"Ada\"}\n```", &[]).unwrap(), 1.0);

    for remote in ["https://example.com/name.json", "file:///etc/hostname", "name.json"] {
        let error = JsonSchema::new(&format!(r#"{{"$ref": "{remote}"}}"#)).unwrap_err();
        assert!(matches!(&error, Error::Schema { reason } if reason.contains("name")), "{error}");
    }
    for broken in ["{", r#"{"type": "objekt"}"#, r#"{"minimum": "0"}"#] {
        assert!(matches!(JsonSchema::new(broken), Err(Error::Schema { .. })), "{broken}");
    }
    let meta = r#"{"$ref": "https://json-schema.org/draft/2020-12/schema"}"#;
    assert_eq!(JsonSchema::new(meta).unwrap().row_score("{}", &[]).unwrap(), 1.0);
}

#[test]
fn distances_are_of_characters() {
    let metric = EditDistance::default();
    assert_eq!(score(&metric, "", ""), 0.0);
    assert_eq!(score(&metric, "", "abc"), 1.0);
    assert_eq!(score(&metric, "naïve", "naive"), 0.2);
    assert_eq!(score(&metric, "มา", "มาก"), 1.0 / 3.0);
    assert_eq!(metric.row_score("ab", &["xy".into(), "ax".into()]).unwrap(), 0.5);
}

#[test]
fn distinct_counts_within_answers() {
    let metric = DistinctN { n: 1 };
    let first = metric.statistics("a a b", &[]).unwrap();
    let second = metric.statistics("a", &[]).unwrap();
    assert_eq!((first.as_slice(), second.as_slice()), (&[2.0, 3.0][..], &[1.0, 1.0][..]));
    assert_eq!(DistinctN { n: 3 }.row_score("a b", &[]).unwrap(), 0.0);
}

#[test]
fn a_closure_may_fail() {
    let metric = metric_fn("first_half", true, |answer: &str, reference: &str| {
        let half = answer.chars().count() / 2;
        assert!(half > 0, "the answer is too short");
        f64::from(u8::from(reference.starts_with(&answer[..half])))
    });
    assert_eq!(metric.row_score("abxx", &["ab".into()]).unwrap(), 1.0);
    let error = metric.row_score("x", &["ab".into()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the metric `first_half` panicked (the answer is too short) over the answer \"x\""
    );
    // It goes on after a panic.
    assert_eq!(metric.row_score("abxx", &["zz".into()]).unwrap(), 0.0);

    let infinite = metric_fn("ratio", false, |answer: &str, reference: &str| {
        answer.len() as f64 / reference.len() as f64
    });
    let error = infinite.row_score("x", &[String::new()]).unwrap_err();
    assert_eq!(error.to_string(), "the metric `ratio` is inf for \"x\"; a value must be finite");
    // Of several references the best counts, which is the smallest here.
    let references = ["a".to_owned(), "aaaa".to_owned()];
    assert_eq!(infinite.row_score("xx", &references).unwrap(), 0.5);
    assert_eq!(infinite.version(3).unit("x").signature(Some(1)), "nrefs:1|closure:ratio|version:3");
}

#[test]
fn a_row_without_references_is_an_error() {
    let long = "x".repeat(500);
    let error = Bleu::default().statistics(&long, &[]).unwrap_err();
    assert!(matches!(error, Error::NoReference { .. }));
    let text = error.to_string();
    assert!(text.starts_with("`bleu` compares with a reference"), "{text}");
    assert!(text.ends_with("xx\"…") && text.len() < 300, "{text}");
}
