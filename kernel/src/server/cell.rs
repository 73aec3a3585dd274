//! Reading a cell without running it: whether it is whole, and which variables lack a type.

use std::collections::HashMap;

use ra_ap_syntax::ast::{self, AstNode, HasName};
use ra_ap_syntax::{Edition, SourceFile, SyntaxKind};

/// Whether a cell can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completeness {
    Complete,
    Incomplete,
    Invalid,
}

const PREFIX: &str = "async fn cell() {\n";

fn parse(code: &str) -> ra_ap_syntax::Parse<SourceFile> {
    SourceFile::parse(&format!("{PREFIX}{code}\n}}"), Edition::Edition2024)
}

/// Whether `code` is complete, as a console asks before it runs a line.
pub(crate) fn completeness(code: &str) -> Completeness {
    let code = blank_commands(code);
    let mut open = Vec::new();
    let parsed = parse(&code);
    let inside = ra_ap_syntax::TextSize::of(PREFIX);
    for token in
        parsed.syntax_node().descendants_with_tokens().filter_map(|element| element.into_token())
    {
        let range = token.text_range();
        if range.start() < inside {
            continue;
        }
        if usize::from(range.start()) >= PREFIX.len() + code.len() {
            break;
        }
        match token.kind() {
            SyntaxKind::L_PAREN => open.push(SyntaxKind::R_PAREN),
            SyntaxKind::L_BRACK => open.push(SyntaxKind::R_BRACK),
            SyntaxKind::L_CURLY => open.push(SyntaxKind::R_CURLY),
            closing @ (SyntaxKind::R_PAREN | SyntaxKind::R_BRACK | SyntaxKind::R_CURLY)
                if open.pop() != Some(closing) =>
            {
                return Completeness::Invalid;
            }
            SyntaxKind::STRING if !token.text().ends_with('"') || token.text().len() < 2 => {
                return Completeness::Incomplete;
            }
            SyntaxKind::COMMENT
                if token.text().starts_with("/*") && !token.text().ends_with("*/") =>
            {
                return Completeness::Incomplete;
            }
            _ => {}
        }
    }
    if !open.is_empty() {
        return Completeness::Incomplete;
    }
    if parsed.errors().is_empty() {
        return Completeness::Complete;
    }
    // `let x =` wants more; a let without its semicolon wants that. Anything else is wrong.
    let last = code.trim_end().chars().last();
    let unfinished =
        matches!(last, Some('=' | '+' | '-' | '*' | '/' | ',' | '.' | '&' | '|' | ':' | '<'));
    let line = code.trim_end().lines().last().unwrap_or_default().trim_start();
    let open_let = line.starts_with("let ") && !line.ends_with(';');
    if unfinished || open_let { Completeness::Incomplete } else { Completeness::Invalid }
}

