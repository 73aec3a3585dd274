//! The files of a crate.

use crate::{exported, notebook, options, program, refusals};
use tunebook_export::export;

#[test]
fn a_notebook_is_recognised() {
    let main = program(&[
        "md:# A title\n\nTwo `lines`.",
        "// First.\nuse std::fmt::Write as _;\n\n/// Doubles.\nfn double(x: i32) -> i32 {\n    2 * x // twice\n}\nlet a = double(1); // two\na",
        "",
        "md:End",
        "let s = r#\"\n  {\"#;\ns.len()",
    ]);
    let (_, cells) = main.split_once("fn notebook_cells").unwrap();
    assert_eq!(
        cells,
        "() -> ::std::result::Result<(), exported_notebook::Failed> {\n\
         \n    // %% [markdown]\n    // # A title\n    //\n    // Two `lines`.\n\
         \n    // %% [1]\n    exported_notebook::cell(1);\n    let a = double(1); // two\n    \
         (a).evcxr_display();\n\
         \n    // %% [markdown]\n    // End\n\
         \n    // %% [2]\n    exported_notebook::cell(2);\n    let s = r#\"\n  {\"#;\n    \
         (s.len()).evcxr_display();\n\
         \n    ::std::result::Result::Ok(())\n}\n"
    );
    assert!(main.contains(
        "\n// %% items of [1]\n// First.\nuse std::fmt::Write as _;\n/// Doubles.\n\
         fn double(x: i32) -> i32 {\n    2 * x // twice\n}\n"
    ));
}

#[test]
fn the_manifest_has_what_the_cells_use() {
    let plain = exported(&["1 + 1"]);
    assert_eq!(plain.package, "notebook-a-test");
    let names: Vec<&str> = plain.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["Cargo.toml", "src/exported_notebook.rs", "src/main.rs"]);
    assert!(plain.files["Cargo.toml"].ends_with("[dependencies]\n\n[workspace]\n"));

    let with_all = exported(&[
        "use tunebook::prelude::*;",
        "tag parameters: // Passes.\nlet epochs: usize = 3;\nlet name = \"a \\\"b\\\"\";",
        "tokio::time::sleep(std::time::Duration::ZERO).await;",
    ]);
    let manifest = &with_all.files["Cargo.toml"];
    manifest.parse::<toml::Table>().unwrap();
    for line in [
        "\n[dependencies]\ntunebook = { path = \"crates/prelude\" }\n",
        "[workspace]\nresolver = \"3\"\n\n[workspace.dependencies]\n",
        "\n[workspace.lints.clippy]\nall = \"warn\"\n",
        "\n[workspace.package]\nedition = \"2024\"\n",
        "clap = { default-features = false, features = [\"derive\"], version = \"4.6\" }\n",
        "tokio = { features = [\"time\"], version = \"1\" }\n",
        "[profile.dev]\nopt-level = 2\nrpath = true\n",
        "polars-lazy = { opt-level = 1 }\n",
        "clap_builder = { opt-level = 1 }\n",
        "notebook-a-test = { overflow-checks = true }",
    ] {
        assert!(manifest.contains(line), "{line}{manifest}");
    }
    assert_eq!(
        with_all.files[".cargo/config.toml"].lines().skip(1).collect::<Vec<_>>(),
        [
            "[build]",
            "target-dir = \"/target\"",
            "",
            "[target.'cfg(all())']",
            "rustflags = [\"-Cprefer-dynamic\"]",
        ]
    );
    assert!(with_all.files["Cargo.lock"].contains("polars-lazy"));
    let module = &with_all.files["src/exported_notebook.rs"];
    assert!(
        module.contains("help = \"Passes. [default: 3]\")]\n    pub epochs: Option<usize>,"),
        "{module}"
    );
    assert!(module.contains("pub use tunebook::EvcxrDisplay") && module.contains("tokio::runtime"));

    // A package that is not there would make cargo warn.
    let prelude_only = exported(&["use tunebook::prelude::*;"]);
    assert!(!prelude_only.files["Cargo.toml"].contains("clap_builder"));
}

#[test]
fn the_same_notebook_gives_the_same_bytes() {
    let cells = [
        "md:a",
        "use tunebook::*;\nfn f() {}",
        "tag parameters: let a = 1;",
        "fn f() -> u8 { 1 }\nf()",
    ];
    let text = notebook(&cells);
    let first = export(&text, &options()).unwrap();
    assert_eq!(export(&text, &options()).unwrap(), first);
}

