//! An upload is one commit, or an error that says what to do and leaves the branch as it was.

use serde_json::{Value, json};
use tunebook_hub::{
    Hub, UploadArgs, UploadContent, UploadFile, UploadState, Uploaded, folder_files,
};

use crate::server::{Server, State};
use crate::uploads::{Uploads, commit_name};
use crate::{sha256, weights};

const TOKEN: &str = "hf_secretSECRETsecret";

fn serve(uploads: Uploads) -> Server {
    let uploads = Uploads { token: Some(TOKEN), ..uploads };
    Server::start(State { uploads, ..Default::default() })
}

/// A server with the repository.
fn there() -> Server {
    serve(Uploads { exists: true, commits: 7, ..Default::default() })
}

fn hub(server: &Server) -> Hub {
    Hub::new("/none").endpoint(&server.address).token(TOKEN)
}

fn large(path: &str, seed: u8) -> UploadFile {
    UploadFile { path: path.to_owned(), content: UploadContent::Bytes(weights(seed).into()) }
}

fn files() -> Vec<UploadFile> {
    vec![UploadFile::text("README.md", "hello\n"), large("adapter_model.safetensors", 1)]
}

fn push(server: &Server, args: &UploadArgs) -> Result<Uploaded, String> {
    push_files(server, &files(), args)
}

fn push_files(
    server: &Server,
    files: &[UploadFile],
    args: &UploadArgs,
) -> Result<Uploaded, String> {
    let pushed = hub(server).upload("owner/made", files, args);
    // None of these tests may show the token.
    assert!(!format!("{pushed:?} {:?}", hub(server)).contains(TOKEN));
    pushed.map_err(|error| {
        assert!(!error.to_string().contains(TOKEN) && !error.to_string().contains("signature"));
        error.to_string()
    })
}

fn args() -> UploadArgs {
    UploadArgs::default()
}

fn log(server: &Server) -> Vec<String> {
    server.state.lock().unwrap().uploads.log.clone()
}

fn lines(server: &Server) -> Vec<Vec<Value>> {
    server.state.lock().unwrap().uploads.lines.clone()
}

/// The bytes that were sent to the storage, in requests.
fn puts(server: &Server) -> usize {
    log(server).iter().filter(|line| line.starts_with("PUT ")).count()
}

/// The lines of the commit that [`files`] makes.
fn expected(parent: u64) -> Vec<Value> {
    let oid = sha256(&weights(1));
    vec![
        json!({ "key": "header", "value": {
            "summary": "Upload with tunebook", "description": "", "parentCommit": commit_name(parent),
        }}),
        json!({ "key": "file", "value": {
            "content": "aGVsbG8K", "path": "README.md", "encoding": "base64",
        }}),
        json!({ "key": "lfsFile", "value": {
            "path": "adapter_model.safetensors", "algo": "sha256", "oid": oid, "size": 50_000,
        }}),
    ]
}

#[test]
fn small_and_large_files_are_one_commit() {
    let server = serve(Uploads::default());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), "hello\n").unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), weights(1)).unwrap();
    std::fs::write(folder.path().join(".env"), TOKEN).unwrap();
    let files = folder_files(folder.path()).unwrap().0;
    let private = UploadArgs { private: true, ..args() };
    let uploaded = push_files(&server, &files, &private).unwrap();
    assert!(uploaded.created);
    assert_eq!(uploaded.commit, commit_name(1));
    assert_eq!(uploaded.url, format!("{}/owner/made/commit/{}", server.address, commit_name(1)));
    let states: Vec<_> = uploaded.files.iter().map(|file| (file.bytes, file.state)).collect();
    assert_eq!(states, [(6, UploadState::Sent), (50_000, UploadState::Sent)]);
    assert_eq!(lines(&server), [expected(0)]);
    let state = server.state.lock().unwrap();
    let uploads = &state.uploads;
    let asked = json!({ "name": "made", "organization": "owner", "visibility": "private" });
    assert_eq!(uploads.made, [asked]);
    assert_eq!(uploads.stored[&sha256(&weights(1))], weights(1));
    assert!(uploads.signed);
    for line in &uploads.log {
        let storage = line.contains(" /storage/");
        assert_eq!(line.ends_with(" token"), !storage, "{line}");
    }
    assert!(uploads.log.iter().any(|line| line.contains("/verify/")), "{:#?}", uploads.log);
}

