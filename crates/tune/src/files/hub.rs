//! An adapter's files from the Hugging Face hub: those of an adapter alone, whatever else the
//! repository has.

use std::path::{Path, PathBuf};

use tunebook_hub::{Hub, Kind, is_repository};

use crate::error::{Error, Result};
use crate::files::{adapterhub, fingerprint, mlx, peft};

/// Where an adapter's numbers may be; the first that there is.
const TENSORS: [&str; 3] = [peft::TENSORS_FILE, adapterhub::TENSORS_FILE, mlx::TENSORS_FILE];
/// Ends of names that can only be meant as a file's.
const FILES: [&str; 5] = [".safetensors", ".gguf", ".bin", ".pt", ".json"];

/// Whether a place that is given means a repository: `owner/name` or `owner/name@revision`, and no path
/// that is there.
pub(crate) fn is_meant(place: &Path) -> bool {
    let name = place.to_str().unwrap_or_default();
    is_repository(name) && !FILES.iter().any(|end| name.ends_with(end)) && !place.exists()
}

/// The folder of an adapter's files, as [`load_adapter`](crate::Adapters::load_adapter) finds it: `place`,
/// or the folder of the cache with what was fetched, where there is no such folder and `place` is
/// `owner/name` or `owner/name@revision`. `name` is the adapter's.
///
/// # Errors
/// There is no such repository or no adapter in it, or the hub does not give it.
pub fn adapter_folder(place: &Path, name: &str) -> Result<PathBuf> {
    if is_meant(place) { fetch(place, name) } else { Ok(place.to_owned()) }
}

/// Fetches the adapter `name` of a repository, and returns the folder of its files in the cache. What
/// is in the cache is not fetched again.
///
/// # Errors
/// There is no such repository or no adapter in it, or the hub does not give it.
pub(crate) fn fetch(repository: &Path, name: &str) -> Result<PathBuf> {
    fetch_from(&Hub::from_env(), &repository.to_string_lossy(), name)
}

fn fetch_from(hub: &Hub, given: &str, name: &str) -> Result<PathBuf> {
    // It may have been meant as a path, too.
    let failed = |mut error: tunebook_hub::Error| {
        if !error.is_interruption() {
            error.reason.push_str(". And there is no folder of this name here");
        }
        Error::from(tunebook_models::Error::from(error))
    };
    let repository = hub.open(Kind::Model, given).map_err(failed)?;
    // The places of a folder, in the same order.
    let own = format!("{name}/");
    let folders = if name == "default" { ["", &own] } else { [&own, ""] };
    let within = |folder: &str, file: &str| format!("{folder}{file}");
    let found = folders.into_iter().find(|of| repository.has(&within(of, peft::CONFIG_FILE)));
    let problem = |problem: String| Error::NotOnHub { repository: given.to_owned(), problem };
    let Some(folder) = found else {
        let below: Vec<&str> = repository
            .names()
            .iter()
            .filter_map(|name| name.strip_suffix(peft::CONFIG_FILE)?.strip_suffix('/'))
            .collect();
        return Err(problem(match below[..] {
            [] => format!(
                "it has no `{}`; a whole model is loaded by `Model::load(\"{given}\", …)`",
                peft::CONFIG_FILE
            ),
            _ => format!("it has adapters of these names: {}; give one", below.join(", ")),
        }));
    };
    let tensors = TENSORS.into_iter().find(|file| repository.has(&within(folder, file)));
    let tensors = tensors.ok_or_else(|| {
        problem(format!(
            "beside its `{}` there is no `{}`; a pickle (`.bin`) is not read, as reading one runs \
             whatever program it holds",
            peft::CONFIG_FILE,
            peft::TENSORS_FILE
        ))
    })?;
    // The third is ours, and says what the adapter was trained with.
    for file in [peft::CONFIG_FILE, tensors, fingerprint::FILE] {
        let file = within(folder, file);
        if repository.has(&file) {
            repository.get(&file).map_err(failed)?;
        }
    }
    Ok(repository.folder().join(folder.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache as a download leaves it, and a hub that asks nobody.
    fn cache(files: &[(&str, &str)]) -> (tempfile::TempDir, Hub) {
        let root = tempfile::tempdir().unwrap();
        let repository = root.path().join("models--owner--name");
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
        for (name, from) in files {
            let path = repository.join("snapshots").join(COMMIT).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
            std::fs::copy(golden.join("weighted/one").join(from), path).unwrap();
        }
        let hub = Hub::new(root.path()).offline(true);
        (root, hub)
    }

    #[test]
    fn a_repository_is_meant_where_there_is_no_folder() {
        assert!(is_meant(Path::new("owner/name")) && is_meant(Path::new("owner/name@v1")));
        // A folder beside this crate's manifest, where tests run; and paths.
        for name in ["src/files", "./owner/name", "/owner/name", "out/a.safetensors", "adapter"] {
            assert!(!is_meant(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn an_adapter_is_found_where_a_folder_has_it() {
        let (config, tensors) = (peft::CONFIG_FILE, peft::TENSORS_FILE);
        let (root, hub) = cache(&[(config, config), (tensors, tensors)]);
        let folder = fetch_from(&hub, "owner/name", "support").unwrap();
        assert!(folder.starts_with(root.path()));
        peft::AdapterFiles::read(&folder).unwrap();

        let below =
            [(&*format!("support/{config}"), config), (&*format!("support/{tensors}"), tensors)];
        let (_root, hub) = cache(&below);
        let folder = fetch_from(&hub, "owner/name", "support").unwrap();
        assert!(folder.ends_with("support"), "{}", folder.display());
        peft::AdapterFiles::read(&folder).unwrap();
        let error = fetch_from(&hub, "owner/name", "other").unwrap_err().to_string();
        assert!(error.contains("`owner/name`") && error.contains("support"), "{error}");
    }

    #[test]
    fn a_repository_says_what_it_lacks() {
        let config = peft::CONFIG_FILE;
        let (_root, hub) = cache(&[(config, config)]);
        let error = fetch_from(&hub, "owner/name", "default").unwrap_err().to_string();
        assert!(error.contains("no `adapter_model.safetensors`"), "{error}");
        let (_root, hub) = cache(&[("README.md", config)]);
        let error = fetch_from(&hub, "owner/name", "default").unwrap_err().to_string();
        assert!(error.contains("Model::load(\"owner/name\""), "{error}");
        let error = fetch_from(&hub, "owner/other", "default").unwrap_err().to_string();
        assert!(error.contains("never fetched") && error.contains("no folder"), "{error}");
    }
}