#[test]
fn tags_leave_cells_out_and_say_so() {
    let cells = [
        "let a = 1;",
        "tag exercise: todo!(\"b\")",
        "tag solution: let b = 2;",
        "tag skip-export: :restart",
        "tag raises-exception: let c: = 1;",
        "tag raises-exception: panic!(\"d\")",
        ":timing\na",
    ];
    let without = exported(&cells);
    assert_eq!(
        without.notes,
        [
            "cell 2: left out, as it is tagged `exercise`",
            "cell 3: left out, as it is tagged `solution`",
            "cell 4: left out, as it is tagged `skip-export`",
            "cell 5: left out, as it is to fail: the code cannot be read: expected one of: `for`, \
             parentheses, `fn`, `unsafe`, `extern`, identifier, `::`, `<`, `dyn`, square brackets, \
             `*`, `&`, `!`, `impl`, `_`, lifetime",
            "cell 6: it may fail as it runs (`raises-exception`); if it is to fail as it is \
             compiled, the crate cannot be built: tag it `skip-export`",
            "cell 7: `:timing` is left out",
        ]
    );
    let main = &without.files["src/main.rs"];
    assert!(!main.contains("todo!") && !main.contains("let b"));
    // Numbers are those of a run from top to bottom.
    assert!(main.contains("exported_notebook::cell(6);\n    exported_notebook::may_fail(|| {\n"));
    let mut with = options();
    with.with_exercises = true;
    let with = export(&notebook(&cells), &with).unwrap();
    assert!(with.files["src/main.rs"].contains("let b = 2;"));
}

#[test]
fn a_static_whose_value_changes_is_noted() {
    let notes = |cell| exported(&[cell]).notes;
    assert!(
        notes("static N: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);")[0]
            .contains("the static `N` keeps its value from cell to cell")
    );
    assert_eq!(notes("thread_local! { static A: u8 = 1; static B: u8 = 2; }").len(), 2);
    assert_eq!(notes("static NAMES: [&str; WIDTH] = [\"a\"];\nconst WIDTH: usize = 1;"), [""; 0]);
    assert_eq!(notes("static SET: std::sync::OnceLock<u8> = std::sync::OnceLock::new();").len(), 1);
    // Within a function, too.
    let found = notes(
        "fn next() -> usize { static NEXT: AtomicUsize = AtomicUsize::new(0); NEXT.fetch_add(1, SeqCst) }\n\
         impl S { fn f() { thread_local! { static A: u8 = 1 } } }",
    );
    assert!(found.len() == 2 && found[0].contains("the static `NEXT` keeps"), "{found:?}");
}

#[test]
fn what_is_left_out_and_cannot_be_read_defines_nothing() {
    let notes = exported(&["tag exercise: let answer = ???;", "let answer = 1;\nanswer"]).notes;
    assert_eq!(notes.len(), 2);
    assert!(notes[1].starts_with("cell 1: taken to define nothing: the code cannot be read"));
}

#[test]
fn a_left_out_cell_that_defines_the_same_or_is_overtaken_is_no_matter() {
    for cells in [
        &[
            "use std::fmt::Write;",
            "tag solution: use std::fmt::{Debug, Write};",
            "use_it::<dyn Write>()",
        ][..],
        &["fn f() -> u8 { 1 }", "tag solution: fn f() -> u8 { 1 }", "f()"],
        &["tag exercise: fn f() -> u8 { todo!() }", "fn f() -> u8 { 1 }\nf()"],
        &[
            "struct S;\nlet mut all = vec![1];",
            "tag exercise: impl S { fn push(&self) { todo!() } }",
            "all.push(2);",
            "impl S { fn push(&self) {} }\nS.push()",
        ],
    ] {
        exported(cells);
    }
}

#[test]
fn odd_names_and_attributes_do_no_harm() {
    let mut with = options();
    with.notebook = "a\nb = 1\u{2028}.ipynb".into();
    let text = notebook(&["#![doc = \"about\"]\n/*! inner */\nlet a = 1;\na"]);
    let crate_ = export(&format!("\u{feff}{text}"), &with).unwrap();
    crate_.files["Cargo.toml"].parse::<toml::Table>().unwrap();
    let main = &crate_.files["src/main.rs"];
    syn::parse_file(main).unwrap_or_else(|error| panic!("{error}\n{main}"));
    assert!(main.starts_with("//! a b = 1 .ipynb as a program.") && main.contains("\n#![doc = "));
    assert!(!main.contains("/*!"));
}

#[test]
fn deep_expressions_are_read_up_to_a_limit() {
    let brackets = |count| format!("let x = {}1{};", "(".repeat(count), ")".repeat(count));
    for code in [
        brackets(190),
        format!("let x = {}1;", "-".repeat(4900)),
        format!("let x = 1{};", "+ 1".repeat(2400)),
        format!("let x = a{};", ".clone()".repeat(1600)),
        format!("let x = {}1{};", "vec![".repeat(190), "]".repeat(190)),
    ] {
        exported(&["let a = 1;", &code]);
    }
    for code in [brackets(3000), format!("let x = {}1;", "-".repeat(20_000))] {
        let told = refusals(&["let a = 1;", &code]);
        assert!(told[0].starts_with("cell 2, line 1: the code cannot be read: more than 200"));
    }
}

#[test]
fn a_secret_is_not_in_the_help() {
    let module = &exported(&["tag parameters: let api_token = \"sk-123\";\nlet n = 7;"]).files["src/exported_notebook.rs"];
    assert!(!module.contains("sk-123") && module.contains("[default: 7]"), "{module}");
}
