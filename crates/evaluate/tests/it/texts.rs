//! BLEU, chrF, TER, ROUGE and SQuAD's scores of a thousand pairs.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tunebook_evaluate::TextMetric;
use tunebook_evaluate::metric::{Bleu, Chrf, ExactMatch, Rouge, RougeKind, Ter, TokenF1, sums};

use crate::golden::{close, pairs, read};

/// What sacreBLEU says under some settings.
#[derive(Deserialize)]
struct Scores<M> {
    settings: M,
    signature: String,
    varying: String,
    all: f64,
    chunks: Vec<f64>,
    rows: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(bound = "")]
struct Sacrebleu {
    bleu: Vec<Scores<Bleu>>,
    chrf: Vec<Scores<Chrf>>,
    ter: Vec<Scores<Ter>>,
}

/// Rows, chunks and all rows score alike, and the signatures are equal.
fn compare<M: TextMetric + DeserializeOwned + std::fmt::Debug>(expected: &[Scores<M>]) {
    let pairs = pairs();
    for Scores { settings, signature, varying, all, chunks, rows } in expected {
        let statistics: Vec<_> = pairs
            .iter()
            .map(|(answer, references)| settings.statistics(answer, references).unwrap())
            .collect();
        assert_eq!(statistics.len(), rows.len());
        for ((row, expected), pair) in statistics.iter().zip(rows).zip(&pairs) {
            close(settings.score(row), *expected, format!("{settings:?} of {pair:?}"));
        }
        for (index, (chunk, expected)) in
            statistics.chunks(rows.len() / chunks.len()).zip(chunks).enumerate()
        {
            close(settings.score(&sums(chunk)), *expected, format!("{settings:?}, chunk {index}"));
        }
        close(settings.score(&sums(&statistics)), *all, format!("{settings:?}, all rows"));

        // sacreBLEU does not say which order its BLEU has.
        let silent = |signature: String| {
            let parts = signature.split('|').filter(|part| !part.starts_with("order:"));
            parts.collect::<Vec<_>>().join("|")
        };
        assert_eq!(silent(settings.signature(Some(1))), *signature);
        assert_eq!(silent(settings.signature(None)), *varying);
    }
}

#[test]
fn bleu_equals_sacrebleu() {
    compare(&read::<Sacrebleu>("sacrebleu.json").bleu);
}

#[test]
fn chrf_equals_sacrebleu() {
    compare(&read::<Sacrebleu>("sacrebleu.json").chrf);
}

#[test]
fn ter_equals_sacrebleu() {
    compare(&read::<Sacrebleu>("sacrebleu.json").ter);
}

/// F1 by rouge-score's names of kinds.
#[derive(Deserialize)]
struct RougeScores {
    rouge1: Vec<f64>,
    rouge2: Vec<f64>,
    rouge3: Vec<f64>,
    #[serde(rename = "rougeL")]
    l: Vec<f64>,
    #[serde(rename = "rougeLsum")]
    lsum: Vec<f64>,
}

#[derive(Deserialize)]
struct Stemming {
    plain: RougeScores,
    stemmed: RougeScores,
}

#[test]
fn rouge_equals_rouge_score() {
    let expected: Stemming = read("rouge.json");
    let pairs = pairs();
    for (stemmer, scores) in [(false, &expected.plain), (true, &expected.stemmed)] {
        for (kind, expected) in [
            (RougeKind::N(1), &scores.rouge1),
            (RougeKind::N(2), &scores.rouge2),
            (RougeKind::N(3), &scores.rouge3),
            (RougeKind::L, &scores.l),
            (RougeKind::Lsum, &scores.lsum),
        ] {
            let metric = Rouge { kind, stemmer };
            assert_eq!(expected.len(), pairs.len());
            for ((answer, references), expected) in pairs.iter().zip(expected) {
                let found = metric.row_score(answer, references).unwrap();
                close(found, *expected, format!("{metric:?} of {answer:?} and {references:?}"));
            }
        }
    }
    // Stemming must matter in these pairs, and each kind differ from the others.
    assert_ne!(expected.plain.rouge1, expected.stemmed.rouge1);
    assert_ne!(expected.plain.l, expected.plain.lsum);
}

#[derive(Deserialize)]
struct Squad {
    exact: Vec<f64>,
    f1: Vec<f64>,
}

#[test]
fn exact_match_and_f1_equal_squads() {
    let expected: Squad = read("squad.json");
    let (exact, f1) = (ExactMatch::normalised(), TokenF1::default());
    for (row, (answer, references)) in pairs().iter().enumerate() {
        let what = format!("{answer:?} and {references:?}");
        close(exact.row_score(answer, references).unwrap(), expected.exact[row], &what);
        close(f1.row_score(answer, references).unwrap(), expected.f1[row], &what);
    }
}
