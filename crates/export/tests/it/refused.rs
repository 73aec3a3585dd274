//! What a program cannot say is refused with the cell's number and the reason.

use tunebook_export::export;

use crate::{exported, notebook, options, refusals};

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
        (
            &["fn f() -> u8 { 1 }", "tag skip-export: fn f() -> u8 { 2 }", "f()"],
            "cell 3: it uses `f` of cell 2, which is left out",
        ),
        (
            &[
                "fn f() -> u8 { 1 }\nfn g() -> u8 { f() }",
                "tag solution: fn f() -> u8 { 2 }",
                "g()",
                "fn f() -> u8 { 3 }",
            ],
            "cell 3: it uses `f` of cell 2 by way of `g`, which is left out (`solution`)",
        ),
        (
            &[
                "struct S;\ntrait D { fn name(&self) -> u8 { 1 } }\nimpl D for S {}",
                "tag solution: impl S { fn name(&self) -> u8 { 2 } }",
                "S.name()",
            ],
            "cell 3: it uses `name` of cell 2, which is left out (`solution`)",
        ),
        (
            &["struct G;", "tag exercise: impl Drop for G { fn drop(&mut self) {} }", "G;"],
            "cell 3: it uses `G` of cell 2, which is left out (`exercise`)",
        ),
        (
            &["let seed = 1;", "tag skip-export: :dep rand = \"0.9\"\n!ls\nlet seed = 2;", "seed"],
            "cell 3: it uses `seed` of cell 2, which is left out",
        ),
        (
            &[
                "macro_rules! make { ($n:ident) => { fn $n() -> u8 { 2 } } }",
                "fn foo() -> u8 { 1 }",
                "1;\nmake!(foo);\nfoo()",
            ],
            "cell 3, line 2: what `make!` defines here is gone after the cell",
        ),
        (
            &["fn notebook_cells() {}"],
            "cell 1, line 1: the program has a `notebook_cells` of its own",
        ),
        (
            &["tag parameters: let a_b = 1;\nlet a__b = 2;"],
            "cell 1, line 2: the parameters `a_b` and `a__b` have the same flag",
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
            "{\"nbformat\": 4, \"cells\": [{\"source\": \"let a = 1;\"}]}",
            "a cell has no `cell_type`",
        ),
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

