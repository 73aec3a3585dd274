//! The names of repositories.

/// Whether a name that is no path here means a repository of the hub: `owner/name`, with `@revision` if
/// need be.
///
/// ```
/// assert!(tunebook_hub::is_repository("owner/name@v1.0"));
/// assert!(!tunebook_hub::is_repository("./model") && !tunebook_hub::is_repository("a/b/c"));
/// ```
pub fn is_repository(name: &str) -> bool {
    let (repository, revision) = split_revision(name);
    let word = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let named = repository.split_once('/').is_some_and(|(owner, name)| word(owner) && word(name));
    // What can only be meant as a path is not looked for on the hub.
    named && revision != Some("") && !name.starts_with('.')
}

/// The repository, and what stands behind the `@`.
pub(crate) fn split_revision(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_no_repository() {
        for name in ["org/name", "org/name@v1.0", "a-b_c/d.e@refs/pr/1"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["a/b/c", "name", "./name", "../name", "/name", "~/name", "a/b@", "a b/c", ""] {
            assert!(!is_repository(name), "{name}");
        }
    }
}
