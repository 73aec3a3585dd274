//! One set of features for each shared dependency, however packages are selected.
//!
//! `crates/workspace-hack` says what that is good for. Its dependencies are found here: the
//! prelude's build is the model; every crate of the workspace that depends on `workspace-hack` is
//! resolved alone, with its tests, and each third-party package that would then get other features
//! than in the model is listed with the model's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::process;
use crate::stamp::write_atomically;

const MODEL: &str = "tunebook";
const HACK: &str = "workspace-hack";
/// Features differ between platforms; these are the ones that are supported.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// A package as it is compiled: name, version, and for which machine.
type Package = (String, String, Side);
type Features = BTreeMap<Package, BTreeSet<String>>;

/// The machine that a package is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// The program: `[dependencies]`.
    Target,
    /// Build scripts and procedural macros: `[build-dependencies]`.
    Host,
}

/// Fails when some selection of packages would compile a shared dependency with other features than
/// the prelude.
///
/// # Errors
/// Lists the packages that diverge.
pub(crate) fn check(root: &Path) -> Result<()> {
    let diverging = diverging(root, &members(root)?, &TARGETS[..])?;
    if diverging.is_empty() {
        return Ok(());
    }
    let names: Vec<_> =
        diverging.keys().map(|(name, version, _)| format!("{name} {version}")).collect();
    Err(Error::Other(format!(
        "these dependencies would be compiled with other features in some selection of packages: {}. \
         Run `cargo xtask features` and commit crates/workspace-hack/Cargo.toml and Cargo.lock.",
        names.join(", ")
    )))
}

/// Writes the manifest of `crates/workspace-hack` anew.
///
/// # Errors
/// When cargo cannot resolve the workspace.
pub(crate) fn renew(root: &Path) -> Result<()> {
    let manifest = root.join("crates").join(HACK).join("Cargo.toml");
    let old = std::fs::read_to_string(&manifest).map_err(Error::io("read", &manifest))?;
    let head = old.split("[dependencies]").next().unwrap_or_default();
    let members = members(root)?;
    let mut listed = Features::new();
    // A package that is listed brings its own dependencies into every selection: again until
    // nothing changes.
    loop {
        write_atomically(&manifest, format!("{head}{}", dependencies(&listed)).as_bytes())?;
        let diverging = diverging(root, &members, &TARGETS)?;
        if diverging.is_empty() {
            println!("{} packages are listed in {}", listed.len(), manifest.display());
            return Ok(());
        }
        let before = listed.clone();
        for (package, features) in diverging {
            listed.entry(package).or_default().extend(features);
        }
        if listed == before {
            return Err(Error::Other(format!(
                "listing {listed:?} with the prelude's features does not unify them; a development dependency \
                 turns on more. Make it a feature in the workspace's Cargo.toml."
            )));
        }
    }
}

/// The packages that get other features than in the model, with the model's features.
fn diverging(root: &Path, members: &[String], targets: &[&str]) -> Result<Features> {
    let mut diverging = Features::new();
    for target in targets {
        let model = resolve(root, "build", MODEL, target)?;
        for member in members {
            for (package, features) in resolve(root, "test", member, target)? {
                if let Some(wanted) = model.get(&package).filter(|wanted| **wanted != features) {
                    diverging.entry(package).or_default().extend(wanted.iter().cloned());
                }
            }
        }
    }
    Ok(diverging)
}

/// The crates that share the prelude's dependencies.
fn members(root: &Path) -> Result<Vec<String>> {
    let text = process::capture(
        process::cargo(root).args(["metadata", "--no-deps", "--format-version=1"]),
        "cargo metadata",
    )?;
    let metadata = json(&text)?;
    let shares = |package: &&Value| {
        list(&package["dependencies"]).any(|dependency| dependency["name"] == HACK)
    };
    Ok(list(&metadata["packages"])
        .filter(shares)
        .filter_map(|p| p["name"].as_str().map(str::to_owned))
        .collect())
}

/// The units that cargo would compile: the features of each third-party package.
fn resolve(root: &Path, command: &str, package: &str, target: &str) -> Result<Features> {
    let text = process::capture(
        process::cargo(root)
            .args([
                command,
                "-Zunstable-options",
                "--unit-graph",
                "--package",
                package,
                "--target",
                target,
            ])
            // The unit graph is not stable yet; it is only read here, never built with.
            .env("RUSTC_BOOTSTRAP", "1"),
        "cargo's unit graph",
    )?;
    let mut features = Features::new();
    for unit in list(&json(&text)?["units"]) {
        let id = unit["pkg_id"].as_str().unwrap_or_default();
        let Some((name, version)) = id.rsplit_once('#').and_then(|(_, rest)| rest.rsplit_once('@'))
        else {
            continue;
        };
        // A build script is compiled for the host, with the features of the side that it belongs
        // to.
        let is_build_script = list(&unit["target"]["kind"]).any(|kind| kind == "custom-build");
        if !id.starts_with("registry") || is_build_script {
            continue;
        }
        let side = if unit["platform"].is_null() { Side::Host } else { Side::Target };
        let names = list(&unit["features"]).filter_map(|f| f.as_str().map(str::to_owned));
        features.entry((name.to_owned(), version.to_owned(), side)).or_default().extend(names);
    }
    Ok(features)
}

/// The two tables of the manifest.
fn dependencies(listed: &Features) -> String {
    let mut text = String::new();
    for (side, title) in [(Side::Target, "dependencies"), (Side::Host, "build-dependencies")] {
        let _ = writeln!(text, "{}[{title}]", if side == Side::Host { "\n" } else { "" });
        let of_side = || listed.iter().filter(move |((_, _, s), _)| *s == side);
        for ((name, version, _), features) in of_side() {
            let versions = of_side().filter(|((other, _, _), _)| other == name).count();
            let (key, package) = if versions > 1 {
                (format!("{name}-{}", major(version)), format!("package = \"{name}\", "))
            } else {
                (name.clone(), String::new())
            };
            let features: Vec<_> =
                features.iter().map(|feature| format!("\"{feature}\"")).collect();
            let _ = writeln!(
                text,
                "{key} = {{ {package}version = \"{version}\", default-features = false, features = [{}] }}",
                features.join(", ")
            );
        }
    }
    text
}

/// The part of a version in which two must differ to be compiled side by side: `0-16`, `2`.
fn major(version: &str) -> String {
    let mut numbers = version.split('.');
    match (numbers.next(), numbers.next()) {
        (Some("0"), Some(minor)) => format!("0-{minor}"),
        (Some(major), _) => major.to_owned(),
        _ => version.to_owned(),
    }
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| Error::Other(format!("cargo wrote something that is not JSON: {error}")))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_of_one_package_get_two_names() {
        let mut listed = Features::new();
        for (name, version, side) in [
            ("rand", "0.9.5", Side::Target),
            ("rand", "0.10.4", Side::Target),
            ("syn", "2.0.1", Side::Host),
        ] {
            listed.insert((name.into(), version.into(), side), BTreeSet::from(["std".to_owned()]));
        }
        assert_eq!(
            dependencies(&listed),
            "[dependencies]\n\
             rand-0-10 = { package = \"rand\", version = \"0.10.4\", default-features = false, features = [\"std\"] }\n\
             rand-0-9 = { package = \"rand\", version = \"0.9.5\", default-features = false, features = [\"std\"] }\n\
             \n[build-dependencies]\n\
             syn = { version = \"2.0.1\", default-features = false, features = [\"std\"] }\n"
        );
    }
}