#[test]
fn what_is_there_is_not_sent_again() {
    let server = there();
    push(&server, &args()).unwrap();
    let uploaded = push(&server, &args()).unwrap();
    assert!(uploaded.files.iter().all(|file| file.state == UploadState::Unchanged));
    assert_eq!((uploaded.commit.as_str(), lines(&server).len()), (&*commit_name(8), 1));
    // The storage has it, the branch has not.
    server.change(|state| state.uploads.files.clear());
    let uploaded = push(&server, &args()).unwrap();
    assert_eq!(uploaded.files[1].state, UploadState::Stored);
    assert_eq!((puts(&server), lines(&server).len()), (1, 2));
}

#[test]
fn a_large_file_goes_in_parts() {
    let server = there();
    server.change(|state| {
        state.uploads.part_bytes = Some(20_000);
        state.uploads.refusals = vec![("/part/2", 500)];
    });
    push(&server, &args()).unwrap();
    assert_eq!(server.state.lock().unwrap().uploads.stored[&sha256(&weights(1))], weights(1));
    assert_eq!(puts(&server), 4, "the part that failed went again, alone");
    assert_eq!(lines(&server), [expected(7)]);
}

#[test]
fn a_broken_connection_is_taken_up_again() {
    let server = there();
    server.change(|state| state.uploads.cuts = 2);
    push(&server, &args()).unwrap();
    assert_eq!(lines(&server), [expected(7)]);
}

