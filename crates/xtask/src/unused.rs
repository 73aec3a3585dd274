//! Unused dependencies: each crate of the workspace is searched for the names of those that its
//! manifest lists.
//!
//! The search is textual. A dependency counts as used when its name stands at the beginning of a
//! path (`name::item`), in a `use`, or as a macro (`name!`). A module of the same name hides an
//! unused dependency; nothing that is used is reported.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::process;

/// Holds no code: its dependencies, and the dependency on it, are there for the features that they
/// turn on.
const HACK: &str = "workspace-hack";

/// Fails when a crate of the workspace does not use a dependency where its manifest puts it.
///
/// # Errors
/// Lists the dependencies, each with its crate.
pub(crate) fn check(root: &Path) -> Result<()> {
    let text = process::capture(
        process::cargo(root).args(["metadata", "--no-deps", "--format-version=1", "--offline"]),
        "cargo metadata",
    )?;
    let metadata: Value = serde_json::from_str(&text)
        .map_err(|error| Error::Other(format!("cargo metadata is not JSON: {error}")))?;
    let mut unused = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        unused.extend(of_package(package)?);
    }
    if unused.is_empty() {
        return Ok(());
    }
    Err(Error::Other(format!("unused dependencies:\n  {}", unused.join("\n  "))))
}

/// The unused dependencies of one package of `cargo metadata`.
fn of_package(package: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if package["name"] == HACK {
        return Ok(Vec::new());
    }
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    let folder = manifest.parent().unwrap_or(&manifest);
    let library = sources(&[folder.join("src")])?;
    let tests = sources(&[folder.join("tests"), folder.join("examples"), folder.join("benches")])?;
    let build = sources(&[folder.join("build.rs")])?;
    // Examples in the documentation compile with the development dependencies.
    let code: String = without_comments(&library);
    let everything = format!("{library}{tests}");

    let mut unused = Vec::new();
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let name = text(&dependency["name"]);
        if name == HACK {
            continue;
        }
        let identifier = match &dependency["rename"] {
            Value::String(rename) => rename.replace('-', "_"),
            _ => name.replace('-', "_"),
        };
        let fault = match dependency["kind"].as_str() {
            Some("dev") => (!uses(&everything, &identifier)).then_some("no test uses it"),
            Some("build") => (!uses(&build, &identifier)).then_some("build.rs does not use it"),
            _ if uses(&code, &identifier) => None,
            _ if uses(&everything, &identifier) => {
                Some("only tests, examples or documentation use it: a development dependency")
            }
            _ => Some("nothing uses it"),
        };
        if let Some(fault) = fault {
            unused.push(format!("{}: {name}: {fault}", text(&package["name"])));
        }
    }
    Ok(unused)
}

/// The text of all Rust files in these folders.
fn sources(paths: &[PathBuf]) -> Result<String> {
    let mut text = String::new();
    let mut left: Vec<PathBuf> = paths.to_vec();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(Error::io("read", &path))?;
            for entry in entries {
                left.push(entry.map_err(Error::io("read", &path))?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") && path.exists() {
            text.push_str(&std::fs::read_to_string(&path).map_err(Error::io("read", &path))?);
            text.push('\n');
        }
    }
    Ok(text)
}

fn without_comments(text: &str) -> String {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// Whether a text has the identifier of a crate where a crate can stand.
fn uses(text: &str, identifier: &str) -> bool {
    text.match_indices(identifier).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + identifier.len()..]);
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if before.ends_with(is_word) || after.starts_with(is_word) {
            return false;
        }
        // `other::name` is an item of another crate, `::name` is the crate itself.
        if before.strip_suffix("::").is_some_and(|path| path.ends_with(|c| is_word(c) || c == '>'))
        {
            return false;
        }
        after.starts_with("::") || after.starts_with('!') || is_in_use(before)
    })
}

/// Whether the next name is the first of a `use` or `extern crate`, alone or in a group:
/// `use {first, second`.
fn is_in_use(before: &str) -> bool {
    let after = |word: &str| before.rfind(word).map(|at| (at, at + word.len()));
    let Some((at, end)) = after("use ").max(after("extern crate ")) else { return false };
    let starts_a_word = !before[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let rest = &before[end..];
    let in_group = rest.starts_with('{') && !rest.contains("::") && !rest.contains(['}', ';']);
    starts_a_word && (rest.is_empty() || in_group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_used_where_a_crate_can_stand() {
        for text in [
            "use rand::Rng;",
            "let x = rand::random();",
            "rand!(1)",
            "pub use rand;",
            "pub use {half, rand, serde};",
            "}\n\npub(crate) use {\n    half,\n    rand,\n};",
            "use rand as r;",
            "fn f(x: ::rand::Rng)",
            "extern crate rand;",
        ] {
            assert!(uses(text, "rand"), "{text}");
        }
        for text in [
            "let rand = 1;",
            "use other::rand::Rng;",
            "use other::{rand};",
            "operand::new()",
            "rand_chacha::x()",
            "// rand",
        ] {
            assert!(!uses(text, "rand"), "{text}");
        }
    }

    #[test]
    fn a_dependency_belongs_where_it_is_used() {
        let folder = std::env::temp_dir().join(format!("tunebook-unused-{}", std::process::id()));
        for (file, text) in [
            ("src/lib.rs", "use serde::Serialize;\n/// `half::f16`\nfn f() {}\n"),
            ("tests/it/main.rs", "use gemm::gemm;\n"),
        ] {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let dependency = |name: &str, kind: Option<&str>| serde_json::json!({ "name": name, "rename": null, "kind": kind });
        let package = serde_json::json!({
            "name": "a",
            "manifest_path": folder.join("Cargo.toml"),
            "dependencies": [
                dependency("serde", None), dependency("half", None), dependency("gemm", None),
                dependency("rand-chacha", None), dependency("gemm", Some("dev")),
                dependency("insta", Some("dev")), dependency("cc", Some("build")),
                dependency(HACK, None),
            ],
        });
        let found = of_package(&package);
        std::fs::remove_dir_all(&folder).unwrap();
        let misplaced = "only tests, examples or documentation use it: a development dependency";
        let expected = [
            format!("a: half: {misplaced}"),
            format!("a: gemm: {misplaced}"),
            "a: rand-chacha: nothing uses it".to_owned(),
            "a: insta: no test uses it".to_owned(),
            "a: cc: build.rs does not use it".to_owned(),
        ];
        assert_eq!(found.unwrap(), expected);
    }
}
