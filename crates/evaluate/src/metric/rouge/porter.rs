//! The Porter stemmer with NLTK's extensions (`PorterStemmer.NLTK_EXTENSIONS`), which rouge-score
//! uses: Porter 1980, "An algorithm for suffix stripping",
//! <https://www.nltk.org/api/nltk.stem.porter.html>.

/// Words that the rules get wrong.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a word of a to z and 0 to 9.
pub(super) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let word = step_1c(step_1b(step_1a(word.to_owned())));
    step_5b(step_5a(step_4(step_3(step_2(word)))))
}

/// A suffix, its replacement, and the condition that the rest must meet.
type Rule = (&'static str, &'static str, fn(&str) -> bool);

/// The word after the first rule whose suffix it has; that rule's condition decides, no other is
/// tried.
fn apply(word: String, rules: &[Rule]) -> String {
    for (suffix, replacement, condition) in rules {
        if let Some(rest) = word.strip_suffix(suffix) {
            return if condition(rest) { format!("{rest}{replacement}") } else { word };
        }
    }
    word
}

fn always(_rest: &str) -> bool {
    true
}

fn measured(rest: &str) -> bool {
    measure(rest) > 0
}

fn long(rest: &str) -> bool {
    measure(rest) > 1
}

/// For each letter, whether it is a consonant. A y is one at the start and after a vowel.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for letter in word.bytes() {
        let flag = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        };
        flags.push(flag);
    }
    flags
}

/// How often a vowel is followed by a consonant: m in Porter's paper.
fn measure(word: &str) -> usize {
    consonants(word).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn has_vowel(word: &str) -> bool {
    consonants(word).contains(&false)
}

fn ends_double_consonant(word: &str) -> bool {
    matches!(word.as_bytes(), [.., left, right] if left == right)
        && consonants(word).last() == Some(&true)
}

/// Consonant, vowel, consonant at the end, the last not w, x or y; or a word of vowel, consonant.
fn ends_cvc(word: &str) -> bool {
    match consonants(word).as_slice() {
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        [false, true] => true,
        _ => false,
    }
}

fn step_1a(word: String) -> String {
    if word.len() == 4 && word.ends_with("ies") {
        return apply(word, &[("ies", "ie", always)]);
    }
    apply(
        word,
        &[("sses", "ss", always), ("ies", "i", always), ("ss", "ss", always), ("s", "", always)],
    )
}

fn step_1b(word: String) -> String {
    if let Some(rest) = word.strip_suffix("ied") {
        return format!("{rest}{}", if word.len() == 4 { "ie" } else { "i" });
    }
    if let Some(rest) = word.strip_suffix("eed") {
        return if measured(rest) { format!("{rest}ee") } else { word };
    }
    let rest = ["ed", "ing"].iter().find_map(|suffix| {
        word.strip_suffix(suffix).filter(|rest| has_vowel(rest)).map(str::to_owned)
    });
    let Some(rest) = rest else { return word };
    if ["at", "bl", "iz"].iter().any(|end| rest.ends_with(end)) {
        return rest + "e";
    }
    if ends_double_consonant(&rest) {
        return if rest.ends_with(['l', 's', 'z']) {
            rest
        } else {
            rest[..rest.len() - 1].to_owned()
        };
    }
    if measure(&rest) == 1 && ends_cvc(&rest) { rest + "e" } else { rest }
}

fn step_1c(word: String) -> String {
    apply(word, &[("y", "i", |rest| rest.len() > 1 && consonants(rest).last() == Some(&true))])
}

fn step_2(word: String) -> String {
    if word.strip_suffix("alli").is_some_and(measured) {
        return step_2(apply(word, &[("alli", "al", always)]));
    }
    apply(
        word,
        &[
            ("ational", "ate", measured),
            ("tional", "tion", measured),
            ("enci", "ence", measured),
            ("anci", "ance", measured),
            ("izer", "ize", measured),
            ("bli", "ble", measured),
            ("alli", "al", measured),
            ("entli", "ent", measured),
            ("eli", "e", measured),
            ("ousli", "ous", measured),
            ("ization", "ize", measured),
            ("ation", "ate", measured),
            ("ator", "ate", measured),
            ("alism", "al", measured),
            ("iveness", "ive", measured),
            ("fulness", "ful", measured),
            ("ousness", "ous", measured),
            ("aliti", "al", measured),
            ("iviti", "ive", measured),
            ("biliti", "ble", measured),
            ("fulli", "ful", measured),
            // The l counts as part of the rest, so that geology and archaeology are alike.
            ("logi", "log", |rest| measure(&format!("{rest}l")) > 0),
        ],
    )
}

fn step_3(word: String) -> String {
    apply(
        word,
        &[
            ("icate", "ic", measured),
            ("ative", "", measured),
            ("alize", "al", measured),
            ("iciti", "ic", measured),
            ("ical", "ic", measured),
            ("ful", "", measured),
            ("ness", "", measured),
        ],
    )
}

fn step_4(word: String) -> String {
    apply(
        word,
        &[
            ("al", "", long),
            ("ance", "", long),
            ("ence", "", long),
            ("er", "", long),
            ("ic", "", long),
            ("able", "", long),
            ("ible", "", long),
            ("ant", "", long),
            ("ement", "", long),
            ("ment", "", long),
            ("ent", "", long),
            ("ion", "", |rest| long(rest) && rest.ends_with(['s', 't'])),
            ("ou", "", long),
            ("ism", "", long),
            ("ate", "", long),
            ("iti", "", long),
            ("ous", "", long),
            ("ive", "", long),
            ("ize", "", long),
        ],
    )
}

fn step_5a(word: String) -> String {
    apply(
        word,
        &[("e", "", |rest| match measure(rest) {
            0 => false,
            1 => !ends_cvc(rest),
            _ => true,
        })],
    )
}

fn step_5b(word: String) -> String {
    apply(word, &[("ll", "l", |rest| measure(&format!("{rest}l")) > 1)])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn stems_equal_nltks() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/evaluate/stems.json");
        let golden = std::fs::read_to_string(golden).unwrap();
        let [stems]: [BTreeMap<String, String>; 1] = serde_json::from_str(&golden).unwrap();
        assert!(stems.len() > 3000);
        for (word, expected) in &stems {
            assert_eq!(super::stem(word), *expected, "{word}");
        }
    }
}
