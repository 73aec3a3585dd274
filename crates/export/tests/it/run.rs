//! Exported programs are compiled, and do what the cells do.

use std::path::Path;
use std::process::{Command, Output};

use tunebook_export::Exported;

use crate::awkward::AWKWARD;
use crate::{exported, program};

/// Compiles a crate that needs nothing but the standard library.
fn compile(exported: &Exported, folder: &Path) {
    tunebook_export::folder::write(exported, "a test.ipynb", folder).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition", "2024", "-Dwarnings", "-o"])
        .arg(folder.join("program"))
        .arg(folder.join("src/main.rs"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn start(folder: &Path, how: &str) -> Output {
    Command::new(folder.join("program")).current_dir(folder).env("HOW", how).output().unwrap()
}

#[test]
fn awkward_cells_do_what_they_do_in_the_notebook() {
    let cells: Vec<&str> = AWKWARD.iter().flat_map(|(cells, _)| *cells).copied().collect();
    assert!(cells.len() >= 40);
    let expected: Vec<&str> = AWKWARD.iter().flat_map(|(_, lines)| *lines).copied().collect();
    let folder = tempfile::tempdir().unwrap();
    compile(&exported(&cells), folder.path());
    let output = start(folder.path(), "");
    let text = String::from_utf8(output.stdout).unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{told}");
    assert!(output.status.success(), "{told}");
    // What cells show is kept, too.
    let kept = std::fs::read_to_string(folder.path().join("out/a_test/cell_03.txt")).unwrap();
    assert_eq!(kept, "\"11\"\n");
}

#[test]
fn each_awkward_cell_can_be_read_alone() {
    for (cells, _) in AWKWARD {
        if cells.iter().any(|cell| cell.contains("Marked { A: 2 }") || cell.contains("geometry")) {
            continue; // of names of others
        }
        program(cells);
    }
}

#[test]
fn a_panic_and_an_error_name_their_cell() {
    let folder = tempfile::tempdir().unwrap();
    let crate_ = exported(&[
        "let how = std::env::var(\"HOW\")?;",
        "md:text",
        "if how == \"panic\" { panic!(\"boom {}\", 1) }",
        "if how == \"error\" { \"x\".parse::<u8>()?; }",
        "let Some(kept) = (how != \"return\").then_some(1) else { return; };",
        "kept",
    ]);
    compile(&crate_, folder.path());
    for (how, code, told) in [
        ("panic", 101, "cell 2 of a test.ipynb: panicked at "),
        ("panic", 101, ": boom 1\n"),
        ("error", 1, "cell 3 of a test.ipynb: invalid digit found in string\n"),
        (
            "return",
            1,
            "cell 4 of a test.ipynb: it ended before its end, and later cells need its variables: kept",
        ),
        ("well", 0, ""),
    ] {
        let output = start(folder.path(), how);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{how}: {text}");
        assert!(text.contains(told), "{how}: {text}");
    }
    let output = Command::new(folder.path().join("program")).arg("--epochs").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_cell_that_waits_gives_its_variables_on() {
    let main = program(&[
        "let mut a = f().await?;\nlet b = vec![a];",
        "let c = b;\nprintln!(\"{a}\");",
        "if a > 1 { return; }\nlet d = g().await;",
        "d",
    ]);
    assert!(
        main.contains(
            "    let (mut a, b,) = exported_notebook::block_on(async {\n    let mut a = f().await?;\n    \
             let b = vec![a];\n    \
             ::std::result::Result::<_, exported_notebook::Failed>::Ok((a, b,))\n    })?;\n"
        ),
        "{main}"
    );
    assert!(
        main.contains(
            "let ::std::option::Option::Some((d,)) = exported_notebook::block_on(async {"
        ) && main.contains("return ::std::result::Result::Ok(::std::option::Option::None); }"),
        "{main}"
    );
}

const GUARD: &str = "struct Guard(&'static str);\n\
    impl Drop for Guard { fn drop(&mut self) { println!(\"end of {}\", self.0) } }";

#[test]
fn variables_of_a_cell_that_leaves_early_live_on() {
    let folder = tempfile::tempdir().unwrap();
    let crate_ = exported(&[
        GUARD,
        "let server = Guard(\"server\");\nlet moved = Guard(\"moved\");\nif false { return; }\n\
         drop(moved);\nlet kept = 1;",
        "let other = Guard(\"other\");\nif kept == 1 { return Ok(()); }",
        "tag raises-exception: let third = Guard(\"third\");\nif kept == 2 { return; }",
        "println!(\"used {kept}\");",
    ]);
    compile(&crate_, folder.path());
    let output = start(folder.path(), "");
    let text = String::from_utf8(output.stdout).unwrap();
    // One that leaves its cell early has no variables; one that is moved ends where it is.
    assert_eq!(text.lines().collect::<Vec<_>>(), ["end of moved", "end of other", "used 1"]);
}

#[test]
fn variables_of_a_cell_that_waits_live_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut crate_ = exported(&[
        GUARD,
        "let server = Guard(\"server\");\nlet moved = Guard(\"moved\");\n\
         let mut kept = std::future::ready(1).await;\ndrop(moved);",
        "let other = Guard(\"other\");\nstd::future::ready(1).await;\nif kept == 1 { return; }",
        "kept += 1;\nprintln!(\"used {kept}\");",
    ]);
    // A runtime for futures that are ready.
    let module = crate_.files.get_mut("src/exported_notebook.rs").unwrap();
    module.push_str(
        "mod tokio { pub mod runtime {\n\
         pub struct Runtime;\nimpl Runtime {\n\
         pub fn new() -> std::io::Result<Self> { Ok(Self) }\n\
         pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {\n\
         let mut context = std::task::Context::from_waker(std::task::Waker::noop());\n\
         match std::pin::pin!(future).poll(&mut context) {\n\
         std::task::Poll::Ready(value) => value,\n\
         std::task::Poll::Pending => panic!(\"it waits\") } } } } }\n",
    );
    compile(&crate_, folder.path());
    let output = start(folder.path(), "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["end of moved", "end of other", "used 2"]);
}
