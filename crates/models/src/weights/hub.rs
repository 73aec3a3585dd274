//! Models from the Hugging Face hub, kept in the cache that Python's `huggingface_hub` uses too.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use tunebook_progress::ProgressBar;

use super::safetensors::{INDEX, SINGLE};
use super::source::{Source, folder, is_pickle};
use crate::error::{Error, Result};

/// Files that are fetched beside the weights, where a repository has them.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Fetches what is needed of `owner/name` or `owner/name@revision`; what is in the cache is not fetched again.
pub(crate) fn fetch(name: &str) -> Result<Source> {
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    let failed = |file: &str, error: &ApiError| Error::Hub {
        repo: name.to_owned(),
        file: file.to_owned(),
        reason: format!(
            "{error}. Without a connection, give a path or a model that was fetched before; a gated model needs a token (`hf auth login`)"
        ),
    };
    let cached = Cache::from_env().repo(repo.clone());
    let api = ApiBuilder::from_env()
        .with_progress(false)
        .build()
        .map_err(|error| failed("the repository", &error))?;
    let api = api.repo(repo);
    let names: Vec<String> = match api.info() {
        Ok(info) => info.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
        Err(error) => {
            // Offline: what an earlier call fetched will do.
            return match cached.get("config.json").as_deref().and_then(Path::parent) {
                Some(snapshot) => folder(snapshot, name),
                None => Err(failed("the list of files", &error)),
            };
        }
    };
    let has = |file: &str| names.iter().any(|name| name == file);
    let get = |file: &str| -> Result<PathBuf> {
        if let Some(path) = cached.get(file) {
            return Ok(path);
        }
        download(&api, file).map_err(|error| failed(file, &error))
    };
    if !has(SINGLE) && !has(INDEX) {
        let ggufs: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
        return match ggufs.as_slice() {
            [one] => Ok(Source::Gguf(get(one)?)),
            [] => match names.iter().find(|name| is_pickle(Path::new(name))) {
                Some(pickle) => Err(Error::Pickle { path: Path::new(name).join(pickle) }),
                None => Err(Error::NotFound {
                    name: name.to_owned(),
                    looked_for: format!("`{SINGLE}`, `{INDEX}` or a .gguf file in the repository"),
                    advice: "Choose a repository that has one of them".to_owned(),
                }),
            },
            several => Err(Error::NotFound {
                name: name.to_owned(),
                looked_for: "one GGUF file in the repository, and found several".to_owned(),
                advice: format!(
                    "Download one of them and give its path: {}",
                    several.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
                ),
            }),
        };
    }
    let mut snapshot = None;
    for file in SMALL_FILES.iter().filter(|file| has(file)) {
        snapshot = get(file)?.parent().map(Path::to_owned);
    }
    if has(INDEX) {
        let index = get(INDEX)?;
        let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
        let map = super::safetensors::weight_map(&text).map_err(|reason| Error::Corrupt {
            path: index,
            at: "`weight_map`".to_owned(),
            reason,
        })?;
        let shards: std::collections::BTreeSet<&String> = map.values().collect();
        for shard in shards {
            get(shard)?;
        }
    } else {
        snapshot = get(SINGLE)?.parent().map(Path::to_owned);
    }
    match snapshot {
        Some(snapshot) => folder(&snapshot, name),
        None => Err(Error::NotFound {
            name: name.to_owned(),
            looked_for: "`config.json` in the repository".to_owned(),
            advice: "Choose a repository that `transformers` can load".to_owned(),
        }),
    }
}

fn download(api: &ApiRepo, file: &str) -> std::result::Result<PathBuf, ApiError> {
    api.download_with_progress(file, Bar(None))
}

/// Our progress bar in the shape that hf-hub asks for.
struct Bar(Option<ProgressBar>);

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        self.0 = Some(ProgressBar::new(format!("Fetching {filename}"), Some(size as u64)).unit("B"));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.0 {
            bar.advance(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish();
        }
    }
}