#[test]
fn an_item_that_would_act_on_earlier_cells_is_refused() {
    for (cells, expected) in [
        (
            &[
                "trait T { fn foo(&self) -> i32 { 1 } }\nimpl T for i32 {}",
                "fn f() -> i32 { 5.foo() }",
                "trait T { fn foo(&self) -> i32 { 2 } }\nimpl T for i32 {}",
            ][..],
            "cell 3, line 1: the trait `T` is defined anew, and `impl T for i32` of cell 1 is for a type",
        ),
        (
            &[
                "fn k() -> i32 { 1 }\ntrait T { fn foo(&self) -> i32 { k() } }\nimpl T for i32 {}",
                "fn f() -> i32 { 5.foo() }",
                "fn k() -> i32 { 2 }",
            ],
            "cell 3, line 1: the trait `T` is defined anew",
        ),
        (
            &[
                "struct S;\ntrait D { fn name(&self) -> &str { \"trait\" } }\nimpl D for S {}",
                "S.name()",
                "impl S { fn name(&self) -> &str { \"own\" } }",
            ],
            "cell 3, line 1: `impl S` gives `name` another meaning",
        ),
        (
            &[
                "#[derive(Clone)]\nstruct S;\nfn make() -> S { S }",
                "let s = make();\nlet t = s.clone();",
                "1;\nimpl S { fn clone(&self) -> u8 { 1 } }",
            ],
            "cell 3, line 2: `impl S` gives `clone` another meaning",
        ),
        (
            &[
                "#[derive(Debug)]\nstruct S;\nS",
                "impl S { fn evcxr_display(&self) { println!(\"own\") } }",
            ],
            "cell 2, line 1: `impl S` gives `evcxr_display` another meaning",
        ),
        (
            &[
                "trait B { fn len(self) -> usize; }",
                "vec![1].len()",
                "impl B for Vec<i32> { fn len(self) -> usize { 7 } }",
            ],
            "cell 3, line 1: `impl B for Vec < i32 >` gives `len` another meaning",
        ),
        (
            &[
                "struct S;\nimpl S { fn f(&self, k: u8) -> u8 { match k { limit => 1 } } }",
                "const limit: u8 = 3;",
            ],
            "cell 2, line 1: `limit` is defined anew, and `impl S` of cell 1 uses it",
        ),
        (
            &[
                "struct S;\nimpl S { fn f(&self) -> usize { vec![1].len() } }",
                "trait B { fn len(self) -> usize; }\n\
                 impl B for Vec<i32> { fn len(self) -> usize { 7 } }",
            ],
            "cell 2, line 1: `len` is defined anew, and `impl S` of cell 1 uses it",
        ),
        (
            &["struct G(i32);", "drop(G(1));", "impl Drop for G { fn drop(&mut self) {} }"],
            "cell 3, line 1: `impl Drop for G` would act on values that earlier cells have dropped",
        ),
    ] {
        let told = refusals(cells);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{cells:?}\n{told:#?}");
    }
}

#[test]
fn an_impl_that_no_earlier_call_can_mean_is_not_refused() {
    for cells in [
        &["struct G(i32);", "impl Drop for G { fn drop(&mut self) {} }", "drop(G(1));"][..],
        &[
            "trait Area { fn area(&self) -> f64; }\nstruct A;\nstruct B;",
            "impl Area for A { fn area(&self) -> f64 { 1.0 } }\nA.area()",
            "impl Area for B { fn area(&self) -> f64 { 2.0 } }\nB.area()",
            "impl Area for f64 { fn area(&self) -> f64 { *self } }\n2.0.area()",
        ],
        &[
            "struct Stack(Vec<u8>);\nlet stack = Stack(Vec::new());\nlet mut all = vec![1];\nall.push(2);",
            "impl Stack { fn new() -> Self { Stack(Vec::new()) } fn push(&mut self, x: u8) {} }",
            "impl Default for Stack { fn default() -> Self { Self::new() } }",
            "impl std::fmt::Display for Stack { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> \
             std::fmt::Result { write!(f, \"stack\") } }",
            "Stack::new().to_string()",
        ],
        &[
            "let total: i32 = [1, 2].iter().sum();",
            "trait Stats { fn sum(&self) -> u8; }\nimpl Stats for [u8] { fn sum(&self) -> u8 { 3 } }",
            "[1u8][..].sum()",
        ],
    ] {
        export(&notebook(cells), &options()).unwrap_or_else(|error| panic!("{cells:?}: {error}"));
    }
}

#[test]
fn paths_from_the_root_and_all_names_of_a_module_are_refused_where_names_are_new() {
    for (cells, expected) in [
        (
            &["fn g() -> i32 { 1 }", "fn f() -> i32 { crate::g() }", "\nfn g() -> i32 { 2 }"][..],
            "cell 3, line 2: `fn f` is defined once more with it: a path begins at the root",
        ),
        (
            &["fn g() -> i32 { 1 }", "fn g() -> i32 { 2 }", "crate::g()"],
            "cell 3, line 1: a path begins at the root",
        ),
        (
            &["fn g() {}", "fn g() -> i32 { 2 }", "println!(\"{}\", self::g());"],
            "cell 3, line 1: a path begins at the root",
        ),
        (
            &[
                "mod m { pub fn g() {} }",
                "use crate::m::g;",
                "g()",
                "mod m { pub fn g() -> u8 { 2 } }",
            ],
            "cell 4, line 1: `item g` is defined once more with it",
        ),
        (
            &[
                "fn g() {}",
                "fn g() -> u8 { 2 }",
                "mod m { use super::*; pub fn f() -> u8 { g() } }",
            ],
            "cell 3, line 1: a path begins at the root (`crate::`, `self::`, `super::`), where the \
             program does not have `g`",
        ),
        (
            &[
                "mod m { pub fn g() {} }",
                "use m::*;",
                "fn f() { g() }",
                "mod m { pub fn g() { println!() } }",
            ],
            "cell 4, line 1: `m` is defined anew, and `use m::*;` of cell 2 takes all names from it",
        ),
        (
            &["enum C { R = 1 }\nuse C::*;", "fn f() -> i32 { R as i32 }", "enum C { R = 2 }"],
            "cell 3, line 1: `C` is defined anew, and `use C::*;` of cell 1",
        ),
        (
            &["let limit = 1;\nlimit", "const limit: i32 = 3;"],
            "cell 2, line 1: `limit` is a variable, too",
        ),
    ] {
        let told = refusals(cells);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{cells:?}\n{told:#?}");
    }
    // What is at the root is found there.
    exported(&["fn a() {}", "fn b() {}", "fn a() -> u8 { 1 }", "crate::b()"]);
}
