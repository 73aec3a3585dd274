//! The variables as Python has them, each in a process of its own.

use std::path::Path;
use std::process::Command;

use tunebook_hub::{Hub, Kind};

use crate::serve;

const CHILD: &str = "TUNEBOOK_TEST_HUB";
const TEST: &str = "environment::the_environment_is_respected";

#[test]
fn the_environment_is_respected() {
    if let Some(id) = std::env::var_os(CHILD) {
        let repository = Hub::from_env().open(Kind::Model, id.to_str().unwrap()).unwrap();
        println!("found {}", repository.get("config.json").unwrap().display());
        return;
    }
    let (home, server) = (tempfile::tempdir().unwrap(), serve());
    server.change(|state| state.token = Some("secret"));
    let run = |id: &str, variables: &[(&str, &Path)]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST, "--nocapture"]).env(CHILD, id);
        for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &server.address).envs(variables.iter().copied());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text
            .lines()
            .find_map(|line| line.split_once("found "))
            .map(|(_, path)| path.to_owned());
        found.ok_or_else(|| String::from_utf8(output.stderr).unwrap())
    };
    let (home, elsewhere) = (home.path(), home.path().join("elsewhere"));
    let secret = Path::new("secret");
    let refused = run("owner/tiny", &[("HF_HOME", home)]).unwrap_err();
    assert!(refused.contains("401"), "{refused}");
    let found = run("owner/tiny", &[("HF_HOME", home), ("HF_TOKEN", secret)]).unwrap();
    assert!(Path::new(&found).starts_with(home.join("hub")), "{found}");
    let found =
        run("owner/tiny", &[("HF_HOME", home), ("HF_HUB_CACHE", &elsewhere), ("HF_TOKEN", secret)])
            .unwrap();
    assert!(Path::new(&found).starts_with(&elsewhere), "{found}");
    // What `hf auth login` keeps.
    std::fs::write(home.join("token"), "secret\n").unwrap();
    run("owner/tiny@v1", &[("HF_HOME", home)]).unwrap();
    let before = server.log().len();
    run("owner/tiny", &[("HF_HOME", home), ("HF_HUB_OFFLINE", Path::new("1"))]).unwrap();
    assert_eq!(server.log().len(), before, "nobody is asked");
}
