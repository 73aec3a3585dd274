//! Reading a cell without running it: whether it is whole, and which variables lack a type.

use std::collections::HashMap;

use ra_ap_syntax::ast::{self, AstNode, HasName};
use ra_ap_syntax::{Edition, SourceFile, SyntaxElement, SyntaxKind, SyntaxNode, TextSize};

use crate::layout::PRELUDE;

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
    let inside = TextSize::of(PREFIX);
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

/// Lines that are evcxr's commands (`:dep …`, `!ls`) are no Rust; they are blanked, a space for each
/// byte, so that offsets stay.
fn blank_commands(code: &str) -> String {
    with_blanks(code, &[':', '!'])
}

/// The lines that begin with one of these are blanked.
fn with_blanks(code: &str, begins: &[char]) -> String {
    let mut out = String::with_capacity(code.len());
    for line in code.split_inclusive('\n') {
        if line.starts_with(begins) {
            out.extend(line.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        } else {
            out.push_str(line);
        }
    }
    out
}

/// What is wrong with the values of evcxr's commands in the cell. evcxr takes any, and no later cell
/// would compile.
pub(crate) fn refused_commands(code: &str) -> Option<String> {
    let commands = code.lines().filter(|line| line.starts_with(':'));
    let wrong = |line: &str| {
        let (command, value) = line.trim().split_once(char::is_whitespace)?;
        let value = value.trim();
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
        let (fits, expected) = match command {
            ":opt" => {
                (["0", "1", "2", "3", "s", "z"].contains(&value), "one of 0, 1, 2, 3, s and z")
            }
            ":preserve_vars_on_panic" | ":offline" | ":sccache" | ":allow_static_linking" => {
                (["0", "1"].contains(&value), "0 or 1")
            }
            ":fmt" => (["{}", "{:?}", "{:#?}"].contains(&value), "one of {}, {:?} and {:#?}"),
            ":linker" | ":codegen_backend" | ":toolchain" => {
                (value.chars().all(is_name), "a name of letters, digits and any of -_./+")
            }
            _ => return None,
        };
        (!fits).then(|| format!("`{command} {value}`: expected {expected}; nothing was run"))
    };
    commands.filter_map(wrong).next()
}

/// The items of a cell (functions, types, imports), which outlive it.
pub(crate) fn items(code: &str) -> Vec<String> {
    let parsed = parse(&blank_commands(code));
    statements(&parsed.tree())
        .filter_map(|statement| match statement {
            ast::Stmt::Item(item) => Some(item.syntax().text().to_string()),
            _ => None,
        })
        .collect()
}

/// The variables that a cell's top level and its functions' names define, also where it does not
/// parse as a whole.
pub(crate) fn defined(code: &str) -> Vec<String> {
    let parsed = parse(&blank_commands(code));
    let mut names = Vec::new();
    for statement in statements(&parsed.tree()) {
        match statement {
            ast::Stmt::LetStmt(statement) => {
                let Some(pattern) = statement.pat() else { continue };
                let bound = pattern.syntax().descendants().filter_map(ast::IdentPat::cast);
                names.extend(bound.filter_map(|one| Some(one.name()?.text().to_string())));
            }
            ast::Stmt::Item(ast::Item::Fn(function)) => {
                names.extend(function.name().map(|name| name.text().to_string()));
            }
            _ => {}
        }
    }
    names
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
    /// Where the statement stands in the code, as byte offsets.
    start: usize,
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
    let mut lets = Vec::new();
    for statement in statements(&parsed.tree()) {
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
            let range = statement.syntax().text_range();
            let [start, end] =
                [range.start(), range.end()].map(|place| usize::from(place) - PREFIX.len());
            lets.push(UntypedLet { start, end, variables });
        }
    }
    lets
}

