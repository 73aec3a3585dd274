//! Facts of an answer that neither its prompt nor a reference has: numbers, dates, addresses, ids and
//! names. A spot check for hallucinations.
//!
//! The check is lexical. It knows that `1,000`, `1000` and `a thousand` are one number and that a
//! number may be computed from others; it does not know what a sentence says, so an answer without
//! a finding can be wrong, and a fact that the model knows is found all the same.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};

/// Numbers that results are computed from, at most: the latest ones.
const MOST_OPERANDS: usize = 48;
/// Numbers that need no source: people count so far without one.
const COUNTED: f64 = 3.0;
/// What units are converted by.
const UNITS: [f64; 9] = [2.0, 7.0, 10.0, 12.0, 24.0, 52.0, 60.0, 100.0, 1000.0];

/// The kind of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactKind {
    /// A number, amounts of money and shares included.
    Number,
    /// A day, or a month of a year.
    Date,
    /// A web address.
    Url,
    /// An e-mail address.
    Email,
    /// Letters and digits in one word, such as an order's number.
    Id,
    /// A word with a capital letter within a sentence.
    Name,
}

/// A fact in a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Its kind.
    pub kind: FactKind,
    /// Its place in the text, in bytes.
    pub place: Range<usize>,
    /// Its words.
    pub text: String,
}

/// The facts of `answer` that are in none of `sources`: its prompt and its references. Results of one
/// operation of arithmetic on numbers of the sources, and on results before them in the answer,
/// count as there.
///
/// ```
/// use tunebook_evaluate::{FactKind, unsupported};
/// let prompt = "Order A-7731 of 12 March costs $1,250. What do three cost?";
/// assert!(unsupported("Three times 1250 is 3750 dollars for A-7731.", &[prompt]).is_empty());
/// let [fact] = &unsupported("It arrives on 14 March.", &[prompt])[..] else { panic!("one fact") };
/// assert_eq!((fact.kind, fact.text.as_str()), (FactKind::Date, "14 March"));
/// ```
pub fn unsupported(answer: &str, sources: &[&str]) -> Vec<Fact> {
    let mut known = Known::default();
    for source in sources {
        known.learn(source);
    }
    known.numbers.extend(implied(&known.text));
    known.written = written(answer);
    let mut found = Vec::new();
    for (fact, value) in facts(answer) {
        if !known.supports(&fact, &value, answer) {
            found.push(fact);
        } else if let Value::Number(numbers) = value {
            // A result that the answer may compute with.
            known.numbers.extend(numbers);
        }
    }
    found
}

/// What a fact says.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// The numbers that the words can mean: `1.000` is one, or a thousand.
    Number(Vec<f64>),
    /// Readings of a date.
    Date(Vec<Day>),
    /// Words in lower case.
    Words(String),
}

/// A date, as far as it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Day {
    year: Option<u32>,
    month: u32,
    day: Option<u32>,
}

impl Day {
    fn agrees_with(self, other: &Self) -> bool {
        let same = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.month == other.month && same(self.day, other.day) && same(self.year, other.year)
    }
}

/// What the sources say.
#[derive(Default)]
struct Known {
    numbers: Vec<f64>,
    days: Vec<Day>,
    /// In lower case.
    text: String,
    /// Results of arithmetic that the answer writes down, whose operands are facts of their own.
    written: Vec<f64>,
}

impl Known {
    fn learn(&mut self, source: &str) {
        for (fact, value) in facts_of(source, true) {
            match value {
                Value::Number(numbers) => self.numbers.extend(numbers),
                Value::Date(days) => {
                    self.days.extend(days);
                    // Of "12.3." either may be asked for by itself.
                    self.numbers.extend(digits(&fact.text));
                }
                Value::Words(words) => self.numbers.extend(digits(&words)),
            }
        }
        self.text.push('\n');
        self.text.push_str(&source.to_lowercase());
    }

    fn supports(&self, fact: &Fact, value: &Value, answer: &str) -> bool {
        match value {
            Value::Number(numbers) => {
                let counts = !fact.text.contains(['%', '$', '€', '£', '.', ','])
                    && numbers
                        .iter()
                        .any(|number| number.abs() <= COUNTED && number.fract() == 0.0);
                counts || numbers.iter().any(|number| self.has(*number) || self.gives(*number))
            }
            Value::Date(days) => {
                let known = |day: &Day| self.days.iter().any(|known| day.agrees_with(known));
                days.iter().any(known)
            }
            Value::Words(words) => match fact.kind {
                FactKind::Name => names_of(words).all(|word| {
                    self.has_word(word) || self.has_misspelt(word) || is_written_small(answer, word)
                }),
                _ => self.text.contains(words.as_str()),
            },
        }
    }

