//! How much personal data is found, and how much is taken for it that is none: 600 lines that say what
//! they hold, put together by a seed from forms of ten countries, by which the rules were tuned; and
//! 300 more, written by hand and held out, by which they are judged.

use tunebook_data::{Cleaning, Dataset};
use tunebook_testing::Random;

const LINES: usize = 600;

fn digits(r: &mut Random, form: &str) -> String {
    form.chars()
        .map(|c| match c {
            '#' => char::from(b'0' + r.below(10) as u8),
            '%' => char::from(b'1' + r.below(9) as u8),
            other => other,
        })
        .collect()
}

fn letters(r: &mut Random, count: usize) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    (0..count).map(|_| char::from(LETTERS[r.below(LETTERS.len())])).collect()
}

/// A number that passes Luhn's check, in groups of four.
fn card(r: &mut Random) -> String {
    let mut number: Vec<u8> =
        digits(r, r.clone().one::<&str>(&["4##############", "51#############"]))
            .bytes()
            .map(|b| b - b'0')
            .collect();
    let sum: u32 = number
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, u32::from(*digit) * 2) {
            (0, twice) if twice > 9 => twice - 9,
            (0, twice) => twice,
            _ => u32::from(*digit),
        })
        .sum();
    number.push(((10 - sum % 10) % 10) as u8);
    let text: String = number.iter().map(|digit| char::from(b'0' + digit)).collect();
    match r.below(3) {
        0 => text,
        1 => format!("{}-{}-{}-{}", &text[..4], &text[4..8], &text[8..12], &text[12..]),
        _ => format!("{} {} {} {}", &text[..4], &text[4..8], &text[8..12], &text[12..]),
    }
}

