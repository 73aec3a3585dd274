//! The names of repositories, revisions, commits and files. All of them become parts of paths in the
//! cache and of addresses, whoever has given them.

use tunebook_progress::is_unseen;

use crate::said::said;

/// The hub's limit.
const NAME_LETTERS: usize = 96;
const COMMIT_LETTERS: usize = 64;
const REVISION_BYTES: usize = 255;
const PART_BYTES: usize = 255;
const PATH_BYTES: usize = 1024;

/// Whether a name that is no path here means a repository of the hub: `owner/name`, with `@revision` if
/// need be. A revision that can be none is refused where the repository is opened.
///
/// ```
/// assert!(tunebook_hub::is_repository("owner/name@v1.0"));
/// assert!(!tunebook_hub::is_repository("./model") && !tunebook_hub::is_repository("a/b/c"));
/// ```
pub fn is_repository(name: &str) -> bool {
    let (repository, revision) = split_revision(name);
    let named =
        repository.split_once('/').is_some_and(|(owner, name)| is_word(owner) && is_word(name));
    named && revision != Some("")
}

/// One half of `owner/name`, by the rules of `huggingface_hub` (`validate_repo_id`). The cache writes the
/// slash as `--`, so that two repositories would be one if a name could have it.
fn is_word(word: &str) -> bool {
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    is_edge(word.chars().next())
        && is_edge(word.chars().next_back())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && word.len() <= NAME_LETTERS
        && !["--", ".."].iter().any(|pair| word.contains(pair))
        && !word.ends_with(".git")
}

/// The repository, and what stands behind the `@`.
fn split_revision(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (name, None),
    }
}

/// The repository and the revision of `owner/name@revision`; of some data sets the name alone.
///
/// # Errors
/// It is none that the hub can have.
pub(crate) fn parse(given: &str) -> Result<(&str, &str), String> {
    let (repository, revision) = split_revision(given);
    let halves: Vec<&str> = repository.split('/').collect();
    if halves.len() > 2 || !halves.iter().all(|half| is_word(half)) {
        return Err(
            "it is no name of a repository: expected `owner/name`, of letters, digits, `-`, \
                    `_` and `.`"
                .to_owned(),
        );
    }
    let revision = revision.unwrap_or("main");
    check_revision(revision)?;
    Ok((repository, revision))
}

/// By git's rules for names of branches and tags: none leads out of a folder.
///
/// # Errors
/// It is none.
pub(crate) fn check_revision(revision: &str) -> Result<(), String> {
    const FORBIDDEN: [char; 11] = ['\\', ':', '?', '*', '[', '~', '^', '<', '>', '|', '"'];
    let is_part =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let is_letter = |c: char| !is_unseen(c) && !c.is_whitespace() && !FORBIDDEN.contains(&c);
    let is_revision = revision.len() <= REVISION_BYTES
        && !["..", "@{"].iter().any(|pair| revision.contains(pair))
        && revision.split('/').all(is_part)
        && revision.chars().all(is_letter);
    match is_revision {
        true => Ok(()),
        false => Err(format!(
            "the revision `{}` can be none: expected the name of a branch or tag, a commit, or \
             `refs/pr/1`",
            said(revision, None)
        )),
    }
}

/// Whether a text can be the name of a commit. It becomes the name of a folder.
pub(crate) fn is_commit(commit: &str) -> bool {
    (1..=COMMIT_LETTERS).contains(&commit.len())
        && commit.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether a text can be the name of a file of a repository: one that cannot lead out of the folder.
pub(crate) fn is_file(name: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= PART_BYTES;
    name.len() <= PATH_BYTES
        && name.split('/').all(is_part)
        && !name.contains(|c: char| c == '\\' || is_unseen(c))
}

/// The name of a file's bytes by the header `ETag`; none where it can be no file's name. A weak one has
/// the same name, as in Python.
pub(crate) fn of_etag(header: &str) -> Option<&str> {
    let etag = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
    let is_letter =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'=');
    // Beside a file stand those by which it is fetched, by us and by Python.
    let ends = [".part", ".lock", ".incomplete"];
    let is_name = !etag.is_empty()
        && etag.len() <= PART_BYTES - ".incomplete".len()
        && !etag.starts_with('.')
        && etag.bytes().all(is_letter)
        && !ends.iter().any(|end| etag.ends_with(end));
    is_name.then_some(etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_no_repository() {
        for name in ["org/name", "org/name@v1.0", "a-b_c/d.e@refs/pr/1", "_a/b_"] {
            assert!(is_repository(name), "{name}");
        }
        for name in [
            "a/b/c", "name", "./name", "../name", "/name", "~/name", "a/b@", "a b/c", "", "me/..",
            "me/.", "../me", "me/-x", "me/x-", "me/x.", "me/a..b", "me/x.git", "a--b/c", "a/b--c",
            "a/", "/b", "a/b\n", "a/ü",
        ] {
            assert!(!is_repository(name), "{name}");
        }
        assert!(!is_repository(&format!("a/{}", "b".repeat(97))));
    }

    #[test]
    fn a_revision_leads_nowhere_else() {
        assert_eq!(parse("a/b"), Ok(("a/b", "main")));
        assert_eq!(parse("squad@v1"), Ok(("squad", "v1")));
        for revision in ["main", "refs/pr/1", "v1.0", "fix-#12", "a@b", "0123abc", "größe"] {
            assert_eq!(parse(&format!("a/b@{revision}")), Ok(("a/b", revision)));
        }
        for revision in [
            "",
            "..",
            "../x",
            "a/../b",
            "/etc/x",
            "a//b",
            "a/",
            ".x",
            "a/.x",
            "a\\b",
            "C:x",
            "a b",
            "a\nb",
            "a\u{1b}b",
            "a\u{202e}b",
            "a?b",
            "x.lock",
            "@{1}",
            "a:b",
        ] {
            let error = parse(&format!("a/b@{revision}")).unwrap_err();
            assert!(error.contains("revision") && !error.contains(['\n', '\u{1b}']), "{error}");
        }
        assert!(check_revision(&"x".repeat(256)).is_err());
        for name in ["../x", "a/b/c", "/x", "", "a/..", "a b", "a\\b"] {
            assert!(parse(name).unwrap_err().contains("expected `owner/name`"), "{name}");
        }
    }

    #[test]
    fn a_file_stays_below() {
        for name in ["a", "a/b.json", ".gitattributes", "a b/ü", "..a"] {
            assert!(is_file(name), "{name}");
        }
        for name in
            ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb", "a\0", "a\u{1b}"]
        {
            assert!(!is_file(name), "{name}");
        }
        assert!(!is_file(&"x".repeat(256)) && !is_file(&"x/".repeat(600)));
        assert!(is_commit("c0ffee") && !is_commit("") && !is_commit("../x"));
        assert!(!is_commit(&"a".repeat(400)));
    }

    #[test]
    fn an_etag_is_one_files_name() {
        assert_eq!(of_etag("\"abc\""), Some("abc"));
        assert_eq!(of_etag("W/\"abc-1\""), Some("abc-1"));
        for etag in
            ["", "\"\"", "\"a/b\"", "\"..\"", "\"x.part\"", "\"x.lock\"", "\"x y\"", "\".x\""]
        {
            assert_eq!(of_etag(etag), None, "{etag}");
        }
        assert_eq!(of_etag(&"a".repeat(250)), None);
    }
}
