//! Files that are seldom meant to be sent: links to elsewhere, secrets, rows of data, and places of this
//! computer. They are not sent until somebody says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tunebook_progress::interrupt;

use super::content::{UploadContent, UploadFile};
use super::fault::Fault;
use crate::token::Token;

/// Larger files hold weights.
const LOOKED_AT_BYTES: u64 = 16 << 20;
const SECRET_NAMES: [&str; 17] = [
    ".env",
    ".git-credentials",
    ".htpasswd",
    ".netrc",
    ".npmrc",
    ".pypirc",
    "_netrc",
    "credentials.json",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "id_rsa",
    "kaggle.json",
    "secrets.json",
    "secrets.toml",
    "secrets.yaml",
    "token",
];
const SECRET_ENDS: [&str; 8] =
    [".env", ".jks", ".kdbx", ".key", ".keystore", ".p12", ".pem", ".ppk"];
/// What rows end in, packed or not: whoever sends a model seldom means to publish what it was trained on.
const ROWS_ENDS: [&str; 8] =
    [".arrow", ".csv", ".db", ".jsonl", ".ndjson", ".parquet", ".sqlite", ".tsv"];
const PACKED_ENDS: [&str; 3] = [".gz", ".xz", ".zst"];
/// JSON in which a text that begins with a slash is a token.
const VOCABULARIES: [&str; 4] =
    ["added_tokens.json", "special_tokens_map.json", "tokenizer.json", "vocab.json"];

/// The names of such files, with the reason.
///
/// # Errors
/// A file cannot be read, or the user has stopped it.
pub(super) fn doubts(
    files: &[UploadFile],
    cache: &Path,
    token: Option<&Token>,
) -> Result<Vec<(String, String)>, Fault> {
    let cache = cache.canonicalize().ok();
    let sent: BTreeSet<PathBuf> = files
        .iter()
        .filter_map(|file| match &file.content {
            UploadContent::File(path) if !path.is_symlink() => path.canonicalize().ok(),
            _ => None,
        })
        .collect();
    let mut doubts = Vec::new();
    for file in files {
        interrupt::check().map_err(|_| Fault::Stopped)?;
        let doubt = match link(&file.content, &sent, cache.as_deref()) {
            Some(doubt) => Some(doubt),
            None => doubt(file, token)?,
        };
        doubts.extend(doubt.map(|doubt| (file.path.clone(), doubt)));
    }
    Ok(doubts)
}

/// A link is as good as what it leads to: another file that is sent, or one of the hub's cache.
fn link(content: &UploadContent, sent: &BTreeSet<PathBuf>, cache: Option<&Path>) -> Option<String> {
    let UploadContent::File(path) = content else { return None };
    if !path.is_symlink() {
        return None;
    }
    let leads_to = path.canonicalize().ok();
    let is_known = |target: &PathBuf| {
        sent.contains(target) || cache.is_some_and(|cache| target.starts_with(cache))
    };
    match leads_to.is_some_and(|target| is_known(&target)) {
        true => None,
        false => Some("a link to what is not among these files".to_owned()),
    }
}

fn doubt(file: &UploadFile, token: Option<&Token>) -> Result<Option<String>, Fault> {
    let name = file.path.rsplit('/').next().unwrap_or_default().to_lowercase();
    let is_secret = SECRET_NAMES.contains(&&*name)
        || SECRET_ENDS.iter().any(|end| name.ends_with(end))
        || name.starts_with(".env.");
    if is_secret {
        return Ok(Some("by its name a secret".to_owned()));
    }
    let unpacked = PACKED_ENDS.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    if ROWS_ENDS.iter().any(|end| unpacked.ends_with(end)) {
        return Ok(Some("by its name rows of data".to_owned()));
    }
    let failed = |error: std::io::Error| Fault::Other(format!("`{}`: {error}", file.path));
    if file.content.size().map_err(failed)? > LOOKED_AT_BYTES {
        return Ok(None);
    }
    let bytes = file.content.bytes().map_err(failed)?;
    if token.is_some_and(|token| token.is_in_bytes(&bytes)) {
        return Ok(Some("the token of this upload stands in it".to_owned()));
    }
    if find(&bytes, b"PRIVATE KEY-----").next().is_some() {
        return Ok(Some("a private key stands in it".to_owned()));
    }
    if find(&bytes, b"hf_").any(|at| is_token(&bytes[at + 3..])) {
        return Ok(Some("a token of the hub stands in it".to_owned()));
    }
    if name.ends_with(".json")
        && !VOCABULARIES.contains(&&*name)
        && let Ok(json) = serde_json::from_slice::<Value>(&bytes)
        && let Some(key) = place_in(&json, "")
    {
        return Ok(Some(format!("`{key}` is a place on a computer")));
    }
    Ok(None)
}

