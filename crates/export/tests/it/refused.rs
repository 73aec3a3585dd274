//! What a program cannot say is refused with the cell's number and the reason.

use tunebook_export::export;

use crate::{notebook, options, refusals};

#[test]
fn each_refusal_names_its_cell_its_line_and_the_reason() {
    for (cells, expected) in [
        (&["let a = 1;", "let b = ("][..], "cell 2, line 1: the code cannot be read"),
        (&["let a = 1;\nlet b = \"x"], "cell 1, line 2: the code cannot be read"),
        (&["fn f() {\n    1"], "cell 1, line 1: the code cannot be read"),
        (&["// é\n:dep rand = \"0.9\""], "cell 1, line 2: `:dep rand = \"0.9\"`"),
        (&[":clear"], "cell 1, line 1: `:clear` is a command of the kernel"),
        (&["let a = 1;", "!ls"], "cell 2, line 1: `!ls` is a command of the shell"),
        (&["%%time\n1"], "cell 1, line 1: the code cannot be read"),
        (&["extern crate rand;"], "cell 1, line 1: `extern crate rand`"),
        (
            &["struct S(u8);\nlet s = S(1);", "struct S(u16);", "s.0"],
            "cell 3, line 1: `s` of cell 1 may hold a value of the former `S`, which cell 2 defines",
        ),
        (
            &[
                "struct S(u8);\nlet mut all = Vec::new();",
                "all.push(S(1));",
                "struct S(i8);\nall.len()",
            ],
            "cell 3, line 2: `all` of cell 1 may hold",
        ),
        (
            &[
                "struct S(u8);\nfn make() -> S { S(1) }",
                "let s = make();\nlet t = (s, 1);",
                "struct S;",
                "t.1",
            ],
            "cell 4, line 1: `t` of cell 2 may hold",
        ),
        (
            &[
                "fn f() -> u8 { 1 }\nstruct S;\nimpl S { fn g(&self) -> u8 { f() } }",
                "fn f() -> u8 { 2 }",
            ],
            "cell 2, line 1: `f` is defined anew, and `impl S` of cell 1 uses it",
        ),
        (
            &[
                "struct S;",
                "impl S { fn g(&self) -> u8 { 1 } }",
                "// é\nimpl S { fn g(&self) -> u8 { 2 } }",
            ],
            "cell 3, line 2: `impl S` of cell 2 is written anew",
        ),
        (
            &[
                "struct S;\nimpl Default for S { fn default() -> S { S } }",
                "impl Default for S { fn default() -> S { panic!() } }",
            ],
            "cell 2, line 1: `impl Default for S` of cell 1 is written anew",
        ),
        (
            &["fn f() {}", "f();\nlet f = 1;", "fn f() -> u8 { 1 }"],
            "cell 3, line 1: `f` is a variable, too",
        ),
        (
            &["use a::*;\nlet t: T = make();", "struct T;", "t"],
            "cell 3, line 1: `t` of cell 1 may hold a value of the former `T`",
        ),
        (
            &["tag skip-export: let a = 1;", "a + 1"],
            "cell 2: it uses `a` of cell 1, which is left out",
        ),
        (
            &["tag exercise: fn f() {}", "let g = f;"],
            "cell 2: it uses `f` of cell 1, which is left out (`exercise`); tag this cell, too, or use --with-exercises",
        ),
        (&["tag raises-exception: let a = g()?;", "a"], "cell 1: it may fail (`raises-exception`)"),
        (
            &["tag raises-exception: f().await"],
            "cell 1, line 1: a cell tagged `raises-exception` cannot wait",
        ),
        (&["m!(return);"], "cell 1, line 1: a `return` among the arguments of a macro"),
        (
            &["tag parameters: let v: Vec<u8> = vec![];"],
            "cell 1, line 1: the parameter `v` has the type `Vec<u8>`",
        ),
        (&["tag parameters: // é\n\nf();"], "cell 1, line 3: a cell of parameters holds"),
        (
            &["tag parameters: let a: u8 = 1;", "tag injected-parameters: let a: i8 = 1;"],
            "cell 2, line 1: the parameter `a` has been of type u8",
        ),
    ] {
        let told = refusals(cells);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{cells:?}\n{told:#?}");
    }
}

#[test]
fn all_refusals_are_told_at_once() {
    let told = refusals(&["let a = ;", "1", ":restart", "let"]);
    let cells: Vec<&str> = told.iter().map(|one| &one[..6]).collect();
    assert_eq!(cells, ["cell 1", "cell 3", "cell 4"]);
}

#[test]
fn what_is_no_rust_notebook_is_refused() {
    for (text, reason) in [
        ("{", "EOF"),
        ("{}", "no `nbformat`"),
        ("{\"nbformat\": 3, \"cells\": []}", "nbformat 3, expected 4"),
        ("{\"nbformat\": 4}", "no `cells`"),
        (
            "{\"nbformat\": 4, \"cells\": [], \"metadata\": {\"kernelspec\": {\"language\": \"python\"}}}",
            "its language is python",
        ),
    ] {
        let told = export(text, &options()).unwrap_err().to_string();
        assert!(told.contains("a test.ipynb") && told.contains(reason), "{told}");
    }
}

#[test]
fn a_type_that_is_defined_anew_with_nothing_left_of_the_old_one_is_not_refused() {
    for cells in [
        &["struct S(u8);\nlet s = S(1);", "struct S(u16);\nlet s = S(2);", "s.0"][..],
        &[
            "struct S(u8);\nimpl S { fn g(&self) {} }",
            "struct S(u16);\nimpl S { fn g(&self) {} }\nS(1).g()",
        ],
        // The same once more, as when a cell is copied.
        &["struct S(u8);\nlet s = S(1);", "/// Doc.\nstruct S(u8);", "s.0"],
        &["use std::fmt::Write;\nuse std::io::Write as _;", "use std::fmt::{Debug, Write};"],
    ] {
        export(&notebook(cells), &options()).unwrap_or_else(|error| panic!("{cells:?}: {error}"));
    }
}
