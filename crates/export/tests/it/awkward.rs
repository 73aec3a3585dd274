//! Cells that are awkward to export, and what each prints. All are one notebook, which is compiled
//! once (`run`).

/// A notebook's cells, and the lines that they print.
pub(crate) const AWKWARD: &[(&[&str], &[&str])] = &[
    // Shadowing, and moves.
    (&["let shadow = 1;", "let shadow = format!(\"{shadow}{shadow}\");", "shadow"], &["\"11\""]),
    (&["let moved = vec![1, 2];", "let taken = moved;\nlet moved = taken.len();", "moved"], &["2"]),
    (&["let (mut left, [right, ..]) = (1, [2, 3]);\nleft += right;", "left"], &["3"]),
    // Macros.
    (&["macro_rules! twice { ($e:expr) => { $e * 2 } }", "twice!(21)"], &["42"]),
    (&["println!(\"{}\", late!());\nmacro_rules! late { () => { 7 } }"], &["7"]),
    (&["vec![1, 2]"], &["[1, 2]"]),
    (&["format!(\"{}-{}\", 1, 2)"], &["\"1-2\""]),
    (&["println! { \"braces {{}}\" }"], &["braces {}"]),
    // Async without a runtime.
    (
        &[
            "async fn later() -> u8 { 5 }\ndrop(later());\nstd::mem::size_of_val(&async { 1u8 }) > 0",
        ],
        &["true"],
    ),
    // Items.
    (
        &[
            "trait Sound { fn sound(&self) -> String; }\nstruct Cat;",
            "impl Sound for Cat { fn sound(&self) -> String { \"meow\".into() } }\nCat.sound()",
        ],
        &["\"meow\""],
    ),
    (
        &[
            "let first_part = 1;\nfn after(x: u8) -> u8 { x + 1 }\nlet second_part = after(first_part);\n\
           use std::collections::BTreeMap;\nlet map: BTreeMap<u8, u8> = [(second_part, 1)].into();\nmap",
        ],
        &["{2: 1}"],
    ),
    (&["fn outer() -> u8 { fn inner() -> u8 { 4 } inner() }\nouter()"], &["4"]),
    (
        &[
            "/// Doc with `code` and \"quotes\".\n/** Block\n    doc */\nfn documented() -> u8 { 3 }\ndocumented()",
        ],
        &["3"],
    ),
    (
        &["const WIDTH: usize = 3;\nstatic NAMES: [&str; WIDTH] = [\"a\", \"b\", \"c\"];", "NAMES"],
        &["[\"a\", \"b\", \"c\"]"],
    ),
    (
        &[
            "fn largest<T: PartialOrd + Copy, const N: usize>(of: [T; N]) -> T {\n    let mut most = of[0];\n    \
           for one in of { if one > most { most = one } }\n    most\n}\nlargest([1.5, 2.5])",
        ],
        &["2.5"],
    ),
    (&["type Pair<T> = (T, T);\nlet pair: Pair<u8> = (1, 2);\npair"], &["(1, 2)"]),
    (
        &["#[derive(Debug)] enum Color { Red, Green }\nuse Color::*;\n[Red, Green]"],
        &["[Red, Green]"],
    ),
    (
        &[
            "mod geometry {\n    use super::*;\n    pub fn area(w: Pair<f64>) -> f64 { w.0 * w.1 }\n}\n\
           (geometry::area((2.0, 3.0)), crate::geometry::area((1.0, 1.0)))",
        ],
        &["(6.0, 1.0)"],
    ),
    (&["extern \"C\" fn callback(x: i32) -> i32 { x + 1 }\ncallback(1)"], &["2"]),
    (
        &["fn shout(of: impl std::fmt::Display) -> String { format!(\"{of}!\") }\n\
           let boxed: Box<dyn Fn(u8) -> u8> = Box::new(|x| x + 1);\n(shout(1), boxed(1))"],
        &["(\"1!\", 2)"],
    ),
    (
        &[
            "use std::collections::HashMap as Map;",
            "use std::collections::{HashMap as Map, HashSet};\n(Map::<u8, u8>::new().len(), HashSet::<u8>::new().len())",
        ],
        &["(0, 0)"],
    ),
    (
        &[
            "thread_local! { static SEEN: std::cell::Cell<u8> = const { std::cell::Cell::new(1) }; }",
            "SEEN.with(|seen| seen.get())",
        ],
        &["1"],
    ),
    (&["fn main() -> u8 { 8 }\nmain()"], &["8"]),
    // Attributes.
    (
        &[
            "#[derive(Debug, Clone, PartialEq)]\n#[allow(non_snake_case)]\nstruct Marked { A: u8 }\n\
           #[rustfmt::skip]\nlet marked = Marked { A: 1 };\nmarked",
        ],
        &["Marked { A: 1 }"],
    ),
    (
        &[
            "#[cfg(unix)]\nfn system() -> u8 { 1 }\n#[cfg(not(unix))]\nfn system() -> u8 { 1 }\nsystem()",
        ],
        &["1"],
    ),
    (&["#![allow(non_upper_case_globals)]\nconst lower_case: u8 = 9;\nlower_case"], &["9"]),
    // Literals.
    (
        &["let raw = r##\"{ \"# }\n  // %% [1]\n\n    \\\"##;\nprintln!(\"{raw}\")"],
        &["{ \"# }", "  // %% [1]", "", "    \\"],
    ),
    (&["(b'\\'', b\"\\\"{\", '\"', '{')"], &["(39, [34, 123], '\"', '{')"]),
    (&["let text = \"one \\\n    line\";\ntext"], &["\"one line\""]),
    (&["let größe = 1.5; let Δ = 0.5;\nprintln!(\"{größe} {}\", größe + Δ);"], &["1.5 2"]),
    // What is shown.
    (&["[1].reverse();"], &[]),
    (&["println!(\"no semicolon\")"], &["no semicolon"]),
    (&["match 3 { n if n > 2 => \"big\", _ => \"small\" }"], &["\"big\""]),
    (&["if false { 1 } else { 2 }"], &["2"]),
    (&["for i in 0..2 { println!(\"{i}\") }"], &["0", "1"]),
    (&["loop { break }"], &[]),
    (&["Marked { A: 2 }"], &["Marked { A: 2 }"]),
    (&["0..3"], &["0..3"]),
    (&["&[1, 2, 3][1..]"], &["[2, 3]"]),
    (&["*\"a str\""], &["\"a str\""]),
    (
        &["[1, 2, 3]\n    // Doubled.\n    .iter()\n    .map(|x| x * 2)\n    .sum::<i32>() // é"],
        &["12"],
    ),
    (&["let a1 = 1; let b1 = 2; a1 + b1"], &["3"]),
    (&["let semi = 1;; semi"], &["1"]),
    (
        &["struct Own;\nimpl Own { fn evcxr_display(&self) { println!(\"shows itself\") } }\nOwn"],
        &["shows itself"],
    ),
    // Nothing.
    (&["", "// only a comment\n/* and\n more */"], &[]),
    // Control flow.
    (
        &[
            "let Some(found) = [1, 2].iter().copied().find(|x| *x > 1) else { panic!(\"none\") };\nfound",
        ],
        &["2"],
    ),
    (
        &[
            "let Ok(number) = \"12\".parse::<u8>() else { return; };\nlet mut doubled = number * 2;",
            "doubled += 1;\ndoubled",
        ],
        &["25"],
    ),
    (
        &[
            "if true { println!(\"left\"); return Ok(()); }\n\"x\".parse::<u8>()?;\nprintln!(\"not here\");",
        ],
        &["left"],
    ),
    (
        &[
            "let labelled = 'out: { if true { break 'out 5 } 6 };\n'rows: for i in 0..3 {\n    for j in 0..3 {\n        \
           if j == 1 { continue 'rows }\n        if i == 2 { break 'rows }\n        println!(\"{i}{j}\")\n    }\n}\nlabelled",
        ],
        &["00", "10", "5"],
    ),
    (&["if let Some(x) = Some(1) && x > 0 { println!(\"chained\") }"], &["chained"]),
    (
        &["let mut count = 0;\nlet mut bump = || { count += 1; count };\nbump();\nbump();\ncount"],
        &["2"],
    ),
    (&["let value = 7; let pointer = &raw const value;\nunsafe { *pointer }"], &["7"]),
    (&["let parsed: i32 = \"41\".parse()?;\nparsed + 1"], &["42"]),
    (&["let some = Some(3).ok_or(\"none\")?;\nsome"], &["3"]),
    (
        &[
            "tag raises-exception: let nothing: Option<u8> = None;\nnothing.unwrap();",
            "tag raises-exception: \"x\".parse::<u8>()?;",
            "tag raises-exception: panic!(\"shown never\")",
            "println!(\"goes on\")",
        ],
        &["goes on"],
    ),
    // Names that are defined anew, and those that use them.
    (
        &[
            "fn rate() -> u8 { 1 }\nfn report() -> u8 { rate() * 10 }",
            "report()",
            "fn rate() -> u8 { 2 }\nreport()",
            "rate()",
        ],
        &["10", "20", "2"],
    ),
    (
        &[
            "struct Layer(u8);\nimpl Layer { fn size(&self) -> u8 { self.0 } }\n\
             fn build(n: u8) -> Layer { Layer(n) }\nlet layer = build(1);\nlayer.size()",
            "struct Layer(u8, u8);\nimpl Layer { fn size(&self) -> u8 { self.0 + self.1 } }\n\
             fn build(n: u8) -> Layer { Layer(n, n) }\nlet layer = build(2);",
            "layer.size()",
        ],
        &["1", "4"],
    ),
    (
        &[
            "macro_rules! word { () => { \"old\" } }\nfn say() -> &'static str { word!() }\nsay()",
            "macro_rules! word { () => { \"new\" } }\nsay()",
        ],
        &["\"old\"", "\"new\""],
    ),
    (
        &["let sizes = (Some(1), 2);", "struct Some;\nstd::mem::size_of_val(&Some)", "sizes"],
        &["0", "(Some(1), 2)"],
    ),
    // A constant or a trait of a later cell, and earlier cells that mean something else.
    (
        &[
            "let bound = match 2 { limit if limit > 1 => \"any\", _ => \"none\" };\n\
             fn is_limit(k: u8) -> bool { match k { limit => true, #[allow(unreachable_patterns)] _ => false } }\n\
             (bound, is_limit(2))",
            "const limit: u8 = 3;\n(limit, is_limit(2))",
        ],
        &["(\"any\", true)", "(3, false)"],
    ),
    (
        &[
            "trait Go { fn go(&self) -> u8; }\nimpl Go for u16 { fn go(&self) -> u8 { 1 } }\n\
             fn start() -> u8 { 5u16.go() }\n(start(), 5u16.go())",
            "trait GoByValue { fn go(self) -> u8; }\nimpl GoByValue for u16 { fn go(self) -> u8 { 2 } }",
            "(start(), 5u16.go())",
        ],
        &["(1, 1)", "(2, 2)"],
    ),
    (
        &[
            "let within = match 2u8 { edge if edge > 1 => \"any\", _ => \"none\" };\nwithin",
            "mod limits { pub const edge: u8 = 7; }\nuse limits::edge;\nedge",
        ],
        &["\"any\"", "7"],
    ),
];