/// The code with the types written in: each variable is bound once more, with its type, behind its
/// `let`, on the same line. A type that cannot be written is left out; evcxr explains what to do
/// then. A `let` of closures goes through a macro of the prelude, where evcxr does not see it: it
/// would keep them for the next cell, which cannot be.
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
        if closures(statement, types).next().is_some() {
            // With a semicolon, so that it is no value of the cell.
            out.insert_str(statement.end, " );");
            out.insert_str(statement.start, &format!("{PRELUDE}::within_cell!( "));
            continue;
        }
        out.insert_str(statement.end, &bindings);
    }
    out
}

/// The variables of a `let`, if all of them are closures.
fn closures<'a>(
    statement: &'a UntypedLet,
    types: &HashMap<String, String>,
) -> impl Iterator<Item = &'a str> {
    let is_closure = |name: &String| types.get(name).is_some_and(|ty| ty.starts_with("{closure"));
    let all = statement.variables.iter().all(|(name, _)| is_closure(name));
    statement.variables.iter().filter(move |_| all).map(|(name, _)| name.as_str())
}

/// The closures that a cell defines, which live in it alone.
pub(crate) fn local_closures<'a>(
    lets: &'a [UntypedLet],
    types: &'a HashMap<String, String>,
) -> impl Iterator<Item = &'a str> {
    lets.iter().flat_map(|statement| closures(statement, types))
}

/// The code with its closures kept from evcxr, and nothing else changed.
pub(crate) fn with_local_closures(code: &str, types: &HashMap<String, String>) -> String {
    let mut closures = types.clone();
    closures.retain(|_, ty| ty.starts_with("{closure"));
    with_types(code, &untyped_lets(code), &closures)
}

/// A top-level `let`: where it stands in the code, as byte offsets, and its variables.
struct Let {
    start: usize,
    end: usize,
    variables: Vec<Variable>,
}

struct Variable {
    name: String,
    is_mutable: bool,
    /// Bound by `ref`: a reference to what stands there.
    is_ref: bool,
}

fn lets(code: &str) -> Vec<Let> {
    let parsed = parse(&blank_commands(code));
    if !parsed.errors().is_empty() {
        return Vec::new();
    }
    let mut lets = Vec::new();
    for statement in statements(&parsed.tree()) {
        let ast::Stmt::LetStmt(statement) = statement else { continue };
        let Some(pattern) = statement.pat() else { continue };
        let bound = pattern.syntax().descendants().filter_map(ast::IdentPat::cast);
        let variable = |pattern: ast::IdentPat| {
            let name = pattern.name()?.text().to_string();
            let is_mutable = pattern.mut_token().is_some();
            // `None` in a pattern is a path, not a name.
            (!name.starts_with(char::is_uppercase)).then(|| Variable {
                name,
                is_mutable,
                is_ref: pattern.ref_token().is_some(),
            })
        };
        let variables = bound.filter_map(variable).collect();
        let range = statement.syntax().text_range();
        let [start, end] =
            [range.start(), range.end()].map(|place| usize::from(place) - PREFIX.len());
        lets.push(Let { start, end, variables });
    }
    lets
}

/// The variables of the top-level `let` that stands on this line, from 1.
pub(crate) fn variables_on_line(code: &str, line: usize) -> Vec<String> {
    let number = |place: usize| code[..place].matches('\n').count() + 1;
    let on_line = |found: &Let| (number(found.start)..=number(found.end)).contains(&line);
    let variables = lets(code).into_iter().find(on_line).map(|found| found.variables);
    variables.into_iter().flatten().map(|variable| variable.name).collect()
}