    fn has(&self, number: f64) -> bool {
        self.numbers.iter().chain(&self.written).any(|known| is_close(*known, number))
    }

    /// Whether one operation on two of the numbers gives this one.
    fn gives(&self, number: f64) -> bool {
        let latest = &self.numbers[self.numbers.len().saturating_sub(MOST_OPERANDS)..];
        let shares =
            |a: f64, b: f64| [a * b / 100.0, a * (100.0 - b) / 100.0, a * (100.0 + b) / 100.0];
        let total: f64 = latest.iter().sum();
        is_close(total, number)
            || latest.iter().enumerate().any(|(at, &a)| {
                let units = UNITS
                    .iter()
                    .any(|&unit| is_close(a * unit, number) || is_close(a / unit, number));
                units
                    || is_close(100.0 - a, number)
                    || is_close(a + 1.0, number)
                    || is_close(a - 1.0, number)
                    || is_close(a * a, number)
                    || latest[..at].iter().any(|&b| {
                        let results = [
                            a + b,
                            a - b,
                            b - a,
                            a * b,
                            a / b,
                            b / a,
                            100.0 * a / b,
                            100.0 * b / a,
                        ];
                        let mut results =
                            results.into_iter().chain(shares(a, b)).chain(shares(b, a));
                        results.any(|result| is_close(result, number))
                    })
            })
    }

    /// Whether the sources have a word that differs in one letter, or in two that changed places.
    fn has_misspelt(&self, word: &str) -> bool {
        let mut words = self.text.split(|c: char| !c.is_alphanumeric());
        word.chars().count() >= 5
            && words.any(|other| strsim::damerau_levenshtein(word, other) <= 1)
    }

    fn has_word(&self, word: &str) -> bool {
        let mut rest = self.text.as_str();
        while let Some(at) = rest.find(word) {
            let before = rest[..at].chars().next_back();
            let after = rest[at + word.len()..].chars().next();
            // `Berliner` has `Berlin`, `Hans` is not in `hansom`.
            let begins = before.is_none_or(|c| !c.is_alphanumeric());
            let ends = after.is_none_or(|c| !c.is_alphanumeric()) || word.chars().count() > 4;
            if begins && ends {
                return true;
            }
            rest = &rest[at + word.len()..];
        }
        false
    }
}

/// Numbers are shown rounded.
fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.004 * b.abs().max(0.01) || (a - b).abs() < 0.0051 && b.fract() != 0.0
}

/// The words of a name without what stands before persons.
fn names_of(words: &str) -> impl Iterator<Item = &str> {
    words.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 1)
}

/// Whether the answer itself writes the word small elsewhere, so that it is no name.
fn is_written_small(answer: &str, word: &str) -> bool {
    answer.split(|c: char| !c.is_alphanumeric()).any(|other| other == word)
}

/// What words of time and measure say without a number.
const IMPLIED: [(&str, &[f64]); 22] = [
    ("year", &[12.0, 365.0, 52.0]),
    ("annual", &[12.0]),
    ("month", &[12.0, 30.0, 31.0, 4.0]),
    ("week", &[7.0, 5.0, 52.0]),
    ("day", &[24.0, 7.0]),
    ("hour", &[60.0, 24.0]),
    ("minute", &[60.0]),
    ("feet", &[12.0]),
    ("foot", &[12.0]),
    ("yard", &[36.0]),
    ("pound", &[16.0, 2000.0]),
    ("cent", &[100.0]),
    ("dollar", &[100.0]),
    ("%", &[100.0]),
    ("quarter", &[4.0, 25.0]),
    ("januar", &[31.0]),
    ("march", &[31.0]),
    ("december", &[31.0]),
    ("april", &[30.0]),
    ("june", &[30.0]),
    ("fourth", &[4.0, 25.0]),
    ("fifth", &[5.0, 20.0]),
];

