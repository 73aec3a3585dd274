//! A repository at a revision: its addresses at the hub, and its folder in the cache.

use crate::Kind;
use crate::endpoint::quoted;

/// `owner/name` at a branch, tag or commit. All three names are checked ([`crate::id`]).
#[derive(Clone, Debug)]
pub(crate) struct Place {
    kind: Kind,
    repository: String,
    pub(crate) revision: String,
}

impl Place {
    pub(crate) fn new(kind: Kind, repository: &str, revision: &str) -> Self {
        Self { kind, repository: repository.to_owned(), revision: revision.to_owned() }
    }

    /// The same repository at another revision.
    pub(crate) fn at(&self, revision: &str) -> Self {
        Self { revision: revision.to_owned(), ..self.clone() }
    }

    /// The name of its folder in the cache, as Python has it.
    pub(crate) fn folder(&self) -> String {
        format!("{}--{}", self.kinds(), self.repository.replace('/', "--"))
    }

    /// The address of the list of its files.
    pub(crate) fn list(&self) -> String {
        let revision = quoted(&self.revision);
        format!("/api/{}/{}/revision/{revision}", self.kinds(), self.repository)
    }

    /// The address of a file.
    pub(crate) fn file(&self, name: &str) -> String {
        let name: Vec<String> = name.split('/').map(quoted).collect();
        let above = match self.kind {
            Kind::Model => "",
            Kind::Dataset => "/datasets",
        };
        let revision = quoted(&self.revision);
        format!("{above}/{}/resolve/{revision}/{}", self.repository, name.join("/"))
    }

    fn kinds(&self) -> &'static str {
        match self.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_addresses() {
        let place = Place::new(Kind::Dataset, "owner/set", "refs/pr/1");
        assert_eq!(place.folder(), "datasets--owner--set");
        assert_eq!(place.list(), "/api/datasets/owner/set/revision/refs%2Fpr%2F1");
        let file = Place::new(Kind::Model, "a/b", "c0ffee").file("d e/f?#%.json");
        assert_eq!(file, "/a/b/resolve/c0ffee/d%20e/f%3F%23%25.json");
    }
}
