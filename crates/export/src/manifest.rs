//! The manifest of an exported crate, and cargo's configuration for it.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use crate::program::Uses;
use crate::{Error, Options, folder};

/// The package's name: one that cargo takes, whatever the notebook is called.
pub(crate) fn package_name(notebook: &str) -> String {
    let stem = notebook.strip_suffix(".ipynb").unwrap_or(notebook);
    let words = stem.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut words: Vec<String> = words.map(str::to_ascii_lowercase).collect();
    // Cargo takes no letters but those of ASCII: without them two notebooks would have one name.
    if words.is_empty() || stem.contains(|c: char| !c.is_ascii() && c.is_alphanumeric()) {
        words.push(folder::sum(stem.as_bytes())[..8].to_owned());
    }
    format!("notebook-{}", words.join("-"))
}

/// The link to the checkout's folder of this name.
pub(crate) const CRATES: &str = "crates";

/// The text of `Cargo.toml`.
///
/// The crate is the root of a workspace like the checkout's: cargo names what it compiles by paths
/// from the root, profile and lints, and finds what the checkout has compiled. With the checkout as a
/// mere dependency it would write another prelude in its place: a dylib's name has no hash.
pub(crate) fn manifest(package: &str, uses: &Uses, options: &Options) -> Result<String, Error> {
    let checkout = &options.checkout;
    let mut text = format!(
        "# Written by `tunebook export` from {}.\n\n[package]\nname = {package:?}\nversion = \
         \"0.1.0\"\nedition = \"2024\"\npublish = false\n\n[dependencies]\n",
        crate::one_line(&options.notebook)
    );
    let parsed = |text: &str, file| {
        text.parse::<Table>().map_err(|error| Error::Checkout { file, reason: error.to_string() })
    };
    let root = match uses.needs_checkout() {
        true => parsed(&checkout.manifest, "Cargo.toml")?,
        false => Table::new(),
    };
    let workspace = root.get("workspace").and_then(Value::as_table);
    let versions = workspace.and_then(|table| table.get("dependencies")?.as_table());
    let wanted =
        [("tunebook", uses.tunebook), ("clap", uses.flags), ("tokio", uses.awaits || uses.tokio)];
    for (name, _) in wanted.into_iter().filter(|(_, is_used)| *is_used) {
        let version = versions.and_then(|versions| versions.get(name)).ok_or_else(|| {
            let reason = format!("[workspace.dependencies] has no `{name}`");
            Error::Checkout { file: "Cargo.toml", reason }
        })?;
        text.push_str(&format!("{name} = {version}\n"));
    }
    if !uses.tunebook {
        text.push_str("\n[workspace]\n");
        return Ok(text);
    }
    text.push_str(
        "\n# As in the checkout, to which `crates` is a link, so that what it has compiled is used.\n\
         # For a machine without the checkout put a copy in the link's place.\n[workspace]\n",
    );
    let kept = |name: &str| !["members", "exclude", "default-members"].contains(&name);
    let kept: Vec<_> = workspace.into_iter().flatten().filter(|(name, _)| kept(name)).collect();
    // A value behind a table's head would be the table's.
    let (tables, values): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(_, one)| one.is_table());
    for (name, value) in values {
        text.push_str(&format!("{name} = {value}\n"));
    }
    for (name, value) in tables {
        push_table(&mut text, &format!("workspace.{name}"), value);
    }
    if let Some(profile) = root.get("profile").and_then(|profile| profile.get("dev")) {
        let lock = parsed(&checkout.lock, "Cargo.lock")?;
        text.push_str(&profile_text(profile, &reached(&lock, uses), package));
    }
    Ok(text)
}

/// A table with a line for each of its values; one of tables (`lints`) is a table for each.
fn push_table(text: &mut String, path: &str, value: &Value) {
    let Some(table) = value.as_table() else { return };
    if path == "workspace.lints" {
        for (name, value) in table {
            push_table(text, &format!("{path}.{name}"), value);
        }
        return;
    }
    text.push_str(&format!("\n[{path}]\n"));
    for (name, value) in table {
        text.push_str(&format!("{name} = {value}\n"));
    }
}

/// The profile, without what it says of packages that the crate does not have; cargo would warn.
/// The crate's own arithmetic is checked, as it is in a cell.
fn profile_text(profile: &Value, reached: &BTreeSet<String>, package: &str) -> String {
    let mut text = "\n[profile.dev]\n".to_owned();
    let mut packages = BTreeMap::new();
    for (name, value) in profile.as_table().into_iter().flatten() {
        if name == "package" {
            packages.extend(value.as_table().into_iter().flatten());
        } else {
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
    text.push_str("\n[profile.dev.package]\n");
    for (name, value) in packages.into_iter().filter(|(name, _)| reached.contains(*name)) {
        text.push_str(&format!("{name} = {value}\n"));
    }
    text.push_str(&format!("{package} = {{ overflow-checks = true }} # as in a cell\n"));
    text
}

/// The packages that the crate depends on, by the lock file.
fn reached(lock: &Table, uses: &Uses) -> BTreeSet<String> {
    let packages = lock.get("package").and_then(Value::as_array);
    let packages: Vec<&Value> = packages.into_iter().flatten().collect();
    let mut pending = Vec::new();
    for (name, is_used) in
        [("tunebook", uses.tunebook), ("clap", uses.flags), ("tokio", uses.awaits || uses.tokio)]
    {
        if is_used {
            pending.push(name.to_owned());
        }
    }
    let mut found = BTreeSet::new();
    while let Some(name) = pending.pop() {
        if !found.insert(name.clone()) {
            continue;
        }
        let is_it = |one: &&&Value| one.get("name").and_then(Value::as_str) == Some(&name);
        for package in packages.iter().filter(is_it) {
            let dependencies = package.get("dependencies").and_then(Value::as_array);
            for dependency in dependencies.into_iter().flatten().filter_map(Value::as_str) {
                // "name", or "name version".
                pending.extend(dependency.split(' ').next().map(str::to_owned));
            }
        }
    }
    found
}

/// The text of `.cargo/config.toml`: target and flags of the checkout, and its folder of artefacts.
pub(crate) fn config(checkout: &crate::Checkout) -> Result<String, Error> {
    let file = ".cargo/config.toml";
    let table: Table = checkout
        .config
        .parse()
        .map_err(|error: toml::de::Error| Error::Checkout { file, reason: error.to_string() })?;
    let mut text =
        "# As in the checkout, so that what it has compiled is used.\n[build]\n".to_owned();
    let build = table.get("build").and_then(Value::as_table);
    for (name, value) in build.into_iter().flatten() {
        if name != "target-dir" && name != "rustflags" {
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
    if let Some(target) = &checkout.target_dir {
        text.push_str(&format!("target-dir = {}\n", Value::from(target.as_str())));
    }
    if let Some(flags) = build.and_then(|build| build.get("rustflags")) {
        // In a folder of the checkout cargo would join these to the checkout's, were they of the
        // same table: other flags, and everything would be compiled anew.
        text.push_str(&format!("\n[target.'cfg(all())']\nrustflags = {flags}\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_notebook_gives_a_name_that_cargo_takes() {
        for (notebook, package) in [
            ("00_start_here.ipynb", "notebook-00-start-here"),
            ("My Test (2).ipynb", "notebook-my-test-2"),
            ("テスト.ipynb", "notebook-8a535a3f"),
            ("größe.ipynb", "notebook-gr-e-d353a267"),
            ("...ipynb", "notebook-5ec1f7e7"),
            ("tunebook.ipynb", "notebook-tunebook"),
        ] {
            assert_eq!(package_name(notebook), package);
        }
    }
}