fn implied(text: &str) -> Vec<f64> {
    let said = IMPLIED.iter().filter(|(word, _)| text.contains(word));
    said.flat_map(|(_, numbers)| numbers.iter().copied()).collect()
}

/// The results of arithmetic that a text writes down: `3 * (4 + 5)`.
fn written(text: &str) -> Vec<f64> {
    let is_sign = |c: char| c.is_ascii_digit() || " .,+-*/x×÷()%$".contains(c);
    let runs =
        text.split(|c: char| !is_sign(c)).filter(|run| run.contains(|c: char| c.is_ascii_digit()));
    runs.filter_map(|run| {
        let run: String = run.chars().filter(|c| !matches!(c, ' ' | ',' | '$')).collect();
        let run = run.trim_matches(['.', 'x', '+', '*', '/', '-']).trim_start_matches(')');
        let mut sum = Sum { rest: run };
        let value = sum.terms()?;
        (sum.rest.is_empty() && run.contains(['+', '-', '*', '/', 'x', '×', '÷', '%']))
            .then_some(value)
    })
    .collect()
}

/// Arithmetic that is read from left to right, products first.
struct Sum<'a> {
    rest: &'a str,
}

impl Sum<'_> {
    fn takes(&mut self, signs: &[char]) -> Option<char> {
        let sign = self.rest.chars().next().filter(|c| signs.contains(c))?;
        self.rest = &self.rest[sign.len_utf8()..];
        Some(sign)
    }

    fn terms(&mut self) -> Option<f64> {
        let mut value = self.factors()?;
        while let Some(sign) = self.takes(&['+', '-']) {
            let term = self.factors()?;
            value += if sign == '+' { term } else { -term };
        }
        Some(value)
    }

    fn factors(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        // `2(7)` is a product.
        while let Some(sign) = self
            .takes(&['*', 'x', '×', '/', '÷'])
            .or_else(|| self.rest.starts_with('(').then_some('*'))
        {
            let factor = self.factor()?;
            value = if matches!(sign, '/' | '÷') { value / factor } else { value * factor };
        }
        Some(value)
    }

    fn factor(&mut self) -> Option<f64> {
        let value = if self.takes(&['(']).is_some() {
            let value = self.terms()?;
            self.takes(&[')'])?;
            value
        } else {
            let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            let (digits, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
            self.rest = rest;
            digits.parse().ok()?
        };
        Some(if self.takes(&['%']).is_some() { value / 100.0 } else { value })
    }
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The names of small numbers, tens and factors.
const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] =
    ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const FACTORS: [(&str, f64); 4] =
    [("hundred", 1e2), ("thousand", 1e3), ("million", 1e6), ("billion", 1e9)];
const WORDS: [(&str, f64); 11] = [
    ("dozen", 12.0),
    ("half", 0.5),
    ("twice", 2.0),
    ("double", 2.0),
    ("doubled", 2.0),
    ("triple", 3.0),
    ("thrice", 3.0),
    ("quarter", 0.25),
    ("third", 3.0),
    ("pair", 2.0),
    ("couple", 2.0),
];

/// Words that begin with a capital letter and name nobody.
const NO_NAMES: [&str; 49] = [
    "mon",
    "tue",
    "tues",
    "wed",
    "thu",
    "thur",
    "thurs",
    "fri",
    "sat",
    "i",
    "i'm",
    "i'll",
    "i've",
    "i'd",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "english",
    "german",
    "french",
    "spanish",
    "internet",
    "ok",
    "mr",
    "mrs",
    "ms",
    "dr",
    "sir",
    "madam",
    "am",
    "pm",
    "etc",
    "pdf",
];

