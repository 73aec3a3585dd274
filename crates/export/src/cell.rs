//! A cell's code in pieces: evcxr's commands, the crate's attributes, and statements, each with the
//! comments before it.

use std::ops::Range;

use proc_macro2::{TokenStream, TokenTree};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned as _;
use syn::{Attribute, Block, Item, Stmt};

/// Commands that change nothing which a program does.
const DROPPED: [&str; 25] = [
    ":allow_static_linking",
    ":cache",
    ":clear_cache",
    ":codegen_backend",
    ":doc",
    ":efmt",
    ":explain",
    ":fmt",
    ":help",
    ":internal_debug",
    ":last_compile_dir",
    ":last_error_json",
    ":linker",
    ":offline",
    ":opt",
    ":preserve_vars_on_panic",
    ":sccache",
    ":show_deps",
    ":t",
    ":time_passes",
    ":timing",
    ":type",
    ":types",
    ":vars",
    ":version",
];

/// Macros that define statics, which are items.
pub(crate) const STATICS: [&str; 2] = ["lazy_static", "thread_local"];

/// The code of a cell.
#[derive(Default)]
pub(crate) struct Code {
    /// Attributes of the crate (`#![…]`).
    pub(crate) attributes: Vec<String>,
    pub(crate) pieces: Vec<Piece>,
    /// What stands behind the last statement: comments.
    pub(crate) tail: String,
    /// Commands that were left out.
    pub(crate) dropped: Vec<String>,
}

/// A statement as the cell has it.
pub(crate) struct Piece {
    /// The comments and empty lines before it.
    pub(crate) leading: String,
    /// Its own text, with its attributes and its semicolon.
    pub(crate) text: String,
    /// The comment behind it on its last line.
    pub(crate) trailing: String,
    /// Where its text begins in the cell: the byte, and the line from 1.
    pub(crate) start: usize,
    pub(crate) line: usize,
    pub(crate) statement: Stmt,
}

impl Piece {
    /// The item, if the statement is one; a macro that defines statics is.
    pub(crate) fn item(&self) -> Option<Item> {
        match &self.statement {
            Stmt::Item(item) => Some(item.clone()),
            Stmt::Macro(statement) => {
                let name = statement.mac.path.segments.last()?.ident.to_string();
                STATICS.contains(&name.as_str()).then(|| {
                    Item::Macro(syn::ItemMacro {
                        attrs: statement.attrs.clone(),
                        ident: None,
                        mac: statement.mac.clone(),
                        semi_token: statement.semi_token,
                    })
                })
            }
            _ => None,
        }
    }

    /// Whether it is an expression without semicolon.
    pub(crate) fn is_value(&self) -> bool {
        match &self.statement {
            Stmt::Expr(_, None) => true,
            Stmt::Macro(statement) => statement.semi_token.is_none() && self.item().is_none(),
            _ => false,
        }
    }

    /// Text of the statement by the places of its tokens in the cell.
    pub(crate) fn slice(&self, range: Range<usize>) -> &str {
        self.text
            .get(range.start.saturating_sub(self.start)..range.end.saturating_sub(self.start))
            .unwrap_or_default()
    }
}

/// Why a cell's code cannot be read: the line from 1, and the reason.
pub(crate) type Unread = (Option<usize>, String);

struct Parsed {
    attributes: Vec<Attribute>,
    statements: Vec<Stmt>,
}

impl Parse for Parsed {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        Ok(Self {
            attributes: input.call(Attribute::parse_inner)?,
            statements: input.call(Block::parse_within)?,
        })
    }
}

impl Code {
    /// Reads a cell that is left out: its commands and those of a shell do not matter.
    pub(crate) fn read_left_out(source: &str) -> Result<Self, Unread> {
        let is_command = |line: &str| {
            let line = line.trim_start();
            line.starts_with([':', '!', '%']) && !line.starts_with("::") && !line.starts_with("![")
        };
        let lines = source.split('\n').map(|line| if is_command(line) { "" } else { line });
        Self::read(&lines.collect::<Vec<_>>().join("\n"))
    }

