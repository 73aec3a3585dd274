//! Names that may have been meant by one that nothing has.

/// Longer ones are not compared: the time grows with the square.
const LONGEST: usize = 200;

/// Of names, each with the way in which it is shown, those that are like `meant`, the nearest first and
/// at most so many: few letters differ, or one is a part of the other.
pub(crate) fn near(meant: &str, named: &[(String, String)], most: usize) -> Vec<String> {
    let meant = meant.to_lowercase();
    let mut near: Vec<(usize, &String)> = Vec::new();
    for (name, label) in named {
        let name = name.to_lowercase();
        if meant.len().max(name.len()) > LONGEST {
            continue;
        }
        let (shorter, longer) =
            if name.len() < meant.len() { (&name, &meant) } else { (&meant, &name) };
        let distance = strsim::levenshtein(shorter, longer);
        let is_part = shorter.chars().count() > 2 && longer.contains(shorter.as_str());
        if is_part || distance <= 1 + shorter.chars().count() / 4 {
            near.push((distance, label));
        }
    }
    near.sort_by_key(|(distance, _)| *distance); // of equal ones the order stays
    near.truncate(most);
    near.into_iter().map(|(_, label)| label.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_letters_or_a_part_are_near() {
        let named = ["squares", "Support v2", "support v1", "x", "noc"];
        let named: Vec<(String, String)> =
            named.map(|name| (name.to_owned(), format!("<{name}>"))).to_vec();
        for (meant, expected) in [
            ("squarez", &["<squares>"][..]),
            ("support", &["<Support v2>", "<support v1>"]),
            ("suport v1", &["<support v1>", "<Support v2>"]),
            ("the squares", &["<squares>"]),
            ("poet", &[]),
        ] {
            assert_eq!(near(meant, &named, 8), expected, "{meant}");
        }
        assert_eq!(near("support", &named, 1), ["<Support v2>"]);
        let long = "a".repeat(LONGEST + 1);
        assert!(near(&long, &[(long.clone(), long.clone())], 8).is_empty());
    }
}