/// The code with some of its `let`s kept from evcxr, as those of closures are: those of these
/// variables, and those of a name that a later `let` of the cell gives to another value, of which the
/// last one counts. What else such a `let` binds is bound once more behind it, where its type can be
/// written. With the code come the variables that live in the cell alone.
pub(crate) fn within_cell(
    code: &str,
    names: &[String],
    types: &HashMap<String, String>,
) -> (String, Vec<String>) {
    let lets = lets(code);
    let mut out = code.to_owned();
    let mut within = Vec::new();
    for (index, found) in lets.iter().enumerate().rev() {
        let again = |variable: &Variable| {
            let mut later = lets[index + 1..].iter().flat_map(|later| &later.variables);
            later.any(|later| later.name == variable.name)
        };
        if !found.variables.iter().any(|one| names.contains(&one.name) || again(one)) {
            continue;
        }
        let (mut bindings, mut hidden) = (String::new(), Vec::new());
        for variable in found.variables.iter().filter(|variable| !again(variable)) {
            let name = &variable.name;
            let type_name = types.get(name).filter(|type_name| can_be_written(type_name));
            match type_name.filter(|_| !names.contains(name) && !variable.is_ref) {
                Some(type_name) => {
                    let mutable = if variable.is_mutable { "mut " } else { "" };
                    bindings.push_str(&format!(" let {mutable}{name}: {type_name} = {name};"));
                }
                None => hidden.push(name.clone()),
            }
        }
        within.extend(hidden.into_iter().rev());
        out.insert_str(found.end, &format!(" );{bindings}"));
        out.insert_str(found.start, &format!("{PRELUDE}::within_cell!( "));
    }
    within.reverse();
    (out, within)
}

/// The variables of the cell whose type is known and cannot be written, other than closures.
pub(crate) fn unnamed(code: &str, types: &HashMap<String, String>) -> Vec<String> {
    let of_closures: Vec<String> =
        local_closures(&untyped_lets(code), types).map(str::to_owned).collect();
    let names = lets(code).into_iter().flat_map(|found| found.variables).map(|one| one.name);
    let is_unnamed = |name: &String| {
        types.get(name).is_some_and(|ty| !can_be_written(ty) && !has_hole(ty))
            && !of_closures.contains(name)
    };
    names.filter(is_unnamed).collect()
}

/// The code with its shell commands blanked, and these.
pub(crate) fn without_shell_commands(code: &str) -> (String, String) {
    let commands = code.split_inclusive('\n').filter(|line| line.starts_with('!')).collect();
    (with_blanks(code, &['!']), commands)
}

/// An `impl` that follows no named item of its cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LooseImpl {
    /// Where it begins in the code, as a byte offset.
    start: usize,
    /// What it is of, without what stands between its braces.
    header: String,
    /// What an inherent one defines; empty for a trait's.
    names: Vec<String>,
    /// The item under whose name evcxr keeps it.
    key: String,
}

