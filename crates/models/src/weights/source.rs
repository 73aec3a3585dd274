//! From the name that a user gives to files on disk: a path, the default model, a model in the
//! cache, or a repository of the Hugging Face hub.

use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tunebook_hub::is_repository;

use super::hub;
use super::safetensors::{INDEX, SINGLE};
use crate::error::{Error, Result};

/// The model of the tutorials and the tests.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct";
const DEFAULT_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const DEFAULT_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where a model's files lie.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// One GGUF file, which holds everything.
    Gguf(PathBuf),
    /// A folder with `config.json`, `tokenizer.json` and safetensors files, as `save_pretrained`
    /// writes it.
    Folder(PathBuf),
}

/// The folder of models on this computer: `$TUNEBOOK_CACHE/models`, else that of
/// `$XDG_CACHE_HOME/tunebook` or `~/.cache/tunebook`.
pub fn models_dir() -> PathBuf {
    let var =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("TUNEBOOK_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("tunebook")))
        .or_else(|| var("HOME").map(|home| home.join(".cache/tunebook")))
        .unwrap_or_else(|| PathBuf::from(".tunebook"))
        .join("models")
}

/// Finds the files of a model, from the hub if need be.
pub(crate) fn resolve(path: &Path) -> Result<Source> {
    let name = &*path.to_string_lossy();
    if name == DEFAULT_MODEL {
        return default_model(&models_dir());
    }
    if path.is_dir() {
        return folder(path, name);
    }
    if path.is_file() {
        return file(path);
    }
    let cached = models_dir().join(name);
    if !name.is_empty() && cached.is_dir() {
        return folder(&cached, name);
    }
    if !looks_like_a_path(name) && is_repository(name) {
        return hub::fetch(name);
    }
    Err(Error::NotFound {
        name: name.to_owned(),
        looked_for: "a GGUF file, or a folder with config.json and safetensors files".to_owned(),
        advice: format!(
            "Give the path of one of these, `{DEFAULT_MODEL}` (which `cargo xtask lab` fetches), or a repository of the Hugging Face hub as `owner/name`"
        ),
    })
}

fn default_model(models: &Path) -> Result<Source> {
    let path = models.join(DEFAULT_MODEL).join(DEFAULT_FILE);
    if !path.is_file() {
        return Err(Error::NotFound {
            name: DEFAULT_MODEL.to_owned(),
            looked_for: format!("`{}`", path.display()),
            advice: "`cargo xtask lab` fetches it".to_owned(),
        });
    }
    verify(&path, DEFAULT_SHA256)?;
    Ok(Source::Gguf(path))
}

/// Compares a file's sha256 with the known one.
pub(crate) fn verify(path: &Path, expected: &str) -> Result<()> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(Error::io(path))?;
    let bytes = std::io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == expected {
        return Ok(());
    }
    Err(Error::Checksum { path: path.to_owned(), expected: expected.to_owned(), found, bytes })
}

fn file(path: &Path) -> Result<Source> {
    if is_pickle(path) {
        return Err(Error::Pickle { path: path.to_owned() });
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let parent =
        || path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match extension.as_str() {
        "gguf" => Ok(Source::Gguf(path.to_owned())),
        "safetensors" => folder(parent(), &path.display().to_string()),
        _ => Err(Error::NotFound {
            name: path.display().to_string(),
            looked_for: "a file that ends in .gguf or .safetensors".to_owned(),
            advice: "Give a GGUF file, or a folder with config.json and safetensors files"
                .to_owned(),
        }),
    }
}

/// The model in a folder.
pub(crate) fn folder(path: &Path, name: &str) -> Result<Source> {
    if path.join(SINGLE).is_file() || path.join(INDEX).is_file() {
        return Ok(Source::Folder(path.to_owned()));
    }
    let files: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(Error::io(path))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let mut ggufs: Vec<&PathBuf> =
        files.iter().filter(|file| file.extension().is_some_and(|e| e == "gguf")).collect();
    ggufs.sort();
    match ggufs.as_slice() {
        [one] => return Ok(Source::Gguf((*one).clone())),
        [] => {}
        several => {
            let names: Vec<String> =
                several.iter().map(|file| file.display().to_string()).collect();
            return Err(Error::NotFound {
                name: name.to_owned(),
                looked_for: "one GGUF file in the folder, and found several".to_owned(),
                advice: format!("Give the path of one of them: {}", names.join(", ")),
            });
        }
    }
    if let Some(pickle) = files.iter().find(|file| is_pickle(file)) {
        return Err(Error::Pickle { path: pickle.clone() });
    }
    Err(Error::NotFound {
        name: name.to_owned(),
        looked_for: format!("`{SINGLE}`, `{INDEX}` or a .gguf file in `{}`", path.display()),
        advice: "Give the folder that `save_pretrained` wrote, or a GGUF file".to_owned(),
    })
}

pub(crate) fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    matches!(extension.as_str(), "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle")
}

/// A name that can only be meant as a path, so that a misspelt one is not looked for on the hub.
fn looks_like_a_path(name: &str) -> bool {
    let extension =
        Path::new(name).extension().unwrap_or_default().to_string_lossy().to_lowercase();
    name.starts_with(['/', '.', '~'])
        || matches!(extension.as_str(), "gguf" | "safetensors")
        || is_pickle(Path::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: impl AsRef<Path>) -> String {
        resolve(path.as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn a_misspelt_name_is_not_looked_for_on_the_hub() {
        for name in ["/no/such/model.gguf", "./model", "models/x.gguf", "SmolLM", ""] {
            let error = error(name);
            assert!(
                error.contains("no model at") && error.contains("cargo xtask lab"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn the_default_model_is_named_when_missing_or_changed() {
        let dir = tempfile::tempdir().unwrap();
        let missing = default_model(dir.path()).unwrap_err().to_string();
        assert!(
            missing.contains(DEFAULT_FILE) && missing.contains("`cargo xtask lab` fetches it"),
            "{missing}"
        );
        std::fs::create_dir(dir.path().join(DEFAULT_MODEL)).unwrap();
        std::fs::write(dir.path().join(DEFAULT_MODEL).join(DEFAULT_FILE), "GGUF").unwrap();
        let changed = default_model(dir.path()).unwrap_err().to_string();
        assert!(
            changed.contains("wrong checksum")
                && changed.contains(DEFAULT_SHA256)
                && changed.contains("4 bytes"),
            "{changed}"
        );
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let pickle = dir.path().join("pytorch_model.bin");
        std::fs::write(&pickle, "x").unwrap();
        for path in [&*pickle, dir.path()] {
            let error = error(path);
            assert!(
                error.contains("is a pickle") && error.contains("runs whatever code"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_folder_says_what_it_lacks_or_has_twice() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path();
        assert!(error(name).contains("model.safetensors.index.json"));
        std::fs::write(dir.path().join("a.gguf"), "x").unwrap();
        assert_eq!(resolve(name).unwrap(), Source::Gguf(dir.path().join("a.gguf")));
        std::fs::write(dir.path().join("b.gguf"), "x").unwrap();
        assert!(error(name).contains("a.gguf") && error(name).contains("b.gguf"));
    }
}