    /// Reads a cell.
    pub(crate) fn read(source: &str) -> Result<Self, Unread> {
        let (code, dropped) = without_commands(source)?;
        not_too_deep(&code)?;
        let parsed: Parsed = syn::parse_str(&code).map_err(|error| {
            let line = error.span().start().line;
            (Some(line.max(1)), format!("the code cannot be read: {error}"))
        })?;
        let mut read = Self { dropped, ..Self::default() };
        let mut position = 0;
        for attribute in &parsed.attributes {
            let range = attribute.span().byte_range();
            // `//!` belongs to nothing in a cell.
            if code[range.clone()].starts_with('#') {
                read.attributes.push(code[range.clone()].to_owned());
                position = range.end;
            }
        }
        let ranges: Vec<_> = parsed.statements.iter().map(|one| one.span().byte_range()).collect();
        for (at, statement) in parsed.statements.into_iter().enumerate() {
            let range = ranges[at].clone();
            let next = ranges.get(at + 1).map_or(code.len(), |next| next.start);
            let trailing = trailing(&code[range.end..next]);
            read.pieces.push(Piece {
                leading: comments(&code[position..range.start]),
                text: code[range.clone()].to_owned(),
                trailing: trailing.to_owned(),
                start: range.start,
                line: code[..range.start].matches('\n').count() + 1,
                statement,
            });
            position = range.end + trailing.len();
        }
        read.tail = comments(&code[position..]);
        Ok(read)
    }
}

/// How many brackets may stand within each other, and how many words in one expression.
const DEPTH: usize = 200;
const LENGTH: usize = 5000;

/// Refuses code that would overflow the stack: the parser and what reads its tree call themselves.
fn not_too_deep(code: &str) -> Result<(), Unread> {
    // What cannot be read is told by the parser.
    let Ok(tokens) = code.parse::<TokenStream>() else { return Ok(()) };
    let mut line = 1;
    if is_too_deep(tokens, 0, &mut line) {
        let reason = format!(
            "the code cannot be read: more than {DEPTH} brackets within each other, or {LENGTH} \
             words in one expression; put parts of it in variables"
        );
        return Err((Some(line), reason));
    }
    Ok(())
}

fn is_too_deep(tokens: TokenStream, depth: usize, line: &mut usize) -> bool {
    if depth > DEPTH {
        return true;
    }
    let mut length = 0;
    for token in tokens {
        length += 1;
        match &token {
            TokenTree::Punct(punct) if [',', ';'].contains(&punct.as_char()) => length = 0,
            TokenTree::Group(group) => {
                *line = group.span_open().start().line;
                if is_too_deep(group.stream(), depth + 1, line) {
                    return true;
                }
                // A statement may end with it.
                if group.delimiter() == proc_macro2::Delimiter::Brace {
                    length = 0;
                }
            }
            _ => {}
        }
        if length > LENGTH {
            *line = token.span().start().line;
            return true;
        }
    }
    false
}

/// What stands behind a statement on its line.
fn trailing(between: &str) -> &str {
    if between.contains("/*") {
        return between.trim_end();
    }
    match between.find('\n') {
        Some(end) => between[..end].trim_end(),
        None => between.trim_end(),
    }
}