fn find<'a>(bytes: &'a [u8], text: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let windows = bytes.windows(text.len()).enumerate();
    windows.filter(move |(_, window)| *window == text).map(|(at, _)| at)
}

/// What follows `hf_` in a token: 34 letters and digits. Some documents have as many `x`.
fn is_token(rest: &[u8]) -> bool {
    let letters = rest.get(..30).unwrap_or_default();
    letters.iter().all(u8::is_ascii_alphanumeric)
        && letters.first().is_some_and(|first| letters.iter().any(|byte| byte != first))
}

/// The first key whose text is a path from the root of a computer.
fn place_in(json: &Value, key: &str) -> Option<String> {
    match json {
        Value::String(text) if is_place(text) => Some(key.to_owned()),
        Value::Array(values) => values.iter().find_map(|value| place_in(value, key)),
        Value::Object(fields) => fields.iter().find_map(|(key, value)| place_in(value, key)),
        _ => None,
    }
}

fn is_place(text: &str) -> bool {
    let letters: Vec<char> = text.chars().take(4).collect();
    let is_drive =
        matches!(letters[..], [drive, ':', '\\' | '/', _] if drive.is_ascii_alphabetic());
    let is_path = text.starts_with('/')
        && !text.starts_with("//")
        && text.trim_matches('/').contains('/')
        && !text.contains(['\n', ' ', '<', '{']);
    is_path || is_drive || text.starts_with("~/") || text.starts_with("file:/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<UploadFile> =
            files.iter().map(|(path, text)| UploadFile::text(path, text)).collect();
        let token = Token::new("hf_mine");
        let found = doubts(&files, Path::new("/none"), Some(&token)).unwrap();
        found.into_iter().map(|(path, why)| format!("{path}: {why}")).collect()
    }

    #[test]
    fn secrets_are_known_by_name_and_text() {
        for name in ["id_rsa", "a/prod.env", "x.PEM", ".env.local", "server.key", "a/token"] {
            assert_eq!(of(&[(name, "x")]), [format!("{name}: by its name a secret")]);
        }
        let other = format!("login hf_{}", "aB3".repeat(12));
        for text in ["a hf_mine b", "-----BEGIN RSA PRIVATE KEY-----\nx", &other] {
            assert!(of(&[("notes.txt", text)])[0].contains("stands in it"), "{text}");
        }
        let placeholder = format!("hf_{}", "x".repeat(34));
        for (name, text) in [
            ("tokenizer.json", "{\"a\": \"/home/x\"}"),
            ("id_rsa.pub", "ssh-rsa AAAA"),
            ("keys.md", placeholder.as_str()),
            ("environment.txt", "hf_hub"),
        ] {
            assert_eq!(of(&[(name, text)]), [""; 0], "{name}");
        }
    }

    #[test]
    fn rows_are_not_sent_beside_a_model() {
        for name in ["train.jsonl", "a/rows.CSV", "all.parquet", "train.jsonl.gz", "log.tsv.zst"] {
            assert_eq!(of(&[(name, "x")]), [format!("{name}: by its name rows of data")]);
        }
        assert_eq!(of(&[("vocab.txt", "x"), ("merges.txt", "x"), ("jsonl", "x")]), [""; 0]);
    }

    #[test]
    fn places_are_found_in_json() {
        let state = r#"{"step": 1, "log": [{"best_model_checkpoint": "/home/alice/run/5"}]}"#;
        assert_eq!(
            of(&[("a/trainer_state.json", state)]),
            ["a/trainer_state.json: `best_model_checkpoint` is a place on a computer"]
        );
        for text in ["C:\\\\a", "~/x", "file:///x", "/p/x"] {
            assert_eq!(of(&[("c.json", &format!("{{\"k\": \"{text}\"}}"))]).len(), 1, "{text}");
        }
        for text in ["owner/name", "/", "/>", "//x/y", "a /b/c", "/not a/path", "c:x"] {
            assert_eq!(of(&[("c.json", &format!("{{\"k\": \"{text}\"}}"))]).len(), 0, "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_what_is_sent() {
        use std::os::unix::fs::symlink;
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a.txt"), "x").unwrap();
        std::fs::write(at(".env"), "x").unwrap();
        std::fs::write(cache.path().join("blob"), "x").unwrap();
        symlink("a.txt", at("same.txt")).unwrap();
        symlink(".env", at("hidden.txt")).unwrap();
        symlink("/etc/hostname", at("out.txt")).unwrap();
        symlink("nowhere", at("broken.txt")).unwrap();
        symlink(cache.path().join("blob"), at("fetched.txt")).unwrap();
        let files = super::super::folder_files(folder.path()).unwrap().0;
        let found = doubts(&files, cache.path(), None).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["broken.txt", "hidden.txt", "out.txt"]);
    }
}
