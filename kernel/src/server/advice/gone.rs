//! The variables that a notebook's reader expects and that are not there, and why.

use std::collections::HashMap;

/// Why a variable is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The cell that defines it has failed.
    NotMade,
    /// A cell has moved it.
    Moved,
    /// It went with the process.
    Lost,
    /// It lived in its cell only.
    Within,
}

/// Missing variables, with the number of the cell that is the reason.
#[derive(Debug, Default)]
pub(crate) struct Gone(HashMap<String, (Why, u32)>);

impl Gone {
    /// A cell is over. `before` and `after` are the kept variables, `defined` the names that the cell
    /// defines at its top level.
    pub(crate) fn note(
        &mut self,
        cell: u32,
        before: &[(String, String)],
        after: &[(String, String)],
        defined: &[String],
        end: End,
    ) {
        let is_there = |name: &str| after.iter().any(|(kept, _)| kept == name);
        if end != End::Worked {
            for name in defined.iter().filter(|name| !is_there(name)) {
                self.0.insert(name.clone(), (Why::NotMade, cell));
            }
        }
        let why = if end == End::Died { Why::Lost } else { Why::Moved };
        for (name, _) in before.iter().filter(|(name, _)| !is_there(name)) {
            self.0.insert(name.clone(), (why, cell));
        }
        for (name, _) in after {
            self.0.remove(name);
        }
    }

    /// A cell has variables that live in it alone.
    pub(crate) fn note_within(&mut self, cell: u32, names: impl Iterator<Item = String>) {
        self.0.extend(names.map(|name| (name, (Why::Within, cell))));
    }

    pub(super) fn why(&self, name: &str) -> Option<(Why, u32)> {
        self.0.get(name).copied()
    }
}

/// How a cell ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Worked,
    Failed,
    /// The process ended, and all variables with it.
    Died,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_variable_has_its_reason_until_it_is_there() {
        let kept = |names: &[&str]| -> Vec<(String, String)> {
            names.iter().map(|name| ((*name).to_owned(), "u8".to_owned())).collect()
        };
        let mut gone = Gone::default();
        gone.note(1, &[], &kept(&["a", "b"]), &["a".into(), "b".into()], End::Worked);
        assert_eq!(gone.why("a"), None);
        gone.note(2, &kept(&["a", "b"]), &kept(&["b"]), &[], End::Worked);
        assert_eq!(gone.why("a"), Some((Why::Moved, 2)));
        gone.note(3, &kept(&["b"]), &kept(&["b"]), &["c".into(), "b".into()], End::Failed);
        assert_eq!(gone.why("c"), Some((Why::NotMade, 3)));
        assert_eq!(gone.why("b"), None, "its old value is kept");
        gone.note(4, &kept(&["b"]), &[], &["c".into()], End::Died);
        assert_eq!(gone.why("b"), Some((Why::Lost, 4)));
        assert_eq!(gone.why("c"), Some((Why::NotMade, 4)));
        gone.note(5, &[], &kept(&["b", "c"]), &["c".into()], End::Worked);
        assert_eq!((gone.why("b"), gone.why("c")), (None, None));
        gone.note_within(6, ["d".to_owned()].into_iter());
        gone.note(6, &[], &kept(&["b"]), &["d".into()], End::Worked);
        assert_eq!(gone.why("d"), Some((Why::Within, 6)));
    }
}