/// Comments between statements, `//!` and `/*!` as plain ones.
fn comments(text: &str) -> String {
    let text = &text.replace("/*!", "/*");
    let plain = |line: &str| match line.trim_start().strip_prefix("//!") {
        Some(rest) => format!("{}//{rest}", &line[..line.len() - line.trim_start().len()]),
        None => line.to_owned(),
    };
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// The code with evcxr's commands blanked, a space for each byte, so that places stay. Like evcxr:
/// they stand before the first line of Rust.
fn without_commands(source: &str) -> Result<(String, Vec<String>), Unread> {
    let mut code = String::with_capacity(source.len());
    let mut dropped = Vec::new();
    let mut lines = source.split_inclusive('\n').enumerate();
    for (at, line) in lines.by_ref() {
        let trimmed = line.trim();
        if line.starts_with('!') && !line.starts_with("![") {
            return Err((Some(at + 1), format!("`{trimmed}` is a command of the shell")));
        }
        if trimmed.starts_with(':') && !trimmed.starts_with("::") {
            command(trimmed).map_err(|reason| (Some(at + 1), reason))?;
            if !trimmed.starts_with(":dep") {
                dropped.push(trimmed.to_owned());
            }
            code.extend(line.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
            continue;
        }
        code.push_str(line);
        if !trimmed.is_empty() && !line.starts_with("//") {
            break;
        }
    }
    code.extend(lines.map(|(_, line)| line));
    Ok((code, dropped))
}

/// Refuses a command that changes what the notebook does.
fn command(line: &str) -> Result<(), String> {
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    if name == ":dep" {
        let dependency = rest.trim().split(['=', ' ', '{']).next().unwrap_or_default();
        if dependency == "tunebook" {
            return Ok(());
        }
        return Err(format!(
            "`{line}`: the crate has the dependencies of the prelude only, in the versions of its \
             lock file; tag the cell `skip-export` and add `{dependency}` to the crate yourself"
        ));
    }
    if DROPPED.contains(&name) {
        return Ok(());
    }
    Err(format!("`{name}` is a command of the kernel, which a program does not have"))
}

/// The places of literals over several lines, whose lines must not be moved.
pub(crate) fn long_literals(tokens: TokenStream, text: &str, start: usize) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => found.extend(long_literals(group.stream(), text, start)),
            TokenTree::Literal(literal) => {
                let range = literal.span().byte_range();
                let Some(begin) = range.start.checked_sub(start) else { continue };
                let range = begin..range.end - start;
                if text.get(range.clone()).is_some_and(|text| text.contains('\n')) {
                    found.push(range);
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(source: &str) -> Vec<(String, String, String)> {
        let code = Code::read(source).expect("a cell");
        code.pieces.into_iter().map(|one| (one.leading, one.text, one.trailing)).collect()
    }

    fn refusal(source: &str) -> (Option<usize>, String) {
        Code::read(source).err().expect("a refusal")
    }

    #[test]
    fn statements_keep_their_text_and_their_comments() {
        let found = pieces(
            "// é before\n\nlet a = \"é\"; // behind\n/// doc\nfn f() {} /* a\n b */ a\n// end",
        );
        let expected = [
            ("// é before\n\n", "let a = \"é\";", " // behind"),
            ("\n", "/// doc\nfn f() {}", " /* a\n b */"),
            (" ", "a", ""),
        ];
        let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn only_a_last_expression_without_semicolon_is_a_value() {
        let value =
            |source: &str| Code::read(source).expect("a cell").pieces.last().map(Piece::is_value);
        for source in ["1 + 1", "vec![1]", "println!(\"a\")", "if a { 1 } else { 2 }", "a; b"] {
            assert_eq!(value(source), Some(true), "{source}");
        }
        for source in ["1;", "vec![1];", "fn f() {}", "thread_local! { static A: u8 = 1 }", "{};"] {
            assert_eq!(value(source), Some(false), "{source}");
        }
        assert_eq!(value("// nothing"), None);
    }

    #[test]
    fn commands_stand_before_the_code_and_those_that_matter_are_refused() {
        let code =
            Code::read("// é\n:timing\n:dep tunebook = { path = \"x\" }\nlet a = 1;").unwrap();
        assert_eq!(code.dropped, [":timing"]);
        assert_eq!((code.pieces.len(), code.pieces[0].line), (1, 4));
        for (source, line, reason) in [
            (":dep rand = \"0.9\"", 1, "add `rand` to the crate"),
            ("\n:clear", 2, "`:clear` is a command of the kernel"),
            ("!ls", 1, "a command of the shell"),
            ("let a = 1;\nlet b = (", 2, "cannot be read"),
            ("let a = 1;\nlet b = \"é", 2, "cannot be read"),
            ("let x =", 1, "cannot be read"),
            ("a b", 1, "cannot be read"),
        ] {
            let (found, told) = refusal(source);
            assert!(found == Some(line) && told.contains(reason), "{source}: {found:?} {told}");
        }
        assert!(Code::read("let a = 1;\n// :clear\nlet s = \"\n:clear\";").is_ok());
    }
}