static URL: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(?:https?://|www\.)[^\s<>"')\]]+"#));
static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"));
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    let month = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?";
    pattern(&format!(
        r"(?i)\b(?:(?P<iy>\d{{4}})-(?P<im>\d{{1,2}})-(?P<id>\d{{1,2}})|(?P<a>\d{{1,2}})[./](?P<b>\d{{1,2}})[./](?P<ny>\d{{4}}|\d{{2}})|(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?\.?\s+(?:of\s+)?(?P<m1>{month})(?:,?\s+(?P<y1>\d{{4}}))?|(?P<m2>{month})\s+(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<y2>\d{{4}}))?|(?P<m3>{month})\s+(?P<y3>\d{{4}}))"
    ))
});
static ID: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"#\d{3,}|\b[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*\b"));
static QUANTITY: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\d+[A-Za-z]{1,3}$"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?:[$€£]\s?)?(?:\d{1,3}(?:[,.'\u{202f}\u{a0} ]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?|\.\d+)(?:[kKM]\b|\s?%)?",
    )
});
static NUMBER_WORDS: LazyLock<Regex> = LazyLock::new(|| {
    let all = SMALL.into_iter().chain(TENS).chain(FACTORS.map(|(word, _)| word));
    let all = all.chain(WORDS.map(|(word, _)| word)).collect::<Vec<_>>().join("|");
    pattern(&format!(r"(?i)\b(?:{all})(?:[- ](?:and )?(?:{all}))*s?\b"))
});
static NAME: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\b\p{Lu}[\p{L}’'-]+(?: \p{Lu}[\p{L}’'-]+)*"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is part of the program")
}

/// The facts of an answer, in the order of their places.
fn facts(text: &str) -> Vec<(Fact, Value)> {
    facts_of(text, false)
}

fn facts_of(text: &str, is_source: bool) -> Vec<(Fact, Value)> {
    let mut left = text.to_owned();
    let mut found: Vec<(Fact, Value)> = Vec::new();
    let mut take = |left: &mut String, kind: FactKind, place: Range<usize>, value: Value| {
        // Blanks of as many bytes, so that places stay.
        left.replace_range(place.clone(), &" ".repeat(place.len()));
        let fact = Fact { kind, text: text[place.clone()].trim().to_owned(), place };
        found.push((fact, value));
    };
    for (pattern, kind) in [(&URL, FactKind::Url), (&EMAIL, FactKind::Email)] {
        let places: Vec<Range<usize>> =
            pattern.find_iter(&left).map(|found| found.range()).collect();
        for place in places {
            let words = text[place.clone()].trim_end_matches(['.', ',', '!', '?', ':', ';']);
            let place = place.start..place.start + words.len();
            let words = words.trim_start_matches("https://").trim_start_matches("http://");
            take(&mut left, kind, place, Value::Words(words.trim_end_matches('/').to_lowercase()));
        }
    }
    let dates: Vec<(Range<usize>, Vec<Day>)> = DATE
        .captures_iter(&left)
        .filter_map(|parts| Some((parts.get(0)?.range(), days(&parts))))
        .filter(|(_, days)| !days.is_empty())
        .collect();
    for (mut place, days) in dates {
        // The dot of `14 March.` ends the sentence; that of `14 Mar.` may as well.
        place.end -= usize::from(text[place.clone()].ends_with('.'));
        take(&mut left, FactKind::Date, place, Value::Date(days));
    }
    let ids: Vec<Range<usize>> = ID
        .find_iter(&left)
        .filter(|found| is_id(found.as_str()))
        .map(|found| found.range())
        .collect();
    for place in ids {
        let words = text[place.clone()].trim_start_matches('#').to_lowercase();
        take(&mut left, FactKind::Id, place, Value::Words(words));
    }
    let numbers: Vec<(Range<usize>, Vec<f64>)> = NUMBER
        .find_iter(&left)
        .map(|found| (found.range(), numbers(found.as_str())))
        .filter(|(place, numbers)| !numbers.is_empty() && (is_source || !is_marker(text, place)))
        .collect();
    for (place, numbers) in numbers {
        take(&mut left, FactKind::Number, place, Value::Number(numbers));
    }
    let words: Vec<(Range<usize>, f64)> =
        NUMBER_WORDS.find_iter(&left).map(|found| (found.range(), spelt(found.as_str()))).collect();
    for (place, number) in words {
        take(&mut left, FactKind::Number, place, Value::Number(vec![number]));
    }
    let names: Vec<Range<usize>> = NAME.find_iter(&left).map(|found| found.range()).collect();
    for place in names {
        let Some(place) = without_beginning(text, place) else { continue };
        let words = text[place.clone()].to_lowercase();
        if !names_of(&words).all(|word| NO_NAMES.contains(&word)) {
            take(&mut left, FactKind::Name, place, Value::Words(words));
        }
    }
    found.sort_by_key(|(fact, _)| fact.place.start);
    found
}

