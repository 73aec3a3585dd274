//! One cache with Python's `huggingface_hub`, both ways. Runs where `TUNEBOOK_PEERS` names a Python
//! environment that has it (`tests/peers/requirements.txt`), and says so where it does not.

use std::path::Path;

use tunebook_hub::{Hub, Kind, UploadArgs, folder_files};
use tunebook_testing::Python;

use crate::server::{Server, State};
use crate::uploads::Uploads;
use crate::{NEW, OLD, serve, sha256, weights};

fn python() -> Option<Python> {
    Python::peers("huggingface_hub")
}

fn run(python: &Python, home: &Path, variables: &[(&str, &str)], script: &str) -> String {
    let mut command = python.command();
    command.args(["-c", script]).env("HF_HOME", home).env("HF_HUB_DISABLE_XET", "1");
    command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn python_finds_offline_what_we_fetched() {
    let Some(python) = python() else { return };
    let (home, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = Hub::new(home.path().join("hub")).endpoint(&server.address);
    for id in ["owner/tiny", "owner/tiny@v1"] {
        let repository = hub.open(Kind::Model, id).unwrap();
        repository.get("config.json").unwrap();
        repository.get("model.safetensors").unwrap();
    }
    let script = "
import hashlib, json, sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
for revision in ['main', 'v1', sys.argv[1] if len(sys.argv) > 1 else 'main']:
    print(json.load(open(hf_hub_download('owner/tiny', 'config.json', revision=revision)))['version'])
    print(hashlib.sha256(open(hf_hub_download('owner/tiny', 'model.safetensors', revision=revision), 'rb').read()).hexdigest())
print(snapshot_download('owner/tiny'))
report = scan_cache_dir()
print(len(report.warnings), sorted(r for repo in report.repos for revision in repo.revisions for r in revision.refs))
";
    let text = run(&python, home.path(), &[("HF_HUB_OFFLINE", "1")], script);
    let lines: Vec<&str> = text.lines().collect();
    let hash = |bytes: Vec<u8>| sha256(&bytes);
    assert_eq!(lines[..4], ["2", &hash(weights(2)), "1", &hash(weights(1))]);
    assert!(lines[6].ends_with(NEW), "{text}");
    assert_eq!(lines[7], "0 ['main', 'v1']", "no warnings, and no other branches");
}

#[test]
fn we_find_offline_what_python_fetched() {
    let Some(python) = python() else { return };
    let (home, server) = (tempfile::tempdir().unwrap(), serve());
    let script = "
from huggingface_hub import hf_hub_download
for revision in ['main', 'v1']:
    for file in ['config.json', 'model.safetensors']:
        hf_hub_download('owner/tiny', file, revision=revision)
";
    run(&python, home.path(), &[("HF_ENDPOINT", &server.address)], script);
    let hub = Hub::new(home.path().join("hub")).offline(true);
    for (id, commit, seed) in [("owner/tiny", NEW, 2), ("owner/tiny@v1", OLD, 1)] {
        let repository = hub.open(Kind::Model, id).unwrap();
        assert_eq!((repository.commit(), repository.names().len()), (commit, 2));
        assert_eq!(
            std::fs::read(repository.get("model.safetensors").unwrap()).unwrap(),
            weights(seed)
        );
    }
    // With a connection nothing but the list of files is asked for.
    let before = server.log().len();
    let hub = hub.offline(false).endpoint(&server.address);
    hub.open(Kind::Model, "owner/tiny").unwrap().get("model.safetensors").unwrap();
    assert_eq!(server.log().len(), before + 1);
}

/// The server speaks as Python's client expects, and what we send is what Python sends.
#[test]
fn python_makes_the_same_commit() {
    let Some(python) = python() else { return };
    let script = "
import sys
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo('owner/made', private=True)
head = api.model_info('owner/made', revision='main').sha
operations = [CommitOperationAdd('README.md', sys.argv[1] + '/README.md'),
              CommitOperationAdd('adapter_model.safetensors', sys.argv[1] + '/adapter_model.safetensors')]
made = api.create_commit('owner/made', operations, commit_message='Upload with tunebook', parent_commit=head)
print(made.oid)
";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), "hello\n").unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), weights(1)).unwrap();
    let serve = || {
        let uploads = Uploads { token: Some("hf_secret"), ..Default::default() };
        Server::start(State { uploads, ..Default::default() })
    };
    let (theirs, ours) = (serve(), serve());
    let script = script.replace("sys.argv[1]", &format!("{:?}", folder.path()));
    let variables = [("HF_ENDPOINT", theirs.address.as_str()), ("HF_TOKEN", "hf_secret")];
    let told = run(&python, folder.path().join("home").as_path(), &variables, &script);
    let files = folder_files(folder.path()).unwrap().0;
    let files: Vec<_> = files.into_iter().filter(|file| !file.path.starts_with("home")).collect();
    let args = UploadArgs { private: true, ..Default::default() };
    let hub = Hub::new(folder.path().join("hub")).endpoint(&ours.address).token("hf_secret");
    let uploaded = hub.upload("owner/made", &files, &args).unwrap();
    assert_eq!(told.trim(), uploaded.commit);
    let (theirs, ours) = (theirs.state.lock().unwrap(), ours.state.lock().unwrap());
    assert_eq!(theirs.uploads.lines, ours.uploads.lines);
    assert_eq!(theirs.uploads.made, ours.uploads.made);
    assert_eq!(theirs.uploads.stored, ours.uploads.stored);
}