/// With right check digits (ISO 13616).
fn iban(r: &mut Random) -> String {
    let (country, length) =
        *r.one(&[("DE", 18), ("FR", 23), ("ES", 20), ("NL", 14), ("AT", 16), ("CH", 17)]);
    let mut account = digits(r, &"#".repeat(length));
    if country == "NL" {
        account.replace_range(..4, "ABNA");
    }
    let value = format!("{account}{country}00").chars().fold(0u64, |rest, c| {
        let digit = u64::from(c.to_digit(36).unwrap());
        (if digit > 9 { rest * 100 } else { rest * 10 } + digit) % 97
    });
    let whole = format!("{country}{:02}{account}", 98 - value);
    match r.below(2) {
        0 => whole,
        _ => whole
            .as_bytes()
            .chunks(4)
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// Telephone numbers as they are written in ten countries.
const PHONES: &[&str] = &[
    "+1 %##-%##-####",
    "(%##) %##-####",
    "%##-555-####",
    "1-800-555-####", // United States, Canada
    "+44 20 7### ####",
    "020 7### ####",
    "07%## ######", // United Kingdom
    "+49 30 ########",
    "0170 #######",
    "(030) ### ### ##",
    "+49 (0)89 ######", // Germany
    "+33 6 ## ## ## ##",
    "06 ## ## ## ##", // France
    "+34 6## ### ###",
    "+39 06 #### ####",
    "+41 44 ### ## ##",
    "+43 1 #######", // Spain, Italy, Switzerland, Austria
    "+31 20 ### ####",
    "+91 9#### #####",
    "+81 3-####-####", // Netherlands, India, Japan
];

fn held(r: &mut Random) -> String {
    match r.below(6) {
        0 => {
            let (a, b) = (letters(r, 6).to_lowercase(), letters(r, 5).to_lowercase());
            let end = *r.one(&["com", "org", "de", "co.uk"]);
            match r.below(3) {
                0 => format!("a{a}@{b}x.{end}"),
                1 => format!("a{a}.b{b}@mail.{b}x.{end}"),
                _ => format!("a{a}+news@{b}x.{end}"),
            }
        }
        1 | 2 => digits(r, r.clone().one::<&str>(PHONES)),
        3 => card(r),
        4 => iban(r),
        _ => match r.below(6) {
            0 => format!("sk-proj-{}_{}", letters(r, 20), letters(r, 20)),
            1 => format!("sk-ant-api03-{}-{}AA", letters(r, 30), letters(r, 20)),
            2 => format!("ghp_{}", letters(r, 36)),
            3 => format!("github_pat_{}_{}", letters(r, 22), letters(r, 40)),
            4 => format!("AKIA{}", letters(r, 16).to_uppercase()),
            _ => format!("hf_{}", letters(r, 34)),
        },
    }
}

fn none(r: &mut Random) -> String {
    let form = *r.one(&[
        "0%/0%/20## 1#:##",
        "0%.0%.20## 1#:##",
        "20##-0%-1# 1#:##:##",
        "19## 19## 20##",
        "20## to 20##",
        "%# %# %# %# %# %#",
        "%, ##, ##, ##",
        "%#-%#-%#",
        "%,###,### EUR",
        "$%#,###.##",
        "% ### ###,## €",
        "v%.##.#",
        "version 1#.0.%#",
        "RFC %###",
        "ISO 8859-%",
        "3.14159265358979",
        "0.0###### ± 0.00##",
        "page %## of %##",
        "%#:## to %#:##",
        "§ %## Abs. %",
        "%## x %## px",
        "score %#:%#",
        "#%## and #%##",
        "%#°%#'%#\" N",
        "%.## GB of %#.# GB",
        "1e-%",
        "chapter %.%.%",
        "%## rows, %### tokens",
        "0x%#######",
        "ISBN 978-3-16-148410-0",
        "order %#####",
        "%#%",
        "(%#, %#, %#)",
        "%###/%###",
    ]);
    digits(r, form)
}

#[test]
fn personal_data_is_found_and_nothing_else() {
    let mut random = Random::new(23);
    let r = &mut random;
    let lines: Vec<(String, bool)> = (0..LINES)
        .map(|at| {
            let holds = at % 2 == 0;
            let what = if holds { held(r) } else { none(r) };
            let line = match r.below(5) {
                0 => what,
                1 => format!("It is {what}."),
                2 => format!("Please note: {what}, thank you."),
                3 => format!("{what} is what I have"),
                _ => format!("(see {what})"),
            };
            (line, holds)
        })
        .collect();
    judge("tuned", &lines);
}

#[test]
fn personal_data_is_found_in_lines_that_no_rule_was_made_from() {
    let mut random = Random::new(29);
    let lines: Vec<(String, bool)> = include_str!("../personal_data/held_out.txt")
        .lines()
        .filter_map(|line| {
            let holds = match line.get(..2)? {
                "+ " => true,
                "- " => false,
                _ => return None,
            };
            Some((filled(&mut random, &line[2..]), holds))
        })
        .collect();
    assert!(lines.len() >= 300, "{}", lines.len());
    judge("held out", &lines);
}

/// The line with letters and digits for each `{20}`, `{12:d}`, `{32:x}` and `{16:A}`: nothing that
/// looks like a key stands in the repository.
fn filled(r: &mut Random, line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, (inner, after))) =
        rest.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    {
        out.push_str(before);
        let (count, kind) = inner.split_once(':').unwrap_or((inner, ""));
        match (count.parse(), kind) {
            (Ok(count), "d") => out.push_str(&digits(r, &"#".repeat(count))),
            (Ok(count), "x") => {
                (0..count).for_each(|_| out.push_str(&format!("{:x}", r.below(16))));
            }
            (Ok(count), "A") => out.push_str(&letters(r, count).to_uppercase()),
            (Ok(count), _) => out.push_str(&letters(r, count)),
            (Err(_), _) => out.push_str(&format!("{{{inner}}}")),
        }
        rest = after;
    }
    out + rest
}

/// Prints precision and recall on lines that say whether they hold anything, and asserts both.
fn judge(name: &str, lines: &[(String, bool)]) {
    let rows: Vec<(String, &str)> = lines
        .iter()
        .enumerate()
        .map(|(at, (line, _))| (format!("Line {}?", "x".repeat(at)), line.as_str()))
        .collect();
    let rows: Vec<(&str, &str)> =
        rows.iter().map(|(prompt, line)| (prompt.as_str(), *line)).collect();
    let clean = Dataset::from_rows(&rows).clean(&Cleaning::default().mask_pii()).unwrap();
    let (mut right, mut wrong, mut missed) = (0, Vec::new(), Vec::new());
    for ((line, holds), after) in lines.iter().zip(clean.completions()) {
        match (holds, *line != after) {
            (true, true) => right += 1,
            (true, false) => missed.push(line.clone()),
            (false, true) => wrong.push(format!("{line} -> {after}")),
            (false, false) => {}
        }
    }
    let precision = f64::from(right) / (f64::from(right) + wrong.len() as f64);
    let recall = f64::from(right) / (f64::from(right) + missed.len() as f64);
    println!(
        "{name}: precision {precision:.3}, recall {recall:.3}\nwrong: {wrong:#?}\nmissed: {missed:#?}"
    );
    assert!(precision >= 0.98 && recall >= 0.95, "{name}: {precision} {recall}");
}