impl LooseImpl {
    /// Whether it takes the other's place.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// The `impl`s of a cell that evcxr would keep beside those of the same header for ever, since it
/// replaces named items only, and the items that follow them. `known` are those of earlier cells: one that is written again gets the
/// key that it had.
pub(crate) fn loose_impls(code: &str, known: &[LooseImpl]) -> Vec<LooseImpl> {
    let blank = blank_commands(code);
    let parsed = parse(&blank);
    if !parsed.errors().is_empty() {
        return Vec::new();
    }
    let mut found: Vec<LooseImpl> = Vec::new();
    let mut kept = false;
    for statement in statements(&parsed.tree()) {
        let item = match statement {
            ast::Stmt::Item(ast::Item::Impl(item)) => item,
            ast::Stmt::Item(
                ast::Item::Use(_)
                | ast::Item::ExternBlock(_)
                | ast::Item::ExternCrate(_)
                | ast::Item::MacroCall(_)
                | ast::Item::MacroRules(_),
            ) => continue,
            // It has a name, and evcxr keeps what follows with it.
            ast::Stmt::Item(_) => {
                kept = true;
                continue;
            }
            _ => continue,
        };
        let Some(list) = item.assoc_item_list() else { continue };
        let offset = |size: TextSize| usize::from(size) - PREFIX.len();
        let whole = item.syntax().text_range();
        // Without the comments and attributes before it.
        let Some(begin) = item.impl_token().map(|token| token.text_range().start()) else {
            continue;
        };
        let words = blank[offset(begin)..offset(list.syntax().text_range().start())]
            .split_whitespace()
            .collect::<Vec<_>>();
        let header = words.join(" ");
        let names: Vec<String> = match item.trait_() {
            Some(_) => Vec::new(),
            None => list.assoc_items().filter_map(|item| name_of(&item)).collect(),
        };
        let same = |other: &&LooseImpl| {
            other.header == header
                && (names.is_empty() && other.names.is_empty()
                    || names.iter().any(|name| other.names.contains(name)))
        };
        let taken = |key: &String| found.iter().any(|other| other.key == *key);
        let key = known.iter().filter(same).map(|other| other.key.clone()).find(|key| !taken(key));
        // Behind one that gets a name, all need one: evcxr would keep them with that.
        if kept && key.is_none() && found.is_empty() {
            continue;
        }
        let key = key.unwrap_or_else(|| {
            let number = |key: &str| key.strip_prefix(IMPL_KEY)?.parse::<usize>().ok();
            let used = known.iter().chain(&found).filter_map(|other| number(&other.key));
            format!("{IMPL_KEY}{}", used.max().map_or(0, |last| last + 1))
        });
        found.push(LooseImpl { start: offset(whole.start()), header, names, key });
    }
    found
}

/// The beginning of the names that loose `impl`s are kept under.
const IMPL_KEY: &str = "TUNEBOOK_IMPL_";

fn name_of(item: &ast::AssocItem) -> Option<String> {
    let name = match item {
        ast::AssocItem::Const(item) => item.name(),
        ast::AssocItem::Fn(item) => item.name(),
        ast::AssocItem::TypeAlias(item) => item.name(),
        ast::AssocItem::MacroCall(_) => None,
    };
    name.map(|name| name.text().to_string())
}

/// The code with a named item before each of these `impl`s, on the same line.
pub(crate) fn with_named_impls(code: &str, impls: &[LooseImpl]) -> String {
    let mut out = code.to_owned();
    for one in impls.iter().rev() {
        out.insert_str(one.start, &format!("#[allow(dead_code)] const {}: () = (); ", one.key));
    }
    out
}

/// A cell that takes these variables, with their types, out of the store.
pub(crate) fn taken_again<'a>(variables: impl Iterator<Item = &'a (String, String)>) -> String {
    let take = |(name, type_name): &(String, String)| {
        format!(
            "let mut {name}: {type_name} = \
             evcxr_variable_store.take_variable::<{type_name}>(stringify!({name}));\n"
        )
    };
    variables.map(take).collect()
}

/// What is said about values that the cell does not look at, of which the compiler gives what and
/// the line. Items of earlier cells, which are compiled again, are left out.
pub(crate) fn told_unused(
    code: &str,
    execution_count: u32,
    unused: &[(String, String)],
) -> Vec<String> {
    let tell = |(what, line): &(String, String)| {
        let number =
            code.lines().position(|own| !own.trim().is_empty() && own.trim() == line.trim())? + 1;
        let is_last = code.trim_end().ends_with(line.trim());
        let way_out = if what.contains("Result`") {
            " If it is an error, nobody sees it: write `?` behind it, or `let _ =` before it."
        } else if is_last {
            " Without the `;` the cell shows it."
        } else {
            ""
        };
        Some(format!(
            "[kernel] {what}: cell {execution_count}, line {number}: `{}`.{way_out}\n",
            line.trim()
        ))
    };
    unused.iter().filter_map(tell).collect()
}

/// What is said about a cell that ends with `value;`: it does nothing, as the semicolon keeps the value
/// from being shown.
pub(crate) fn not_shown(code: &str) -> Option<String> {
    let parsed = parse(&blank_commands(code));
    if !parsed.errors().is_empty() {
        return None;
    }
    let last = top_level(&parsed.tree()).pop()?;
    let expression = ast::ExprStmt::cast(last)?.expr()?;
    let is_place = match &expression {
        ast::Expr::PathExpr(path) => !path.syntax().text().to_string().contains("::"),
        ast::Expr::FieldExpr(_) => true,
        _ => false,
    };
    let value = expression.syntax().text().to_string();
    is_place.then(|| {
        format!(
            "[kernel] `{value};` shows nothing: the `;` throws the value away. Without it the cell \
             shows it.\n"
        )
    })
}