/// The readings of a date.
fn days(parts: &Captures<'_>) -> Vec<Day> {
    let number = |name: &str| parts.name(name).and_then(|found| found.as_str().parse::<u32>().ok());
    let month = |name: &str| {
        // "You may 5 times": the verb.
        let word = parts.name(name).map(|found| found.as_str()).filter(|word| *word != "may")?;
        let word = word.to_lowercase();
        MONTHS.iter().zip(1..).find(|(month, _)| word.starts_with(**month)).map(|(_, at)| at)
    };
    let mut read = Vec::new();
    if let (Some(year), Some(month)) = (number("iy"), number("im")) {
        read.push(Day { year: Some(year), month, day: number("id") });
    } else if let (Some(a), Some(b)) = (number("a"), number("b")) {
        let year = number("ny").map(|year| if year < 100 { 2000 + year } else { year });
        read.extend([(a, b), (b, a)].map(|(day, month)| Day { year, month, day: Some(day) }));
    } else {
        for (month, day, year) in [
            (month("m1"), number("d1"), number("y1")),
            (month("m2"), number("d2"), number("y2")),
            (month("m3"), None, number("y3")),
        ] {
            read.extend(month.map(|month| Day { year, month, day }));
        }
    }
    read.retain(|day| {
        (1..=12).contains(&day.month) && day.day.is_none_or(|day| (1..=31).contains(&day))
    });
    read
}

/// Whether a word has both letters and digits and is neither an ordinal nor a quantity.
fn is_id(word: &str) -> bool {
    let has = |is: fn(&char) -> bool| word.chars().any(|c| is(&c));
    word.starts_with('#')
        || word.len() >= 4
            && has(char::is_ascii_digit)
            && has(char::is_ascii_alphabetic)
            && !QUANTITY.is_match(word)
            // `2x-8` is algebra.
            && !word.split('-').all(|part| {
                let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
                rest.len() <= 1 && !rest.contains(|c: char| c.is_ascii_uppercase())
            })
            // `3-day`, `24-hour`: a number and a word.
            && !word.split(['-', '_']).all(|part| {
                part.bytes().all(|byte| byte.is_ascii_digit()) || part.bytes().all(|byte| byte.is_ascii_lowercase())
            })
}

/// Whether a number at the start of a line numbers it.
fn is_marker(text: &str, place: &Range<usize>) -> bool {
    let line = text[..place.start].rsplit('\n').next().unwrap_or_default();
    let before = line.trim().to_lowercase();
    let is_first = before.is_empty() || ["step", "#", "-", "*"].contains(&before.as_str());
    is_first && text[place.end..].starts_with(['.', ')', ':'])
}

/// The numbers that digits with separators can mean.
fn numbers(text: &str) -> Vec<f64> {
    let mut digits = text.trim().trim_start_matches(['$', '€', '£']).trim();
    let factor = match digits.chars().next_back() {
        Some('k' | 'K') => 1e3,
        Some('M') => 1e6,
        _ => 1.0,
    };
    digits = digits.trim_end_matches(['k', 'K', 'M', '%']).trim();
    let plain: String = digits.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
    let comma: String = digits
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == ',')
        .collect::<String>()
        .replace(',', ".");
    let whole: String = digits.chars().filter(char::is_ascii_digit).collect();
    let mut readings: Vec<f64> =
        [plain, comma].iter().filter_map(|text| text.parse().ok()).collect();
    let separators = digits.chars().filter(|c| !c.is_ascii_digit()).count();
    let last = digits.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    if separators == 0 || last.len() == 3 {
        readings.extend(whole.parse::<f64>());
    }
    readings.iter_mut().for_each(|number| *number *= factor);
    readings.dedup();
    readings
}

/// Every run of digits.
fn digits(text: &str) -> Vec<f64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The value of number words: `twenty-five`, `two hundred and fifty thousand`.
fn spelt(text: &str) -> f64 {
    let (mut whole, mut part) = (0.0, 0.0);
    for word in text.to_lowercase().split([' ', '-']) {
        let word = if word.ends_with("ss") { word } else { word.trim_end_matches('s') };
        let place = |names: &[&str]| names.iter().position(|name| *name == word);
        if let Some(number) = place(&SMALL) {
            part += number as f64;
        } else if let Some(tens) = place(&TENS) {
            part += 10.0 * (tens + 2) as f64;
        } else if let Some((_, factor)) = FACTORS.iter().find(|(name, _)| *name == word) {
            part = f64::max(part, 1.0) * factor;
            if *factor > 100.0 {
                whole += std::mem::take(&mut part);
            }
        } else if let Some((_, value)) = WORDS.iter().find(|(name, _)| *name == word) {
            part = if part == 0.0 { *value } else { part * value };
        }
    }
    whole + part
}