/// Lines that are evcxr's commands (`:dep …`, `!ls`) are no Rust; they are blanked, so that offsets
/// stay.
fn blank_commands(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    for line in code.split_inclusive('\n') {
        if line.starts_with(':') || line.starts_with('!') {
            out.extend(line.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            out.push_str(line);
        }
    }
    out
}

/// The items of a cell (functions, types, imports), which outlive it.
pub(crate) fn items(code: &str) -> Vec<String> {
    let parsed = parse(&blank_commands(code));
    let body = parsed
        .tree()
        .syntax()
        .children()
        .find_map(ast::Fn::cast)
        .and_then(|function| function.body());
    let statements = body
        .and_then(|body| body.stmt_list())
        .into_iter()
        .flat_map(|list| list.statements().collect::<Vec<_>>());
    statements
        .filter_map(|statement| match statement {
            ast::Stmt::Item(item) => Some(item.syntax().text().to_string()),
            _ => None,
        })
        .collect()
}

/// Whether the cell only calls what has been compiled before (a library's functions), so that
/// optimising it would cost more than it could save: no loop, closure, iterator or function of the
/// notebook's own is in it.
pub(crate) fn only_calls(code: &str, items: &[String]) -> bool {
    use SyntaxKind::{DOT2, DOT2EQ, FN_KW, FOR_KW, IDENT, IMPL_KW, LOOP_KW, PIPE, WHILE_KW};
    /// What works through elements in the cell's own code.
    const WORK: [&str; 8] =
        ["iter", "collect", "sort", "fold", "sum", "extend", "repeat", "macro_rules"];
    /// What an iterator comes from without one of these words.
    const SOURCES: [&str; 6] = ["lines", "chars", "bytes", "split", "windows", "chunks"];
    let tokens = |text: &str| -> Vec<(SyntaxKind, String)> {
        let parsed = parse(&blank_commands(text));
        let tokens = parsed
            .syntax_node()
            .descendants_with_tokens()
            .filter_map(|element| element.into_token());
        // Without `async`, `fn`, `cell`, `(`, `)`, `{` of the wrapper.
        let inside = tokens.filter(|token| usize::from(token.text_range().start()) >= PREFIX.len());
        inside.map(|token| (token.kind(), token.text().to_owned())).collect()
    };
    let mut own = Vec::new();
    for item in items {
        let item = tokens(item);
        if item.iter().any(|(kind, text)| *kind == IMPL_KW || text == "macro_rules") {
            return false;
        }
        let names =
            item.windows(3).filter(|window| window[0].0 == FN_KW).map(|window| window[2].1.clone());
        own.extend(names);
    }
    let code = tokens(code);
    // In a chain of polars' these words name its own work: `frame.lazy().sort(…).collect()`.
    let is_lazy = code.iter().any(|(kind, text)| *kind == IDENT && text == "lazy")
        && !code.iter().any(|(kind, text)| match *kind {
            DOT2 | DOT2EQ => true,
            IDENT => SOURCES.iter().any(|word| text.contains(word)),
            _ => false,
        });
    let works = |text: &str| match text {
        "collect" | "sort" | "sum" if is_lazy => false,
        _ => WORK.iter().any(|word| text.contains(word)),
    };
    code.iter().all(|(kind, text)| match *kind {
        FN_KW | FOR_KW | IMPL_KW | LOOP_KW | PIPE | WHILE_KW => false,
        IDENT => !own.contains(text) && !works(text),
        _ => true,
    })
}

/// A top-level `let` whose variables have no whole type written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UntypedLet {
    /// Where the statement ends in the code, as a byte offset.
    end: usize,
    /// The variables, and whether they are mutable.
    variables: Vec<(String, bool)>,
}

/// The top-level lets that need types. Empty when the code does not parse: the compiler says why
/// then.
pub(crate) fn untyped_lets(code: &str) -> Vec<UntypedLet> {
    let code = blank_commands(code);
    let parsed = parse(&code);
    if !parsed.errors().is_empty() {
        return Vec::new();
    }
    let Some(body) = parsed
        .tree()
        .syntax()
        .children()
        .find_map(ast::Fn::cast)
        .and_then(|function| function.body())
        .and_then(|body| body.stmt_list())
    else {
        return Vec::new();
    };
    let mut lets = Vec::new();
    for statement in body.statements() {
        let ast::Stmt::LetStmt(statement) = statement else { continue };
        let whole = |ty: ast::Type| {
            !ty.syntax().descendants().any(|node| node.kind() == SyntaxKind::INFER_TYPE)
        };
        let Some(pattern) = statement.pat() else { continue };
        // A type beside a single name is the variable's; beside a pattern it is that of the parts
        // together.
        if matches!(pattern, ast::Pat::IdentPat(_)) && statement.ty().is_some_and(whole) {
            continue;
        }
        let variables: Vec<(String, bool)> = pattern
            .syntax()
            .descendants()
            .filter_map(ast::IdentPat::cast)
            .filter(|pattern| pattern.ref_token().is_none())
            .filter_map(|pattern| {
                Some((pattern.name()?.text().to_string(), pattern.mut_token().is_some()))
            })
            // `None` in a pattern is a path, not a name.
            .filter(|(name, _)| !name.starts_with(char::is_uppercase))
            .collect();
        if !variables.is_empty() {
            let end = usize::from(statement.syntax().text_range().end()) - PREFIX.len();
            lets.push(UntypedLet { end, variables });
        }
    }
    lets
}

/// The code with the types written in: each variable is bound once more, with its type, behind its
/// `let`, on the same line. A type that cannot be written (a closure's) is left out; evcxr explains
/// what to do then.
pub(crate) fn with_types(
    code: &str,
    lets: &[UntypedLet],
    types: &HashMap<String, String>,
) -> String {
    let mut out = code.to_owned();
    for statement in lets.iter().rev() {
        let mut bindings = String::new();
        for (name, mutable) in &statement.variables {
            if let Some(type_name) = types.get(name).filter(|type_name| can_be_written(type_name)) {
                let mutable = if *mutable { "mut " } else { "" };
                bindings.push_str(&format!(" let {mutable}{name}: {type_name} = {name};"));
            }
        }
        out.insert_str(statement.end, &bindings);
    }
    out
}

