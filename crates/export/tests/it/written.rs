//! The files of a crate.

use crate::{exported, notebook, options, program};
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
    assert_eq!(notes("static NAMES: [&str; 1] = [\"a\"];"), [""; 0]);
}
