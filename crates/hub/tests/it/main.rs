//! Against a server of our own that speaks the hub's interface, and against Python's
//! `huggingface_hub`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod environment;
mod fetching;
mod hostile;
mod peers;
mod server;
mod uploading;
mod uploads;

use std::path::{Path, PathBuf};

use server::{Server, State};
use sha2::{Digest, Sha256};
use tunebook_hub::{Hub, Kind};

/// Two commits.
const OLD: &str = "0123456789abcdef0123456789abcdef01234567";
const NEW: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn weights(seed: u8) -> Vec<u8> {
    (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect()
}

/// `main` is the new commit, `v1` the old one.
fn repository() -> State {
    State {
        files: [
            ((OLD, "config.json"), br#"{"version": 1}"#.to_vec()),
            ((OLD, "model.safetensors"), weights(1)),
            ((NEW, "config.json"), br#"{"version": 2}"#.to_vec()),
            ((NEW, "model.safetensors"), weights(2)),
            ((NEW, "sub/folder.json"), b"{}".to_vec()),
            ((NEW, "../../evil.json"), b"{}".to_vec()),
        ]
        .into(),
        refs: [("main", NEW), ("v1", OLD), ("refs/pr/1", OLD)].into(),
        ..Default::default()
    }
}

fn serve() -> Server {
    Server::start(repository())
}

fn read(hub: &Hub, id: &str, file: &str) -> Vec<u8> {
    std::fs::read(hub.open(Kind::Model, id).unwrap().get(file).unwrap()).unwrap()
}

/// Why a file does not come.
fn error(hub: &Hub, id: &str, file: &str) -> String {
    match hub.open(Kind::Model, id) {
        Ok(repository) => repository.get(file).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of blobs in the cache below `folder`, which it makes, and the name there of the new
/// commit's weights.
fn blob_of_weights(folder: &Path) -> (PathBuf, String) {
    let blobs = folder.join("hub/models--owner--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    (blobs, sha256(&weights(2)))
}
