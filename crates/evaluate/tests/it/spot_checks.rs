//! Spot checks on planted cases: facts that nothing supports, among real answers.

use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tunebook_evaluate::statistics::wilson;
use tunebook_evaluate::{AnswerForm, PassageIndex, unsupported};
use tunebook_models::{Device, GenerationConfig, Model};

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

/// Three sets of 200 real answers, 60 of them with something planted: whoever fits a threshold does so on
/// the first. Each set's precision and recall are at least 0.95, and at least 0.9 with 95 % confidence.
fn planted_are_found(
    pairs: &[(String, String)],
    plant: impl Fn(&str, &mut Random) -> String,
    finds: impl Fn(&str, &str, &str) -> Vec<String>,
) {
    for (set, offset) in [("fitted on", 0), ("first", 2000), ("second", 4000)] {
        let mut random = Random(ChaCha8Rng::seed_from_u64(offset as u64));
        let (mut hit, mut missed, mut alarms) = (0, 0, 0);
        for (row, (prompt, answer)) in pairs[offset..offset + 200].iter().enumerate() {
            let is_planted = row % 10 < 3;
            let text = if is_planted { plant(answer, &mut random) } else { answer.clone() };
            let found = finds(&text, prompt, answer);
            let count = match (is_planted, found.is_empty()) {
                (true, false) => &mut hit,
                (true, true) => &mut missed,
                (false, false) => &mut alarms,
                (false, true) => continue,
            };
            *count += 1;
            if is_planted == found.is_empty() && std::env::var_os("SHOW_WRONG").is_some() {
                println!("planted: {is_planted}; {found:?} in {text:?}");
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
        assert!(recall >= 0.95 && low(missed) >= 0.9, "{set}: {missed} missed");
    }
}

#[test]
fn planted_facts_are_found_and_real_answers_are_not() {
    let Some(pairs) = gsm8k() else { return };
    planted_are_found(&pairs, planted, |text, prompt, answer| {
        unsupported(text, &[prompt, answer]).into_iter().map(|fact| fact.text).collect()
    });
}

/// Words of a passage that no two problems share by chance; fitted on the first set.
const LEARNED: usize = 12;

#[test]
fn planted_passages_are_found_and_what_all_problems_say_is_not() {
    let Some(pairs) = gsm8k() else { return };
    let training: Vec<&String> = pairs[6500..].iter().map(|(_, answer)| answer).collect();
    let index = PassageIndex::new(&training);
    let plant = |answer: &str, random: &mut Random| {
        let long: Vec<&&String> =
            training.iter().filter(|text| text.split_whitespace().count() >= 30).collect();
        let from = long[random.below(long.len())];
        let words: Vec<&str> = from.split_whitespace().collect();
        let count = 14 + random.below(10);
        let at = random.below(words.len() - count);
        let passage = words[at..at + count].join(" ");
        let lines: Vec<&str> = answer.split('\n').collect();
        let at = random.below(lines.len());
        [&lines[..at], &[passage.as_str()], &lines[at..]].concat().join("\n")
    };
    let long = |text: &str, sources: &[&str]| {
        index.longest_copy(text, sources).filter(|found| found.words >= LEARNED)
    };
    // The references do not help the real answers here: they are their own.
    planted_are_found(&pairs, plant, |text, prompt, _| {
        long(text, &[prompt]).map(|found| found.text).into_iter().collect()
    });
    // The control: what rows that were not trained on have in common with those that were.
    let held_out = &pairs[5000..5500];
    let alike =
        held_out.iter().filter(|(prompt, answer)| long(answer, &[prompt]).is_some()).count();
    println!("{alike} of 500 held-out answers have {LEARNED} words of a training row");
    assert!(alike <= 10, "{alike} of 500");
}

#[test]
fn planted_markup_is_found_and_real_answers_have_none() {
    let Some(pairs) = gsm8k() else { return };
    let completions: Vec<&String> = pairs[6500..].iter().map(|(_, answer)| answer).collect();
    let form = AnswerForm::of(&completions);
    let plant = |answer: &str, random: &mut Random| {
        let words: Vec<&str> = answer.split(' ').collect();
        // One within a line.
        let within: Vec<usize> = (0..words.len()).filter(|at| !words[*at].contains('\n')).collect();
        let at = within[random.below(within.len())];
        let (before, word, after) = (words[..at].join(" "), words[at], words[at + 1..].join(" "));
        match random.below(5) {
            0 => format!("{before} `{word}` {after}"),
            1 => format!("```\n{answer}\n```"),
            2 => format!("{before} **{word}** {after}"),
            3 => format!("{answer}\nUser: and what then?"),
            _ => format!("{before} <b>{word}</b> {after}"),
        }
    };
    planted_are_found(&pairs, plant, |text, _, _| {
        form.issues(text).into_iter().map(|issue| issue.text).collect()
    });
    let alarms = pairs[5000..5500].iter().filter(|(_, answer)| !form.issues(answer).is_empty());
    let alarms = alarms.count();
    println!("{alarms} of 500 real answers are said to have another form");
    assert!(alarms <= 10, "{alarms} of 500");
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

/// The checks of 500 answers, in the time that generating them takes. An answer takes as long as one of
/// forty of the small model that notebooks start with.
#[test]
#[ignore = "needs the base model; a minute"]
fn checks_take_a_twentieth_of_generating_at_most() {
    let Some(pairs) = gsm8k() else { return };
    let Ok(model) = Model::load("SmolLM2-135M-Instruct", &Device::Cpu) else {
        tunebook_testing::skip("no SmolLM2-135M-Instruct in the cache");
        return;
    };
    let asked: Vec<String> = pairs[..40].iter().map(|(prompt, _)| prompt.clone()).collect();
    let config = GenerationConfig { max_new_tokens: 96, ..Default::default() };
    let start = Instant::now();
    let generated = model.chat_batch(&asked, &config).unwrap();
    let generating = start.elapsed().as_secs_f64() / asked.len() as f64 * 500.0;

    let trained: Vec<&String> = pairs[500..].iter().map(|(_, answer)| answer).collect();
    let start = Instant::now();
    let (index, form) = (PassageIndex::new(&trained), AnswerForm::of(&trained));
    let mut found = 0;
    for (row, (prompt, reference)) in pairs[..500].iter().enumerate() {
        let answer = &generated[row % generated.len()];
        found += unsupported(answer, &[prompt, reference]).len() + form.issues(answer).len();
        found += usize::from(index.longest_copy(answer, &[prompt]).is_some());
    }
    let checking = start.elapsed().as_secs_f64();
    println!(
        "500 answers: {generating:.1} s generated, {checking:.2} s checked ({:.2} %), {found} findings",
        100.0 * checking / generating
    );
    assert!(found > 0 && checking < generating / 20.0, "{checking} of {generating} s");
}