fn can_be_written(type_name: &str) -> bool {
    !["{closure", "impl ", "{async", " {"].iter().any(|part| type_name.contains(part))
        && !has_hole(type_name)
}

/// Whether the type holds a `_`, as the compiler writes what it does not know.
fn has_hole(type_name: &str) -> bool {
    type_name.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'').any(|word| word == "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completeness_is_parsed() {
        use Completeness::{Complete, Incomplete, Invalid};
        for (code, expected) in [
            ("1 + 1", Complete),
            ("let x = 5;", Complete),
            ("fn f() {", Incomplete),
            ("fn f() {\n}", Complete),
            ("println!(\"a", Incomplete),
            ("let x =", Incomplete),
            ("vec![1,", Incomplete),
            ("1 + 1)", Invalid),
            ("let let;", Invalid),
            (":dep foo = \"1\"\nlet y = 1;", Complete),
            ("// only a comment", Complete),
            ("for i in 0..3 {\n  println!(\"{i}\");", Incomplete),
        ] {
            assert_eq!(completeness(code), expected, "{code:?}");
        }
    }

    #[test]
    fn only_top_level_variables_without_a_type_are_asked_about() {
        let names =
            |code| untyped_lets(code).into_iter().flat_map(|l| l.variables).collect::<Vec<_>>();
        assert_eq!(names("let a = 1; let b: i32 = 2; { let c = 3; }"), [("a".to_owned(), false)]);
        assert_eq!(
            names("let (mut p, q) = (1, 2); let v: Vec<_> = vec![];"),
            [("p".to_owned(), true), ("q".to_owned(), false), ("v".to_owned(), false)]
        );
        assert_eq!(names("let Some(x) = o else { return; };"), [("x".to_owned(), false)]);
        assert_eq!(names("let = 3"), []);
    }

    #[test]
    fn types_are_written_behind_the_let_on_its_line() {
        let code = ":dep x = \"1\"\nlet (mut p, q) = pair();\nlet f = |a: i32| a; p";
        let types = [
            ("p", "i32"),
            ("q", "std::vec::Vec<f32>"),
            ("f", "{closure@cell/src/lib.rs:1:2: 3:4}"),
        ]
        .map(|(name, ty)| (name.to_owned(), ty.to_owned()));
        let typed = with_types(code, &untyped_lets(code), &HashMap::from(types));
        assert_eq!(
            typed,
            ":dep x = \"1\"\nlet (mut p, q) = pair(); let mut p: i32 = p; let q: std::vec::Vec<f32> = q;\n\
             let f = |a: i32| a; p"
        );
    }

    #[test]
    fn only_cells_that_call_libraries_go_unoptimised() {
        let own = [
            "use tunebook::prelude::*;".to_owned(),
            "fn double(x: i32) -> i32 { 2 * x }".to_owned(),
        ];
        for code in [
            "println!(\"a\")",
            "let t: Tensor = Tensor::zeros(3, D, &cpu)?;",
            "trainer.train(&split)?",
            "1 + x",
            "frame.clone().lazy().filter(col(\"a\").gt(lit(1))).sort([\"a\"], Default::default()).collect()?",
        ] {
            assert!(only_calls(code, &own), "{code}");
        }
        for code in [
            "for i in 0..9 { x += i }",
            "v.iter().max()",
            "xs.map(|x| x + 1)",
            "double(3)",
            "while true {}",
            "frame.lazy().collect()?; let v: Vec<char> = text.chars().collect();",
            "frame.lazy().collect()?; let v: Vec<i32> = (0..9).collect();",
            "words.collect::<Vec<_>>()",
        ] {
            assert!(!only_calls(code, &own), "{code}");
        }
        assert!(!only_calls("p.work()", &["impl P { fn work(&self) {} }".to_owned()]));
    }

    #[test]
    fn a_type_with_a_hole_cannot_be_written() {
        assert!(!can_be_written("std::vec::Vec<_>"));
        assert!(can_be_written("tunebook::candle_core::Tensor"));
        assert!(can_be_written("std::boxed::Box<dyn std::ops::Fn(i32) -> i32>"));
        assert!(can_be_written("std::borrow::Cow<'_, str>"));
        assert!(!can_be_written("fn(i32) -> i32 {double}"));
    }
}
