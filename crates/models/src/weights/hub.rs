//! Models from the Hugging Face hub: which files of a repository are needed.

use std::path::{Path, PathBuf};

use tunebook_hub::{Hub, Kind};

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

/// Fetches what is needed of `owner/name` or `owner/name@revision`; what is in the cache is not
/// fetched again.
pub(crate) fn fetch(name: &str) -> Result<Source> {
    fetch_from(&Hub::from_env(), name)
}

fn fetch_from(hub: &Hub, name: &str) -> Result<Source> {
    let repository = hub.open(Kind::Model, name)?;
    let names = repository.names();
    let get = |file: &str| -> Result<PathBuf> { Ok(repository.get(file)?) };
    if !repository.has(SINGLE) && !repository.has(INDEX) {
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
    for file in SMALL_FILES.iter().filter(|file| repository.has(file)) {
        get(file)?;
    }
    if repository.has(INDEX) {
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
        get(SINGLE)?;
    }
    folder(&repository.folder(), name)
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
            path.strip_prefix("/owner/tiny/resolve/c0ffee/").and_then(|file| files.get(file))
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
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/logits/llama-tied");
        ["config.json", "tokenizer.json", "tokenizer_config.json", SINGLE]
            .into_iter()
            .map(|name| {
                let mut body = std::fs::read(folder.join(name)).unwrap();
                let etag = match name {
                    SINGLE => {
                        Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect()
                    }
                    _ => format!("etag-of-{name}"),
                };
                if wrong == Some(name) {
                    body[1000] ^= 1;
                }
                (name, (etag, body))
            })
            .collect()
    }

    fn fetch_at(endpoint: &str, cache: &Path, name: &str) -> Result<Source> {
        fetch_from(&Hub::new(cache.join("hub")).endpoint(endpoint), name)
    }

    #[test]
    fn a_repository_is_fetched_once_and_used_offline() {
        let (dir, endpoint) = (tempfile::tempdir().unwrap(), serve(tiny(None)));
        let Source::Folder(folder) = fetch_at(&endpoint, dir.path(), "owner/tiny").unwrap() else {
            panic!("no folder")
        };
        assert!(
            folder.ends_with("hub/models--owner--tiny/snapshots/c0ffee"),
            "{}",
            folder.display()
        );
        let model = crate::Model::load(&folder, &crate::Device::Cpu).unwrap();
        assert_eq!(model.num_blocks(), 2);
        let nobody = "http://127.0.0.1:9";
        assert_eq!(fetch_at(nobody, dir.path(), "owner/tiny").unwrap(), Source::Folder(folder));
        let error = fetch_at(nobody, dir.path(), "owner/other").unwrap_err().to_string();
        assert!(
            error.contains("of `owner/other` from the hub")
                && error.contains("Without a connection"),
            "{error}"
        );
        let error = fetch_at(&endpoint, dir.path(), "owner/other").unwrap_err().to_string();
        assert!(error.contains("404"), "{error}");
    }

    #[test]
    fn weights_with_a_wrong_checksum_do_not_stay_in_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            fetch_at(&serve(tiny(Some(SINGLE))), dir.path(), "owner/tiny").unwrap_err().to_string();
        assert!(error.contains("wrong checksum"), "{error}");
        fetch_at(&serve(tiny(None)), dir.path(), "owner/tiny").unwrap();
    }

    #[test]
    fn a_repository_of_pickles_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = HashMap::from([("pytorch_model.bin", ("x".to_owned(), vec![0; 4]))]);
        let error = fetch_at(&serve(files), dir.path(), "owner/tiny").unwrap_err().to_string();
        assert!(error.contains("owner/tiny/pytorch_model.bin` is a pickle"), "{error}");
    }
}