#[test]
fn a_later_call_sends_what_is_missing() {
    let server = there();
    let files = [files(), vec![large("second.safetensors", 2)]].concat();
    // The first arrives, and the second never does.
    server.change(|state| {
        let lost = ("/storage/".to_owned() + &sha256(&weights(2))).leak();
        state.uploads.refusals = vec![(lost, 503); 5];
    });
    let error = hub(&server).upload("owner/made", &files, &args()).unwrap_err();
    let text = error.to_string();
    assert!(
        error.what == "`second.safetensors`"
            && text.contains("503")
            && text.contains("have arrived are not sent again"),
        "{text}"
    );
    assert!(lines(&server).is_empty());
    let before = puts(&server);
    let uploaded = hub(&server).upload("owner/made", &files, &args()).unwrap();
    let states: Vec<UploadState> = uploaded.files.iter().map(|file| file.state).collect();
    assert_eq!(states, [UploadState::Sent, UploadState::Stored, UploadState::Sent]);
    assert_eq!(puts(&server), before + 1);
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |change: &dyn Fn(&mut Uploads), says: &[&str]| {
        let server = there();
        server.change(|state| change(&mut state.uploads));
        let error = push(&server, &args()).unwrap_err();
        for words in says {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(lines(&server).is_empty(), "{error}");
    };
    // A server that repeats the token in its words.
    let echo = |uploads: &mut Uploads| uploads.words = format!("no {TOKEN}\nhere");
    refused(
        &|uploads| {
            uploads.token = Some("hf_another");
            echo(uploads);
        },
        &["401", "does not accept the token", "settings/tokens", "no [token] here"],
    );
    refused(&|uploads| uploads.read_only = true, &["403", "`you need write access`", "only reads"]);
    let full = |uploads: &mut Uploads| uploads.refusals = vec![("/commit/", 413)];
    refused(&full, &["the commit", "413", "too large", "smaller shards"]);
    let full = |uploads: &mut Uploads| uploads.refusals = vec![("/storage/", 413)];
    refused(&full, &["`adapter_model.safetensors`", "413"]);
    let broken = |uploads: &mut Uploads| uploads.refusals = vec![("/commit/", 501); 5];
    refused(&broken, &["501", "try again later"]);
    let cut = |uploads: &mut Uploads| uploads.cuts = 100;
    refused(&cut, &["`adapter_model.safetensors`", "connection failed", "Push again"]);
    let none = there();
    none.change(|state| state.uploads.exists = false);
    let error = push(&none, &UploadArgs { create_repo: false, ..args() }).unwrap_err();
    assert!(error.contains("404") && error.contains("check the name"), "{error}");
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let server = there();
    server.change(|state| {
        state.uploads.refusals =
            vec![("/preupload/", 429), ("/revision/", 502), ("/batch", 500), ("/commit/", 429)];
    });
    push(&server, &args()).unwrap();
    assert_eq!(lines(&server), [expected(7)]);
}

#[test]
fn somebody_elses_commit_is_not_written_over() {
    let server = there();
    server.change(|state| state.uploads.somebody = true);
    let error = push(&server, &args()).unwrap_err();
    assert!(error.contains("412") && error.contains("Somebody has committed"), "{error}");
    assert!(lines(&server).is_empty());
    let parent_commit = Some(commit_name(3));
    let error = push(&server, &UploadArgs { parent_commit, ..args() }).unwrap_err();
    assert!(error.contains("412"), "{error}");
}

#[test]
fn a_lost_answer_does_not_commit_twice() {
    let server = there();
    server.change(|state| state.uploads.lost = true);
    let uploaded = push(&server, &args()).unwrap();
    assert_eq!((uploaded.commit.as_str(), lines(&server).len()), (&*commit_name(8), 1));
    // Of a pull request nobody can tell.
    server.change(|state| {
        state.uploads.files.clear();
        state.uploads.lost = true;
    });
    let error = push(&server, &UploadArgs { create_pr: true, ..args() }).unwrap_err();
    assert!(error.contains("/owner/made/discussions"), "{error}");
}

#[test]
fn a_pull_request_leaves_the_branch_alone() {
    let server = there();
    let uploaded = push(&server, &UploadArgs { create_pr: true, ..args() }).unwrap();
    let page = format!("{}/owner/made/discussions/1", server.address);
    assert_eq!(uploaded.pull_request, Some(page));
    assert_eq!(lines(&server)[0][0]["value"].get("parentCommit"), None);
    assert_eq!(server.state.lock().unwrap().uploads.commits, 7);
}

#[test]
fn what_is_to_be_private_does_not_go_to_a_public_repository() {
    let server = there();
    let error = push(&server, &UploadArgs { private: true, ..args() }).unwrap_err();
    assert!(error.contains("public") && error.contains("Nothing was sent"), "{error}");
    assert_eq!(log(&server).len(), 1);
}

#[test]
fn what_is_made_public_in_spite_of_the_question_gets_nothing() {
    let server = serve(Uploads { makes_public: true, ..Default::default() });
    let error = push(&server, &UploadArgs { private: true, ..args() }).unwrap_err();
    assert!(error.contains("it is public") && error.contains("Nothing was sent"), "{error}");
    let asked = ["GET /api/models/owner/made/revision/main", "POST /api/repos/create"];
    let expected = [asked[0], asked[1], asked[0]].map(|line| format!("{line} token"));
    assert_eq!(log(&server), expected, "no file, and no card");
}

#[test]
fn no_word_of_a_server_steers_the_screen() {
    let words = format!("no {TOKEN} \u{1b}[2J\u{1b}]0;x\u{7}\u{202e} {}", "x".repeat(100_000));
    let is_clean = |text: &str| {
        assert!(!text.contains(TOKEN), "{text}");
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
        assert!(text.len() < 1000, "{text}");
    };
    let server = there();
    server.change(|state| state.uploads.storage_words = Some(words.clone()));
    let error = push(&server, &args()).unwrap_err();
    is_clean(&error);
    assert!(error.contains("422 (`no [token] [2J"), "{error}");
    let server = there();
    server.change(|state| state.uploads.told_head = Some(words.clone()));
    let error = push(&server, &args()).unwrap_err();
    is_clean(&error);
    assert!(error.contains("the name of a commit"), "{error}");
    let server = there();
    server.change(|state| state.uploads.told = Some(words.clone()));
    let uploaded = push(&server, &UploadArgs { create_pr: true, ..args() }).unwrap();
    for text in [&uploaded.commit, &uploaded.url, uploaded.pull_request.as_ref().unwrap()] {
        is_clean(text);
    }
    // Nor is there a page of a commit that it does not name.
    server.change(|state| state.uploads.told = Some(String::new()));
    let uploaded = push(&server, &args()).unwrap();
    assert_eq!(uploaded.url, format!("{}/owner/made", server.address));
    // Nor is the password of an endpoint shown.
    let endpoint = server.address.replace("http://", "http://me:PASSWORD@");
    let hub = Hub::new("/none").endpoint(&endpoint).token("hf_other");
    let error = hub.upload("owner/made", &files(), &args()).unwrap_err().to_string();
    assert!(error.contains("settings/tokens") && !error.contains("PASSWORD"), "{error}");
    let error = Hub::new("/none").endpoint(&endpoint).upload("owner/made", &files(), &args());
    assert!(!error.unwrap_err().to_string().contains("PASSWORD"));
    assert!(!hub.page("owner/made").contains("PASSWORD"));
}

#[test]
fn what_is_seldom_meant_is_not_sent() {
    let server = there();
    let more = [
        UploadFile::text("prod.env", "KEY=1"),
        UploadFile::text("sub/notes.txt", &format!("login with {TOKEN}")),
    ];
    let files = [&files()[..], &more].concat();
    let error = push_files(&server, &files, &args()).unwrap_err();
    for expected in
        ["`prod.env` (by its name", "`sub/notes.txt` (the token", "--allow", "--exclude"]
    {
        assert!(error.contains(expected), "{error}");
    }
    assert!(log(&server).is_empty());
    let allowed = vec!["prod.env".to_owned(), "sub/notes.txt".to_owned()];
    push_files(&server, &files, &UploadArgs { allowed, ..args() }).unwrap();
    let error = push(&server, &UploadArgs { revision: "../x".to_owned(), ..args() }).unwrap_err();
    assert!(error.contains("the revision `../x`"), "{error}");
    for name in ["me/..", "../me", "me/x/y", "me/x@y"] {
        let error = hub(&server).upload(name, &files, &args()).unwrap_err().to_string();
        assert!(error.contains("expected `owner/name`"), "{name}: {error}");
    }
}

#[test]
fn a_card_that_the_hub_refuses_is_told_before_anything_is_sent() {
    let server = there();
    let files = [UploadFile::text("README.md", "---\nlicense: none-such\n---\n")];
    let error = hub(&server).upload("owner/made", &files, &args()).unwrap_err().to_string();
    assert!(error.contains("`README.md`") && error.contains("must be one of these"), "{error}");
}

#[test]
fn nothing_goes_to_another_host() {
    let (server, other) = (there(), there());
    server.change(|state| state.uploads.moved_to = Some(other.address.clone()));
    let error = push(&server, &args()).unwrap_err();
    assert!(error.contains("another host"), "{error}");
    assert!(log(&other).is_empty());
    // On the same host a repository may have another name.
    let own = server.address.clone();
    server.change(|state| state.uploads.moved_to = Some(own));
    push(&server, &args()).unwrap();
}

#[test]
fn without_a_token_nobody_is_asked() {
    let server = there();
    let fails = |hub: Hub, repo: &str| {
        let error = hub.upload(repo, &files(), &args()).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
        error
    };
    let hub = Hub::new("/none").endpoint(&server.address);
    let none = fails(hub.clone(), "owner/made");
    assert!(none.contains("needs a token") && none.contains("HF_TOKEN"), "{none}");
    let broken = fails(hub.clone().token("hf_secret\nsecond"), "owner/made");
    assert!(broken.contains("line breaks"), "{broken}");
    assert!(fails(hub.clone().token(TOKEN).offline(true), "owner/made").contains("HF_HUB_OFFLINE"));
    let name = fails(hub.token(TOKEN), "made");
    assert!(name.contains("expected `owner/name`"), "{name}");
    assert!(log(&server).is_empty());
}

/// In a process of its own: the request to stop is the process's.
#[test]
fn stop_ends_an_upload() {
    const CHILD: &str = "TUNEBOOK_TEST_STOP_UPLOAD";
    if std::env::var(CHILD).is_err() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "uploading::stop_ends_an_upload"]);
        let output = command.env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let server = there();
    // It takes the connection, and nothing else.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    server.change(|state| state.uploads.storage_at = Some(address));
    let hub = hub(&server);
    let upload = std::thread::spawn(move || hub.upload("owner/made", &files(), &args()));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(!upload.is_finished());
    tunebook_progress::interrupt::request();
    let pressed = std::time::Instant::now();
    let error = upload.join().unwrap().unwrap_err();
    assert!(pressed.elapsed() < std::time::Duration::from_secs(1), "{:?}", pressed.elapsed());
    assert!(error.is_interruption(), "{error}");
    assert!(lines(&server).is_empty());
}
