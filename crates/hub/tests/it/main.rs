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

use server::{Server, State};

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