/// Macros that define statics.
const MACROS_OF_STATICS: [&str; 2] = ["thread_local", "lazy_static"];

/// The names of the statics that the cell defines at its top level, by an item or by a macro: each
/// starts anew in every cell.
pub(crate) fn statics(code: &str) -> Vec<String> {
    let parsed = parse(&blank_commands(code));
    let mut names = Vec::new();
    for statement in top_level(&parsed.tree()) {
        if let Some(item) = ast::Static::cast(statement.clone()) {
            names.extend(item.name().map(|name| name.text().to_string()));
        } else if let Some(call) = macro_of_statics(&statement) {
            names.extend(statics_within(&call).into_iter().map(|found| found.name));
        }
    }
    names
}

/// The code with each such macro in a module of its own, on the same lines, whose names are used
/// from there. At the top level the macro would be a statement, whose names functions do not find.
pub(crate) fn with_modules_of_statics(code: &str) -> String {
    let parsed = parse(&blank_commands(code));
    let offset = |size: TextSize| usize::from(size) - PREFIX.len();
    let mut put: Vec<(usize, String)> = Vec::new();
    for statement in top_level(&parsed.tree()) {
        let Some(call) = macro_of_statics(&statement) else { continue };
        let found = statics_within(&call);
        let Some(first) = found.first() else { continue };
        let module = format!("statics_of_{}", first.name.to_lowercase());
        let start = offset(call.syntax().text_range().start());
        let end = offset(statement.text_range().end());
        put.push((start, format!("mod {module} {{ #[allow(unused_imports)] use super::*; ")));
        let private = found.iter().filter(|found| !found.is_public);
        put.extend(private.map(|found| (offset(found.start), "pub(crate) ".to_owned())));
        let close = if call.syntax().text_range().end() == statement.text_range().end()
            && !statement.text().to_string().ends_with([';', '}'])
        {
            ";"
        } else {
            ""
        };
        put.push((end, format!("{close} }} #[allow(unused_imports)] use {module}::*;")));
    }
    let mut out = code.to_owned();
    for (at, text) in put.into_iter().rev() {
        out.insert_str(at, &text);
    }
    out
}

/// The statements of a parsed cell, its items among them.
fn statements(file: &SourceFile) -> impl Iterator<Item = ast::Stmt> {
    top_level(file).into_iter().filter_map(ast::Stmt::cast)
}

/// The same as nodes, with the last expression.
fn top_level(file: &SourceFile) -> Vec<SyntaxNode> {
    let function = file.syntax().children().find_map(ast::Fn::cast);
    let list = function.and_then(|function| function.body()).and_then(|body| body.stmt_list());
    list.map(|list| list.syntax().children().collect()).unwrap_or_default()
}

/// `thread_local! { … }` is a statement of an expression, or an item.
fn macro_of_statics(statement: &SyntaxNode) -> Option<ast::MacroCall> {
    let call = statement.descendants().take(3).find_map(ast::MacroCall::cast)?;
    let path = call.path()?.syntax().text().to_string();
    MACROS_OF_STATICS.contains(&path.rsplit("::").next()?).then_some(call)
}

/// A static in the words of a macro.
struct StaticWithin {
    name: String,
    start: TextSize,
    is_public: bool,
}