/// A name without a word that begins a sentence, where every word has a capital letter.
fn without_beginning(text: &str, place: Range<usize>) -> Option<Range<usize>> {
    let before =
        text[..place.start].trim_end_matches([' ', '"', '\'', '“', '‘', '(', '*', '_', '\t']);
    let begins = before.is_empty()
        || before.ends_with(['.', '!', '?', ':', '\n', '-', '•', '>', ';', '|', ')']);
    // "Mr. Henderson" is one name.
    let titled = ["Mr.", "Mrs.", "Ms.", "Dr.", "St."].iter().any(|title| before.ends_with(title));
    // `PIN`, `ATM`: abbreviations.
    let is_short =
        |words: &str| words.chars().all(|c| !c.is_lowercase()) && words.chars().count() <= 5;
    let words = &text[place.clone()];
    let rest = match (begins && !titled, words.find(' ')) {
        (false, _) => place.clone(),
        (true, Some(first)) => place.start + first + 1..place.end,
        (true, None) => return None,
    };
    (!is_short(&text[rest.clone()])).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(answer: &str, source: &str) -> Vec<String> {
        unsupported(answer, &[source]).into_iter().map(|fact| fact.text).collect()
    }

    #[test]
    fn the_forms_of_a_number_are_one() {
        for (answer, source) in [
            ("It costs 1000.", "a thousand"),
            ("It costs 1,000 dollars.", "1000"),
            ("It costs 1.000,50 €.", "1000.5"),
            ("It is two hundred and fifty thousand.", "250k"),
            ("It takes twenty-five days.", "25"),
            ("A dozen.", "12 eggs"),
            ("Half of it", "0.5"),
            ("10 kg, then 10kg", "10 kg"),
        ] {
            assert_eq!(found(answer, source), [""; 0], "{answer} from {source}");
        }
        assert_eq!(found("It costs 1500 dollars.", "a thousand"), ["1500"]);
    }

    #[test]
    fn results_of_arithmetic_are_supported() {
        let prompt = "A shop sold 48 clips in April and half as many in May.";
        assert_eq!(found("48/2 = 24 in May, 48+24 = 72 together.", prompt), [""; 0]);
        assert_eq!(found("She sold 97 together.", prompt), ["97"]);
        assert_eq!(found("15 % off 80 is 68", "80, 15 %"), [""; 0]);
    }

    #[test]
    fn dates_agree_in_any_form() {
        for answer in
            ["12 March 2024", "March 12, 2024", "2024-03-12", "12.03.2024", "12th of March"]
        {
            assert_eq!(found(answer, "on 2024-03-12"), [""; 0], "{answer}");
        }
        assert_eq!(found("on 13 March", "on 2024-03-12"), ["13 March"]);
        assert_eq!(found("You may 5 times", "5"), [""; 0]);
    }

    #[test]
    fn addresses_ids_and_names() {
        let source = "Mail help@shop.example about order A-7731, says Anna Kovács. See https://shop.example/faq";
        let good = "Anna should write to help@shop.example about a-7731 or see shop.example/faq.";
        assert_eq!(found(good, source), [""; 0]);
        let bad = "Write to sales@shop.example about B-9921, or see https://other.example. Ask Peter Novak.";
        assert_eq!(
            found(bad, source),
            ["sales@shop.example", "B-9921", "https://other.example", "Peter Novak"]
        );
        // A sentence's first word is none, nor an abbreviation or a number of a line.
        assert_eq!(found("Please enter the PIN.\n1. Thanks\n27) Good", ""), [""; 0]);
        assert_eq!(found("Please ask Mr. Henderson.", ""), ["Henderson"]);
    }

    #[test]
    fn places_are_those_of_the_words() {
        let answer = "Für Müller: 🦀 am 14 March, 77 €, x@y.example";
        for fact in unsupported(answer, &[""]) {
            assert_eq!(answer[fact.place.clone()].trim(), fact.text);
        }
    }
}
