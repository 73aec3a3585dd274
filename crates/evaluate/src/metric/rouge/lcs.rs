//! Longest common subsequences of words.

use std::collections::{BTreeSet, HashMap};

/// The length of the longest common subsequence.
pub(super) fn length(reference: &[String], answer: &[String]) -> usize {
    let mut row = vec![0; answer.len() + 1];
    for word in reference {
        let mut diagonal = 0;
        for (j, other) in answer.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { row[j].max(above) };
            diagonal = above;
        }
    }
    row[answer.len()]
}

/// The number of words in the union of the subsequences that each line of the reference has in
/// common with the lines of the answer. No word counts more often than it stands in the answer.
pub(super) fn union(reference: &[Vec<String>], answer: &[Vec<String>]) -> usize {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in answer.iter().flatten() {
        *left.entry(word.as_str()).or_default() += 1;
    }
    let mut hits = 0;
    for line in reference {
        let places: BTreeSet<usize> = answer.iter().flat_map(|other| places(line, other)).collect();
        for place in places {
            if let Some(count @ 1..) = left.get_mut(line[place].as_str()) {
                *count -= 1;
                hits += 1;
            }
        }
    }
    hits
}

/// The places in the reference of one longest common subsequence: of several, the one that
/// rouge-score's walk from the end finds.
fn places(reference: &[String], answer: &[String]) -> Vec<usize> {
    let mut table = vec![vec![0_usize; answer.len() + 1]; reference.len() + 1];
    for (i, word) in reference.iter().enumerate() {
        for (j, other) in answer.iter().enumerate() {
            table[i + 1][j + 1] =
                if word == other { table[i][j] + 1 } else { table[i][j + 1].max(table[i + 1][j]) };
        }
    }
    let (mut i, mut j) = (reference.len(), answer.len());
    let mut places = Vec::new();
    while i > 0 && j > 0 {
        if reference[i - 1] == answer[j - 1] {
            places.push(i - 1);
            (i, j) = (i - 1, j - 1);
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places
}
