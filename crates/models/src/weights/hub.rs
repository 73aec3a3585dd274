//! Models from the Hugging Face hub, kept in the cache that Python's `huggingface_hub` uses too.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use tunebook_progress::ProgressBar;

use super::safetensors::{INDEX, SINGLE};
use super::source::{Source, folder, is_pickle, verify};
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
///
/// `HF_HOME` and `HF_ENDPOINT` mean what they mean in Python.
pub(crate) fn fetch(name: &str) -> Result<Source> {
    fetch_with(name, &Cache::from_env(), ApiBuilder::from_env())
}

fn fetch_with(name: &str, cache: &Cache, builder: ApiBuilder) -> Result<Source> {
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    let failed = |file: &str, error: &ApiError| Error::Hub {
        repo: name.to_owned(),
        file: file.to_owned(),
        reason: format!(
            "{error}. Without a connection, give a path or a model that was fetched before; a gated model needs a token (`hf auth login`)"
        ),
    };
    let cached = cache.repo(repo.clone());
    let api = builder.with_progress(false).build().map_err(|error| failed("the repository", &error))?;
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
        let path = download(&api, file).map_err(|error| failed(file, &error))?;
        check(&path)?;
        Ok(path)
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

/// The hub names a large file by its sha256, and the cache keeps it under that name. A file that has another one is
/// taken out of the cache, so that the next call fetches it again.
fn check(path: &Path) -> Result<()> {
    let blob = path.canonicalize().map_err(Error::io(path))?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    verify(&blob, &name).inspect_err(|_| {
        for file in [path, &blob] {
            // It is damaged anyway; the error that is returned says so.
            let _ = std::fs::remove_file(file);
        }
    })
}

/// Our progress bar in the shape that hf-hub asks for.
struct Bar(Option<ProgressBar>);

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        // Called again when the transfer itself begins.
        self.0
            .get_or_insert_with(|| ProgressBar::new(format!("Fetching {filename}"), None).unit("B"))
            .set_total(Some(size as u64));
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use sha2::{Digest, Sha256};

    use super::*;

    /// Speaks as much of the hub's interface as is asked for here, until the process ends.
    fn serve(files: HashMap<&'static str, (String, Vec<u8>)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files);
            }
        });
        address
    }

    fn answer(mut stream: TcpStream, files: &HashMap<&'static str, (String, Vec<u8>)>) {
        let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map_while(|line| line.ok().filter(|line| !line.is_empty()))
            .collect();
        let path = lines[0].split(' ').nth(1).unwrap();
        let mut send = |status: &str, headers: String, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
        };
        if path == "/api/models/owner/tiny/revision/main" {
            let siblings: Vec<_> =
                files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let info = serde_json::json!({ "siblings": siblings, "sha": "c0ffee" });
            return send(
                "200 OK",
                "Content-Type: application/json\r\n".to_owned(),
                info.to_string().as_bytes(),
            );
        }
        let Some((etag, body)) =
            path.strip_prefix("/owner/tiny/resolve/main/").and_then(|file| files.get(file))
        else {
            return send("404 Not Found", String::new(), b"");
        };
        let range = lines
            .iter()
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))
            .unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(body.len(), |to: usize| to + 1);
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Repo-Commit: c0ffee\r\nContent-Range: bytes {from}-{}/{}\r\n",
            to - 1,
            body.len()
        );
        send("206 Partial Content", headers, &body[from..to]);
    }

    fn tiny(wrong: Option<&str>) -> HashMap<&'static str, (String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/logits/llama-tied");
        ["config.json", "tokenizer.json", "tokenizer_config.json", SINGLE]
            .into_iter()
            .map(|name| {
                let mut body = std::fs::read(folder.join(name)).unwrap();
                let etag = match name {
                    SINGLE => Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect(),
                    _ => format!("etag-of-{name}"),
                };
                if wrong == Some(name) {
                    body[1000] ^= 1;
                }
                (name, (etag, body))
            })
            .collect()
    }

    fn fetch_from(endpoint: &str, cache: &Path, name: &str) -> Result<Source> {
        let cache = Cache::new(cache.join("hub"));
        fetch_with(name, &cache, ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint.to_owned()))
    }

    #[test]
    fn a_repository_is_fetched_once_and_used_offline() {
        let (dir, endpoint) = (tempfile::tempdir().unwrap(), serve(tiny(None)));
        let Source::Folder(folder) = fetch_from(&endpoint, dir.path(), "owner/tiny").unwrap() else {
            panic!("no folder")
        };
        assert!(folder.ends_with("hub/models--owner--tiny/snapshots/c0ffee"), "{}", folder.display());
        let model = crate::Model::load(folder.to_str().unwrap(), &crate::Device::Cpu).unwrap();
        assert_eq!(model.num_blocks(), 2);
        let nobody = "http://127.0.0.1:9";
        assert_eq!(fetch_from(nobody, dir.path(), "owner/tiny").unwrap(), Source::Folder(folder));
        let error = fetch_from(nobody, dir.path(), "owner/other").unwrap_err().to_string();
        assert!(
            error.contains("of `owner/other` from the hub") && error.contains("Without a connection"),
            "{error}"
        );
        let error = fetch_from(&endpoint, dir.path(), "owner/other").unwrap_err().to_string();
        assert!(error.contains("404"), "{error}");
    }

    #[test]
    fn weights_with_a_wrong_checksum_do_not_stay_in_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch_from(&serve(tiny(Some(SINGLE))), dir.path(), "owner/tiny").unwrap_err().to_string();
        assert!(error.contains("wrong checksum"), "{error}");
        fetch_from(&serve(tiny(None)), dir.path(), "owner/tiny").unwrap();
    }

    #[test]
    fn a_repository_of_pickles_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = HashMap::from([("pytorch_model.bin", ("x".to_owned(), vec![0; 4]))]);
        let error = fetch_from(&serve(files), dir.path(), "owner/tiny").unwrap_err().to_string();
        assert!(error.contains("owner/tiny/pytorch_model.bin` is a pickle"), "{error}");
    }
}