fn statics_within(call: &ast::MacroCall) -> Vec<StaticWithin> {
    let Some(tokens) = call.token_tree() else { return Vec::new() };
    let words: Vec<SyntaxElement> =
        tokens.syntax().children_with_tokens().filter(|word| !word.kind().is_trivia()).collect();
    let is = |at: usize, text: &str| {
        words.get(at).and_then(SyntaxElement::as_token).is_some_and(|token| token.text() == text)
    };
    let named = |at: usize| {
        let token = words.get(at)?.as_token()?;
        (token.kind() == SyntaxKind::IDENT).then(|| token.text().to_owned())
    };
    (0..words.len())
        .filter(|&at| is(at, "static"))
        .filter_map(|at| {
            let before = at.checked_sub(1);
            // `pub static`, or `pub(crate) static`.
            let is_public = before.is_some_and(|before| {
                is(before, "pub")
                    || before.checked_sub(1).is_some_and(|pub_| is(pub_, "pub"))
                        && words[before].kind() == SyntaxKind::TOKEN_TREE
            });
            let name = match is(at + 1, "ref") {
                true => named(at + 2),
                false => named(at + 1),
            }?;
            Some(StaticWithin { name, start: words[at].text_range().start(), is_public })
        })
        .collect()
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
    fn a_let_is_kept_in_its_cell_and_its_other_variables_are_not() {
        let types = ["a", "c", "e"].map(|name| (name.to_owned(), "i32".to_owned()));
        let types = HashMap::from(types);
        let code = "let a = 1;\nlet (b,\n     mut c) =\n  (&a, 2);\nif c > 1 { let d = &a; }";
        let (apart, within) = within_cell(code, &["b".to_owned(), "d".to_owned()], &types);
        assert_eq!(within, ["b"]);
        let kept = "let a = 1;\ntunebook::within_cell!( let (b,\n     mut c) =\n  (&a, 2); ); let mut c: i32 = c;\nif c";
        assert!(apart.starts_with(kept), "{apart}");
        // No type of it is known.
        assert_eq!(within_cell("let (b, f) = g();", &["b".to_owned()], &types).1, ["b", "f"]);
        assert_eq!(within_cell("let (b, ref e) = g();", &["b".to_owned()], &types).1, ["b", "e"]);
        assert_eq!(within_cell(code, &[], &types), (code.to_owned(), vec![]));
        for (line, names) in
            [(1, &["a"][..]), (2, &["b", "c"]), (4, &["b", "c"]), (5, &[]), (9, &[])]
        {
            assert_eq!(variables_on_line(code, line), names, "{line}");
        }
        // The last of a name counts.
        let (apart, within) = within_cell("let (a, e) = (1, 2); let a = a + e;", &[], &types);
        assert_eq!(within, [""; 0]);
        assert_eq!(
            apart,
            "tunebook::within_cell!( let (a, e) = (1, 2); ); let e: i32 = e; let a = a + e;"
        );
    }

    #[test]
    fn shell_commands_are_taken_apart() {
        let (code, commands) = without_shell_commands("!ls\nlet a = 1;\n!pwd");
        // Offsets stay.
        assert_eq!((code.as_str(), commands.as_str()), ("   \nlet a = 1;\n    ", "!ls\n!pwd"));
        assert_eq!(without_shell_commands("1 != 2").1, "");
    }

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
    fn a_cell_says_what_it_defines() {
        let names = defined(
            ":dep é\nlet (a, mut b) = f(); { let c = 1; } fn d() { let e = 1; }\nlet g: u8 = x",
        );
        assert_eq!(names, ["a", "b", "d", "g"]);
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
             tunebook::within_cell!( let f = |a: i32| a; ); p"
        );
        let lets = untyped_lets(code);
        let types =
            HashMap::from([("f".to_owned(), "{closure@cell/src/lib.rs:1:2: 3:4}".to_owned())]);
        assert_eq!(local_closures(&lets, &types).collect::<Vec<_>>(), ["f"]);
        assert_eq!(
            with_local_closures(code, &types),
            ":dep x = \"1\"\nlet (mut p, q) = pair();\ntunebook::within_cell!( let f = |a: i32| a; ); p"
        );
    }

    #[test]
    fn text_that_is_not_ascii_moves_no_place() {
        let types = HashMap::from([("x".to_owned(), "&str".to_owned())]);
        for (code, typed) in [
            (":help ééé\nlet x = \"é\";", ":help ééé\nlet x = \"é\"; let x: &str = x;"),
            ("!ls 猫 🦀\r\nlet x = \"\"; x", "!ls 猫 🦀\r\nlet x = \"\"; let x: &str = x; x"),
            (
                "let t: &str = r#\"\n:é\n!猫\n\"#; let x = t; // 🦀",
                "let t: &str = r#\"\n:é\n!猫\n\"#; let x = t; let x: &str = x; // 🦀",
            ),
        ] {
            assert_eq!(with_types(code, &untyped_lets(code), &types), typed);
        }
    }

    proptest::proptest! {
        /// Whatever a cell holds, reading it does not fail, and the types stand behind a semicolon
        /// of a `let`: without them the cell is as it was.
        #[test]
        fn any_cell_can_be_read(parts in proptest::collection::vec(0..PARTS.len(), 0..24)) {
            let code: String = parts.iter().map(|at| PARTS[*at]).collect();
            let blank = blank_commands(&code);
            assert_eq!(blank.len(), code.len());
            completeness(&code);
            let items = items(&code);
            only_calls(&code, &items);
            let names = ["x", "y", "ä"].map(|name| (name.to_owned(), "Té".to_owned()));
            let lets = untyped_lets(&code);
            for one in &lets {
                assert!(code[..one.end].ends_with(';'), "{code:?}");
            }
            let typed = with_types(&code, &lets, &HashMap::from(names));
            let binding = |name: &str, mutable: &str| format!(" let {mutable}{name}: Té = {name};");
            let mut back = typed;
            for name in ["x", "y", "ä"] {
                back = back.replace(&binding(name, "mut "), "").replace(&binding(name, ""), "");
            }
            assert_eq!(back, code);
        }

        #[test]
        fn any_text_can_be_read(code in "\\PC*") {
            completeness(&code);
            with_types(&code, &untyped_lets(&code), &HashMap::new());
        }
    }

    /// Pieces of cells.
    const PARTS: [&str; 20] = [
        "\n",
        "\r\n",
        " ",
        ":dep é",
        ":help 猫\n",
        "!ls 🦀\n",
        "let x = \"é\";",
        "let mut y = 'ß';",
        "let (x, y) = (1, \"猫\");",
        "let ä = 1;",
        "r#\"\n",
        "\"#;",
        "let x: &str = r\"\n:é\n!猫\n\";",
        "é",
        "// ü\n",
        "/* 🦀 */",
        "x",
        "{",
        "}",
        ";",
    ];

    #[test]
    fn an_impl_that_is_run_again_has_the_key_that_it_had() {
        let keys = |code: &str, known: &mut Vec<LooseImpl>| {
            let found = loose_impls(code, known);
            known.retain(|old| !found.iter().any(|new| new.is_of(old)));
            known.extend(found.clone());
            found.into_iter().map(|one| one.key[IMPL_KEY.len()..].to_owned()).collect::<Vec<_>>()
        };
        let mut known = Vec::new();
        assert_eq!(keys("impl Sound for Cat { fn sound(&self) {} }", &mut known), ["0"]);
        assert_eq!(
            keys("// é\nimpl  Sound\n for Cat { fn sound(&self) { 1 } }", &mut known),
            ["0"]
        );
        assert_eq!(keys("impl Sound for Dog { fn sound(&self) {} }", &mut known), ["1"]);
        // Inherent ones may be several, unless they define the same.
        assert_eq!(keys("impl Cat { fn sit(&self) {} }", &mut known), ["2"]);
        assert_eq!(keys("impl Cat { fn run(&self) {} }", &mut known), ["3"]);
        assert_eq!(keys("impl Cat { fn sit(&self) {} fn lie(&self) {} }", &mut known), ["2"]);
        assert_eq!(
            keys("impl Cat { fn lie(&self) {} }\nimpl Cat { fn run(&self) {} }", &mut known),
            ["2", "3"]
        );
        // evcxr keeps these with the item before them.
        assert_eq!(keys("struct Cow;\nimpl Sound for Cow {}", &mut known), [""; 0]);
        // A type with all its own takes the place of those that were run apart.
        assert_eq!(
            keys("struct Dog;\nimpl Dog {}\nimpl Sound for Dog {}\nimpl A for Dog {}", &mut known),
            ["1", "4"]
        );
        assert_eq!(keys("use a::B;\nlet x = 1;\nimpl B for X {}", &mut known), ["5"]);
    }

    #[test]
    fn an_impl_gets_a_name_on_its_line() {
        let code = ":dep é\nuse a::B;\n#[cfg(all())]\nimpl B for X {}\nimpl X { fn f() {} }\n";
        assert_eq!(
            with_named_impls(code, &loose_impls(code, &[])),
            ":dep é\nuse a::B;\n#[allow(dead_code)] const TUNEBOOK_IMPL_0: () = (); #[cfg(all())]\n\
             impl B for X {}\n#[allow(dead_code)] const TUNEBOOK_IMPL_1: () = (); impl X { fn f() {} }\n"
        );
    }

    #[test]
    fn values_with_which_nothing_would_compile_are_refused() {
        for code in [":opt é", "1\n:opt 9", ":fmt é{}", ":linker a b", ":opt 0 1", ":offline é"]
        {
            let why = refused_commands(code).expect(code);
            assert!(why.contains("expected"), "{why}");
        }
        for code in
            [":opt", ":opt s", ":fmt {:#?}", ":linker mold", "\":opt é\"", ":help é", ":opt "]
        {
            assert_eq!(refused_commands(code), None, "{code}");
        }
    }

    #[test]
    fn an_unused_result_of_this_cell_is_told() {
        let unused = |line: &str| {
            vec![("unused `std::result::Result` that must be used".into(), line.into())]
        };
        let told = told_unused("let x = 1;\n  save();", 3, &unused("save();"));
        assert!(told[0].contains("cell 3, line 2: `save();`. If it is an error"), "{told:?}");
        assert!(told_unused("let x = 1;", 3, &unused("of_an_earlier_cell();")).is_empty());
    }

    #[test]
    fn a_value_that_a_semicolon_hides_is_told() {
        for code in ["x;", "let x = 1;\nx.y ;  ", ":help\nx;\n// done\n"] {
            assert!(not_shown(code).is_some(), "{code}");
        }
        for code in ["x", "f();", "x = 1;", "let y = x;", "a::B;", "x; y()", "x; }", ""] {
            assert_eq!(not_shown(code), None, "{code}");
        }
        let told = told_unused(
            "x.len();",
            1,
            &[("unused return value of `len` that must be used".into(), "x.len();".into())],
        );
        assert!(told[0].ends_with("Without the `;` the cell shows it.\n"), "{told:?}");
    }

    #[test]
    fn statics_are_found() {
        assert_eq!(statics("static A: u8 = 1;\nfn f() { static B: u8 = 2; }"), ["A"]);
        let local = "thread_local! { static HERE: u8 = 1; pub static THERE: u8 = 2 }\nfn f() {}";
        assert_eq!(statics(local), ["HERE", "THERE"]);
        let lazy = "lazy_static::lazy_static! { static ref L: u8 = 1; }\nfn f() {}";
        assert_eq!(statics(lazy), ["L"]);
        assert!(statics("println!(\"static\"); let x = vec![1];").is_empty());
    }

    #[test]
    fn macros_of_statics_stand_in_modules() {
        let changed = |code| with_modules_of_statics(code);
        assert_eq!(
            changed(
                ":dep é\nthread_local! {\n static A: u8 = 1; pub(crate) static B: u8 = 2 }\nf()"
            ),
            ":dep é\nmod statics_of_a { #[allow(unused_imports)] use super::*; thread_local! {\n \
             pub(crate) static A: u8 = 1; pub(crate) static B: u8 = 2 } } \
             #[allow(unused_imports)] use statics_of_a::*;\nf()"
        );
        assert_eq!(
            changed("lazy_static::lazy_static!(static ref L: u8 = 1;);"),
            "mod statics_of_l { #[allow(unused_imports)] use super::*; lazy_static::lazy_static!(\
             pub(crate) static ref L: u8 = 1;); } #[allow(unused_imports)] use statics_of_l::*;"
        );
        for code in ["let x = vec![1];", "fn f() { thread_local! { static A: u8 = 1; } }", "é("] {
            assert_eq!(changed(code), code);
        }
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
