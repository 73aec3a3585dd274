//! Spot checks on planted cases: facts that nothing supports, among real answers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tunebook_evaluate::statistics::wilson;
use tunebook_evaluate::{Fact, unsupported};

/// Prompts and answers of gsm8k, if `TUNEBOOK_DATA` has them.
fn gsm8k() -> Option<Vec<(String, String)>> {
    let Some(folder) = std::env::var_os("TUNEBOOK_DATA") else {
        println!("skipped: TUNEBOOK_DATA names no folder");
        return None;
    };
    let path = std::path::Path::new(&folder).join("gsm8k/train.jsonl");
    let Ok(text) = std::fs::read_to_string(path) else {
        println!("skipped: no gsm8k/train.jsonl in TUNEBOOK_DATA");
        return None;
    };
    let pair = |line: &str| -> Option<(String, String)> {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        let text =
            |keys: [&str; 2]| keys.iter().find_map(|key| Some(row.get(*key)?.as_str()?.to_owned()));
        Some((text(["question", "prompt"])?, text(["answer", "completion"])?))
    };
    Some(text.lines().filter_map(pair).collect())
}

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// The answer with an invented fact.
fn planted(answer: &str, random: &mut Random) -> String {
    const NAMES: [&str; 8] = [
        "Henderson",
        "Okafor",
        "Lindqvist",
        "Matsuda",
        "Petrova",
        "Vasquez",
        "Zimmer",
        "Achterberg",
    ];
    const MONTHS: [&str; 4] = ["February", "August", "October", "November"];
    let (name, month) = (random.one(&NAMES), random.one(&MONTHS));
    let (day, year, number) =
        (random.below(27) + 2, 1900 + random.below(99), 1000 + random.below(90_000));
    let sentence = match random.below(7) {
        0 => format!("This was settled on {day} {month} {year}."),
        1 => format!("As {name} said, this is right."),
        2 => format!("See https://www.{}.example/help for more.", name.to_lowercase()),
        3 => format!("Write to {}@mail.example about it.", name.to_lowercase()),
        4 => format!("The reference is {}{}-{number}.", &name[..1], &month[..1]),
        5 => format!("A fee of ${number}.37 is added."),
        _ => format!("About {number} people do the same."),
    };
    let lines: Vec<&str> = answer.split('\n').collect();
    let at = random.below(lines.len());
    [&lines[..at], &[sentence.as_str()], &lines[at..]].concat().join("\n")
}

#[test]
fn planted_facts_are_found_and_real_answers_are_not() {
    let Some(pairs) = gsm8k() else { return };
    for (set, offset) in [("fitted on", 0), ("first", 2000), ("second", 4000)] {
        let mut random = Random(ChaCha8Rng::seed_from_u64(offset as u64));
        let (mut hit, mut missed, mut alarms) = (0, 0, 0);
        let show = |what: &str, answer: &str, facts: &[Fact]| {
            if std::env::var_os("SHOW_WRONG").is_some() {
                println!(
                    "{what}: {:?} in {answer:?}",
                    facts.iter().map(|f| &f.text).collect::<Vec<_>>()
                );
            }
        };
        for (row, (prompt, answer)) in pairs[offset..offset + 200].iter().enumerate() {
            let is_planted = row % 10 < 3;
            let text = if is_planted { planted(answer, &mut random) } else { answer.clone() };
            let facts = unsupported(&text, &[prompt, answer]);
            match (is_planted, facts.is_empty()) {
                (true, false) => hit += 1,
                (true, true) => {
                    show("missed", &text, &facts);
                    missed += 1;
                }
                (false, false) => {
                    show("alarm", &text, &facts);
                    alarms += 1;
                }
                (false, true) => {}
            }
        }
        let (precision, recall) =
            (hit as f64 / (hit + alarms) as f64, hit as f64 / (hit + missed) as f64);
        let low = |of: u64| wilson(hit, hit + of, 0.95).unwrap().low;
        println!(
            "{set}: precision {precision:.3} (at least {:.3}), recall {recall:.3} (at least {:.3})",
            low(alarms),
            low(missed)
        );
        assert!(precision >= 0.95 && low(alarms) >= 0.9, "{set}: {alarms} false alarms");
        assert!(recall >= 0.95 && low(missed) >= 0.85, "{set}: {missed} missed");
    }
}

/// The control: right answers against their prompts alone.
#[test]
fn right_answers_raise_few_alarms() {
    let Some(pairs) = gsm8k() else { return };
    let mut alarms = 0;
    for (prompt, answer) in &pairs[6000..6500] {
        let facts = unsupported(answer, &[prompt]);
        if !facts.is_empty() {
            alarms += 1;
            if std::env::var_os("SHOW_WRONG").is_some() {
                println!(
                    "{:?}\n  {prompt}\n  {answer}",
                    facts.iter().map(|f| &f.text).collect::<Vec<_>>()
                );
            }
        }
    }
    println!("{alarms} of 500 right answers have a fact that their prompt does not support");
    assert!(alarms <= 10, "{alarms} of 500");
}
