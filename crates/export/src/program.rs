//! The cells as one program.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::TokenStream;
use quote::ToTokens as _;
use syn::Item;

use crate::cell::{self, Code, Piece};
use crate::later::{methods_of_impl, methods_of_trait};
use crate::macros;
use crate::names::{self, Leaves, Variable};
use crate::notebook::{Cell, CodeCell};
use crate::parameters::{self, Parameter};
use crate::scopes::{CellScope, Placed, Scopes};
use crate::support::MODULE;
use crate::{Options, Refusal};

/// Tags of cells that are left out.
const SKIP: &str = "skip-export";
const EXERCISES: [&str; 2] = ["exercise", "solution"];
const RAISES: &str = "raises-exception";
/// papermill's tags.
const PARAMETERS: [&str; 2] = ["parameters", "injected-parameters"];

/// The variable of the program that takes those of a cell.
const KEPT: &str = "exported_notebook_kept";

/// Names that the program has itself.
const OWN: [&str; 4] = [MODULE, KEPT, "notebook_cells", "notebook_flags"];

/// What the program needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uses {
    pub(crate) tunebook: bool,
    pub(crate) tokio: bool,
    /// Whether a cell waits for a future.
    pub(crate) awaits: bool,
    /// Whether a cell that leaves early or waits has variables that live on.
    pub(crate) keeps: bool,
    /// Whether there are parameters.
    pub(crate) flags: bool,
}

impl Uses {
    pub(crate) fn needs_checkout(&self) -> bool {
        self.tunebook || self.tokio || self.awaits || self.flags
    }
}

/// A notebook that can be a program.
pub(crate) struct Program {
    attributes: Vec<String>,
    root: Vec<Placed>,
    sections: Vec<Section>,
    parameters: Vec<Parameter>,
    uses: Uses,
}

enum Section {
    Text(String),
    Cell { number: usize, scope: CellScope, body: String },
}

/// A cell that is exported, read.
struct Loaded {
    cell: CodeCell,
    code: Code,
}

impl Loaded {
    fn is(&self, tag: &str) -> bool {
        self.cell.tags.contains(tag)
    }

    fn statements(&self) -> impl Iterator<Item = &Piece> {
        self.code.pieces.iter().filter(|piece| piece.item().is_none())
    }

    fn refuse(&self, line: Option<usize>, reason: impl Into<String>) -> Refusal {
        Refusal { cell: self.cell.number, line, reason: reason.into() }
    }
}

enum Read {
    Text(String),
    Code(Loaded),
    /// What a cell that is left out defines, and its tag.
    LeftOut {
        number: usize,
        tag: &'static str,
        variables: Vec<String>,
        items: Vec<Item>,
    },
}

impl Read {
    /// The items of a cell that is exported.
    fn items(&self) -> Vec<Item> {
        match self {
            Self::Code(loaded) => loaded.code.pieces.iter().filter_map(Piece::item).collect(),
            _ => Vec::new(),
        }
    }
}

impl Program {
    pub(crate) fn new(
        cells: Vec<Cell>,
        options: &Options,
        notes: &mut Vec<String>,
    ) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let mut all = Vec::new();
        for cell in cells {
            match cell {
                Cell::Text(text) => all.push(Read::Text(text)),
                Cell::Code(cell) => match read(cell, options, notes) {
                    Ok(read) => all.push(read),
                    Err(refusal) => refusals.push(refusal),
                },
            }
        }
        // What later cells use of one that cannot be read is not known.
        if !refusals.is_empty() {
            return Err(refusals);
        }
        refusals.extend(left_out_but_used(&all));
        let mut program = Self {
            attributes: Vec::new(),
            root: Vec::new(),
            sections: Vec::new(),
            parameters: Vec::new(),
            uses: Uses::default(),
        };
        let items: Vec<Item> = all.iter().flat_map(Read::items).collect();
        let defining = macros::that_define(items.iter());
        let mut scopes = Scopes::default();
        for at in 0..all.len() {
            match &all[at] {
                Read::Text(text) => program.sections.push(Section::Text(text.clone())),
                Read::LeftOut { .. } => {}
                Read::Code(loaded) => {
                    let later = |name: &str| is_used(&all[at + 1..], name);
                    let result = refuse_own_names(loaded)
                        .and_then(|()| refuse_defining(loaded, &defining))
                        .and_then(|()| program.cell(loaded, &mut scopes, later));
                    refusals.extend(result.err());
                }
            }
        }
        if !refusals.is_empty() {
            refusals.sort_by_key(|refusal| refusal.cell);
            return Err(refusals);
        }
        program.root = scopes.root;
        notes.extend(statics(&all));
        Ok(program)
    }

    /// What the program needs.
    pub(crate) fn uses(&self) -> Uses {
        self.uses.clone()
    }

    /// The flags.
    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn cell(
        &mut self,
        loaded: &Loaded,
        scopes: &mut Scopes,
        later: impl Fn(&str) -> bool,
    ) -> Result<(), Refusal> {
        let Loaded { cell, code } = loaded;
        for piece in &code.pieces {
            if let Some(Item::ExternCrate(item)) = piece.item() {
                let name = item.ident.to_string();
                if !["alloc", "core", "std", "tunebook"].contains(&name.as_str()) {
                    return Err(loaded.refuse(
                        Some(piece.line),
                        format!("`extern crate {name}`: the crate has no such dependency"),
                    ));
                }
            }
            let words = names::words(piece.statement.to_token_stream());
            self.uses.tunebook |= words.iter().any(|word| word == "tunebook");
            self.uses.tokio |= words.iter().any(|word| word == "tokio");
        }
        for attribute in &code.attributes {
            if !self.attributes.contains(attribute) {
                self.attributes.push(attribute.clone());
            }
        }
        let scope = scopes.cell(cell.number, code)?;
        let is_parameters = PARAMETERS.iter().any(|tag| loaded.is(tag));
        let texts = match is_parameters {
            true => self.parameter_texts(loaded)?,
            false => loaded.statements().map(|piece| piece.text.clone()).collect(),
        };
        let body = self.body(loaded, texts, later)?;
        self.sections.push(Section::Cell { number: cell.number, scope, body });
        Ok(())
    }

    /// The statements of a cell of parameters, with the flags in them.
    fn parameter_texts(&mut self, loaded: &Loaded) -> Result<Vec<String>, Refusal> {
        let mut texts = Vec::new();
        for piece in loaded.statements() {
            let (parameter, text) = parameters::read(piece)
                .map_err(|reason| loaded.refuse(Some(piece.line), reason))?;
            texts.push(text);
            match self.parameters.iter_mut().find(|known| known.name == parameter.name) {
                // Injected ones are the defaults then.
                Some(known) if known.of == parameter.of => {
                    known.default = parameter.default;
                }
                Some(known) => {
                    return Err(loaded.refuse(
                        Some(piece.line),
                        format!("the parameter `{}` has been of type {}", known.name, known.of),
                    ));
                }
                None => {
                    let flag = parameters::flag_name(&parameter.name);
                    let known = self.parameters.iter().map(|one| &one.name);
                    if let Some(other) =
                        known.into_iter().find(|one| parameters::flag_name(one) == flag)
                    {
                        return Err(loaded.refuse(
                            Some(piece.line),
                            format!(
                                "the parameters `{other}` and `{}` have the same flag; rename one",
                                parameter.name
                            ),
                        ));
                    }
                    self.parameters.push(parameter);
                }
            }
        }
        self.uses.flags |= !self.parameters.is_empty();
        Ok(texts)
    }

    /// The statements of a cell, indented.
    fn body(
        &mut self,
        loaded: &Loaded,
        mut texts: Vec<String>,
        later: impl Fn(&str) -> bool,
    ) -> Result<String, Refusal> {
        let code = &loaded.code;
        let may_fail = loaded.is(RAISES);
        let mut variables: Vec<Variable> = Vec::new();
        let statements = loaded.statements().map(|piece| &piece.statement);
        for variable in statements.flat_map(names::variables) {
            variables.retain(|other| other.name != variable.name);
            variables.push(variable);
        }
        let count = variables.len();
        variables.retain(|variable| later(&variable.name));
        // Variables that no later cell names live on in the notebook: a server, a guard.
        let lives_on = variables.len() < count;
        let (mut awaits, mut returns) = (None, None);
        for (piece, text) in loaded.statements().zip(&mut texts) {
            let leaves = names::leaves(&piece.statement);
            if leaves.awaits {
                awaits = awaits.or(Some(piece.line));
            }
            if leaves.returns_in_macro {
                return Err(loaded.refuse(
                    Some(piece.line),
                    "a `return` among the arguments of a macro cannot be followed; write it outside",
                ));
            }
            if !leaves.returns.is_empty() {
                returns = returns.or(Some(piece.line));
                *text = with_returns(piece, &leaves, may_fail && !lives_on);
            }
        }
        let statements = join(loaded, &texts);
        let list = variables.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
        let (values, pattern) = tuples(&variables);

        const OK: &str = "::std::result::Result::Ok";
        const SOME: &str = "::std::option::Option::Some";
        const NONE: &str = "::std::option::Option::None";
        if may_fail {
            if !variables.is_empty() {
                return Err(loaded.refuse(
                    None,
                    format!(
                        "it may fail (`{RAISES}`), and later cells use its variables: {list}; \
                         define them in a cell of their own"
                    ),
                ));
            }
            if awaits.is_some() {
                return Err(loaded.refuse(
                    awaits,
                    format!("a cell tagged `{RAISES}` cannot wait for a future; use a function"),
                ));
            }
            if !lives_on {
                return Ok(format!(
                    "{MODULE}::may_fail(|| {{\n{statements}    {OK}(())\n    }});\n"
                ));
            }
            self.uses.keeps = true;
            return Ok(format!(
                "let {KEPT} = ::std::cell::Cell::new({NONE}::<()>);\n    {MODULE}::may_fail(|| \
                 {MODULE}::keep(&{KEPT}, async {{\n{statements}    {KEPT}.set({SOME}(()));\n    \
                 ::std::future::pending().await\n    }}).map(|_| ()));\n"
            ));
        }
        self.uses.awaits |= awaits.is_some();
        let (awaits, returns) = (awaits.is_some(), returns.is_some());
        if !awaits && !returns {
            let tail = indented(code.tail.trim_end());
            return Ok(format!("{statements}{}", line_of(&tail)));
        }
        let result = format!("::std::result::Result::<_, {MODULE}::Failed>");
        if !returns && !lives_on {
            return Ok(format!(
                "let {pattern} = {MODULE}::block_on(async {{\n{statements}    \
                 {result}::Ok({values})\n    }})?;\n"
            ));
        }
        let of = format!("::std::result::Result<::std::option::Option<_>, {MODULE}::Failed>");
        self.uses.keeps |= lives_on;
        let (begin, last, end) = match (lives_on, awaits) {
            (true, awaits) => (
                format!(
                    "{MODULE}::{}(&{KEPT}, async {{",
                    if awaits { "block_on_and_keep" } else { "keep" }
                ),
                format!(
                    "{KEPT}.set({SOME}({values}));\n    ::std::future::pending::<{of}>().await"
                ),
                "})?",
            ),
            (false, true) => (
                format!("{MODULE}::block_on(async {{"),
                format!("{result}::Ok({SOME}({values}))"),
                "})?",
            ),
            (false, false) => {
                (format!("(|| -> {of} {{"), format!("{OK}({SOME}({values}))"), "})()?")
            }
        };
        let (before, behind) = if variables.is_empty() {
            ("let _: ::std::option::Option<()> =".to_owned(), String::new())
        } else {
            let missed = format!("{MODULE}::without({list:?})");
            (
                format!("let {SOME}({pattern}) ="),
                format!(" else {{ return ::std::result::Result::Err({missed}) }}"),
            )
        };
        let slot = match lives_on {
            true => format!("let {KEPT} = ::std::cell::Cell::new({NONE});\n    "),
            false => String::new(),
        };
        Ok(format!("{slot}{before} {begin}\n{statements}    {last}\n    {end}{behind};\n"))
    }

    /// The text of `main.rs`.
    pub(crate) fn main(&self, options: &Options) -> String {
        let mut text = format!(
            "//! {} as a program. Written by `tunebook export`.\n//!\n//! Build it in this folder \
             (`cargo build`), and start it where the notebook's paths begin: in the folder\n//! that \
             the kernel starts in. What cells show is printed and kept as files under `out/`.\n\n\
             // The cells are as they were written: of the compiler's advice only a `Result` that \
             nobody looks at counts.\n\
             #![allow(nonstandard_style, non_local_definitions, unused)]\n\
             #![allow(text_direction_codepoint_in_comment)]\n\
             #![warn(unused_must_use)]\n",
            crate::one_line(&options.notebook)
        );
        for attribute in &self.attributes {
            text.push_str(attribute);
            text.push('\n');
        }
        text.push_str(&format!("\nmod {MODULE};\n\nuse {MODULE}::EvcxrDisplay as _;\n"));
        let mut by_cell: BTreeMap<usize, Vec<&Placed>> = BTreeMap::new();
        for placed in &self.root {
            by_cell.entry(placed.cell).or_default().push(placed);
        }
        for (number, items) in by_cell {
            text.push_str(&format!("\n// %% items of [{number}]\n"));
            let (macros, others): (Vec<&Placed>, Vec<&Placed>) =
                items.into_iter().partition(|placed| is_rules(&placed.item));
            for placed in macros.into_iter().chain(others) {
                text.push_str(&item_text(placed));
            }
        }
        let flags = match self.parameters.is_empty() {
            true => String::new(),
            false => format!("notebook_flags: &{MODULE}::Flags"),
        };
        text.push_str(&format!(
            "\nfn main() -> ::std::process::ExitCode {{\n    {MODULE}::run(notebook_cells)\n}}\n\n\
             fn notebook_cells({flags}) -> ::std::result::Result<(), {MODULE}::Failed> {{\n"
        ));
        let mut open = 0;
        for section in &self.sections {
            match section {
                Section::Text(words) => {
                    text.push_str("\n    // %% [markdown]\n");
                    for line in words.trim_end().lines() {
                        text.push_str(format!("    // {line}").trim_end());
                        text.push('\n');
                    }
                }
                Section::Cell { number, scope, body } => {
                    text.push_str(&format!("\n    // %% [{number}]\n"));
                    if scope.opens {
                        text.push_str("    { // Names are defined anew from here on.\n");
                        open += 1;
                    }
                    for placed in &scope.items {
                        text.push_str(&line_of(&indented(item_text(placed).trim_end())));
                    }
                    if !body.trim().is_empty() {
                        text.push_str(&format!("    {MODULE}::cell({number});\n{}", line_of(body)));
                    }
                }
            }
        }
        text.push_str("\n    ::std::result::Result::Ok(())\n");
        text.push_str(&"    }\n".repeat(open));
        text.push_str("}\n");
        text
    }
}

fn is_rules(item: &Item) -> bool {
    matches!(item, Item::Macro(item) if item.ident.is_some())
}

/// An item with its comments, as the cell has it.
fn item_text(placed: &Placed) -> String {
    let again = if placed.is_again { "// Again, with the names that are new here.\n" } else { "" };
    if placed.text.is_empty() {
        return String::new();
    }
    format!("{again}{}{}\n", placed.leading.trim_start_matches([' ', '\n']), placed.text)
}

/// Text as lines of the function, whose first begins with four spaces.
fn line_of(text: &str) -> String {
    let text = text.trim_matches('\n');
    if text.trim().is_empty() {
        return String::new();
    }
    let text = text.trim_end();
    if text.starts_with(' ') { format!("{text}\n") } else { format!("    {text}\n") }
}

/// Reads a cell, or notes that it is left out.
fn read(cell: CodeCell, options: &Options, notes: &mut Vec<String>) -> Result<Read, Refusal> {
    let number = cell.number;
    let exercise = EXERCISES.into_iter().find(|tag| cell.tags.contains(*tag));
    let tag = match cell.tags.contains(SKIP) {
        true => Some(SKIP),
        false => exercise.filter(|_| !options.with_exercises),
    };
    if let Some(tag) = tag {
        notes.push(format!("cell {number}: left out, as it is tagged `{tag}`"));
        let code = Code::read_left_out(&cell.source).unwrap_or_else(|(_, reason)| {
            // Nor could the kernel.
            notes.push(format!("cell {number}: taken to define nothing: {reason}"));
            Code::default()
        });
        let statements = code.pieces.iter().filter(|piece| piece.item().is_none());
        let variables = statements.flat_map(|piece| names::variables(&piece.statement));
        return Ok(Read::LeftOut {
            number,
            tag,
            variables: variables.map(|variable| variable.name).collect(),
            items: code.pieces.iter().filter_map(Piece::item).collect(),
        });
    }
    match Code::read(&cell.source) {
        Ok(code) => {
            for command in &code.dropped {
                notes.push(format!("cell {number}: `{command}` is left out"));
            }
            if cell.tags.contains(RAISES) {
                notes.push(format!(
                    "cell {number}: it may fail as it runs (`{RAISES}`); if it is to fail as it is \
                     compiled, the crate cannot be built: tag it `{SKIP}`"
                ));
            }
            Ok(Read::Code(Loaded { cell, code }))
        }
        Err((_, reason)) if cell.tags.contains(RAISES) => {
            notes.push(format!("cell {number}: left out, as it is to fail: {reason}"));
            Ok(Read::LeftOut { number, tag: RAISES, variables: vec![], items: vec![] })
        }
        Err((line, reason)) => Err(Refusal { cell: number, line, reason }),
    }
}

/// Refuses names that the program has itself.
fn refuse_own_names(loaded: &Loaded) -> Result<(), Refusal> {
    for piece in &loaded.code.pieces {
        let mut defined: Vec<String> =
            names::variables(&piece.statement).into_iter().map(|one| one.name).collect();
        defined.extend(piece.item().iter().flat_map(names::defined_by));
        if let Some(name) = defined.iter().find(|name| OWN.contains(&name.as_str())) {
            return Err(loaded.refuse(
                Some(piece.line),
                format!("the program has a `{name}` of its own; give this one another name"),
            ));
        }
    }
    Ok(())
}

/// Refuses a macro that defines something where it is called.
fn refuse_defining(loaded: &Loaded, defining: &BTreeSet<String>) -> Result<(), Refusal> {
    for piece in loaded.statements() {
        if let Some(name) = macros::defines_here(&piece.statement, defining) {
            return Err(loaded.refuse(
                Some(piece.line),
                format!(
                    "what `{name}!` defines here is gone after the cell in the notebook, and would \
                     not be in a program: write it without the macro, or put the call in a block \
                     (`{{ … }}`)"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether cells use a variable before they define one of its name.
fn is_used(cells: &[Read], name: &str) -> bool {
    first_use(cells, name, false).is_some()
}

/// The first cell that uses a name before it is defined; items count, too, if asked.
fn first_use(cells: &[Read], name: &str, in_items: bool) -> Option<usize> {
    let searched = name;
    for read in cells {
        let Read::Code(loaded) = read else { continue };
        for piece in &loaded.code.pieces {
            if let Some(item) = piece.item() {
                if !in_items {
                    continue;
                }
                let is_method = |name: &String| names::method_mark(name) == searched;
                let defines_method = matches!(&item, Item::Impl(item)
                    if methods_of_impl(item).iter().any(is_method));
                if defines_method || names::defined_by(&item).iter().any(|defined| defined == name)
                {
                    return None;
                }
                if names::used_by_item(&item).contains(name)
                    || names::marks_in_item(&item).contains(name)
                {
                    return Some(loaded.cell.number);
                }
                continue;
            }
            let used = match in_items {
                true => &names::free_in(&piece.statement) | &names::marks_in(&piece.statement),
                false => names::used_by(&piece.statement),
            };
            if used.contains(name) {
                return Some(loaded.cell.number);
            }
            if names::variables(&piece.statement).iter().any(|variable| variable.name == name) {
                return None;
            }
        }
    }
    None
}

/// Cells that use what a left out cell defines.
fn left_out_but_used(all: &[Read]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (at, read) in all.iter().enumerate() {
        let Read::LeftOut { number, tag, variables, items } = read else { continue };
        let before: Vec<Item> = all[..at].iter().flat_map(Read::items).collect();
        let mut lost = missing(&before, items);
        lost.extend(items.iter().flat_map(|item| missing_methods(&before, item)));
        lost.extend(variables.iter().map(|name| (name.clone(), name.clone())));
        let way_out = if EXERCISES.contains(tag) { ", or use --with-exercises" } else { "" };
        for (name, of) in lost {
            let Some(cell) = first_use(&all[at + 1..], &name, true) else { continue };
            let by = if names::unmarked(&name) == of {
                String::new()
            } else {
                format!(" by way of `{name}`")
            };
            refusals.push(Refusal {
                cell,
                line: None,
                reason: format!(
                    "it uses `{of}` of cell {number}{by}, which is left out (`{tag}`); tag this cell, \
                     too{way_out}"
                ),
            });
            break;
        }
    }
    refusals
}

/// The names that a left out cell gives a meaning: those of its items, and those of earlier items
/// that use one of these, each with the name that it is about.
fn missing(before: &[Item], items: &[Item]) -> BTreeMap<String, String> {
    let mut lost = BTreeMap::new();
    for item in items {
        for name in names::defined_by(item) {
            let former = before.iter().rev().find(|one| names::defined_by(one).contains(&name));
            // The same once more changes nothing.
            if former.is_none_or(|former| !is_same(former, item, &name)) {
                lost.insert(name.clone(), name);
            }
        }
    }
    loop {
        let before_len = lost.len();
        for item in before {
            let used = names::used_by_item(item);
            let Some(of) = used.iter().find_map(|name| lost.get(name)).cloned() else { continue };
            for name in names::defined_by(item) {
                lost.entry(name).or_insert_with(|| of.clone());
            }
        }
        if lost.len() == before_len {
            return lost;
        }
    }
}

/// The names that an `impl` of a left out cell gives another meaning: without it a call would not
/// compile, but where an earlier trait or type has a method of the name.
fn missing_methods(before: &[Item], item: &Item) -> Vec<(String, String)> {
    let Item::Impl(of) = item else { return Vec::new() };
    if of.trait_.as_ref().is_some_and(|(_, path, _)| path.is_ident("Drop")) {
        let words = names::words(of.self_ty.to_token_stream());
        return words.first().map(|name| (name.clone(), name.clone())).into_iter().collect();
    }
    let has = |other: &Item, name: &String| match other {
        Item::Impl(other) => methods_of_impl(other).contains(name),
        Item::Trait(other) => methods_of_trait(other).contains(name),
        _ => false,
    };
    let is_there = before
        .iter()
        .any(|other| other.to_token_stream().to_string() == item.to_token_stream().to_string());
    let methods = methods_of_impl(of).into_iter().filter(|_| !is_there);
    methods
        .filter(|name| before.iter().any(|other| has(other, name)))
        .map(|name| (names::method_mark(&name), name))
        .collect()
}

/// Whether two items give a name the same meaning.
fn is_same(one: &Item, other: &Item, name: &str) -> bool {
    if let (Item::Use(one), Item::Use(other)) = (one, other) {
        let of = |item: &syn::ItemUse| {
            names::imports(item).into_iter().find(|import| import.name.as_deref() == Some(name))
        };
        return of(one) == of(other);
    }
    one.to_token_stream().to_string() == other.to_token_stream().to_string()
}

/// Notes about statics that keep their values from cell to cell, those within functions included.
fn statics(all: &[Read]) -> Vec<String> {
    let mut notes = Vec::new();
    for read in all {
        let Read::Code(loaded) = read else { continue };
        for item in read.items() {
            for name in names::changing_statics(&item) {
                notes.push(format!(
                    "cell {}: the static `{name}` keeps its value from cell to cell; in the \
                     notebook it starts anew in each",
                    loaded.cell.number
                ));
            }
        }
    }
    notes
}

/// The tuple of variables, as values and as a pattern.
fn tuples(variables: &[Variable]) -> (String, String) {
    let values: String = variables.iter().map(|one| format!("{}, ", one.name)).collect();
    let pattern: String = variables
        .iter()
        .map(|one| format!("{}{}, ", if one.is_mut { "mut " } else { "" }, one.name))
        .collect();
    (format!("({})", values.trim_end()), format!("({})", pattern.trim_end()))
}

/// The statement with `return`s that leave the closure or block which the cell is put into.
fn with_returns(piece: &Piece, leaves: &Leaves, may_fail: bool) -> String {
    let mut text = piece.text.clone();
    let mut returns = leaves.returns.clone();
    returns.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    for (range, value) in returns {
        match value {
            Some(_) if may_fail => {}
            Some(value) => {
                text.insert(value.end - piece.start, ')');
                text.insert_str(value.start - piece.start, &format!("{MODULE}::left("));
            }
            None => {
                let of = match may_fail {
                    true => "::std::result::Result::Ok(())",
                    false => "::std::result::Result::Ok(::std::option::Option::None)",
                };
                text.insert_str(range.end - piece.start, &format!(" {of}"));
            }
        }
    }
    text
}

/// The statements with their comments, indented; the value of the last expression is shown.
fn join(loaded: &Loaded, texts: &[String]) -> String {
    let last = loaded.code.pieces.len();
    let mut joined = String::new();
    let mut texts = texts.iter();
    for (at, piece) in loaded.code.pieces.iter().enumerate() {
        if piece.item().is_some() {
            continue;
        }
        let Some(text) = texts.next() else { break };
        let mut leading = indented(&piece.leading);
        // What follows the last line break is the statement's own place.
        if leading.rsplit_once('\n').is_some_and(|(_, rest)| rest.trim().is_empty()) {
            leading.push_str("    ");
        }
        joined.push_str(if joined.is_empty() { leading.trim_start() } else { &leading });
        let shown = at + 1 == last && piece.is_value();
        let text = if shown { format!("({text}).evcxr_display();") } else { text.clone() };
        joined.push_str(&indented(&text));
        joined.push_str(&piece.trailing);
    }
    line_of(&joined)
}

/// The text with four more spaces before each line but the first, and those within literals.
fn indented(text: &str) -> String {
    let literals = match text.parse::<TokenStream>() {
        Ok(tokens) => cell::long_literals(tokens, text, 0),
        // Comments only.
        Err(_) => Vec::new(),
    };
    let mut out = String::with_capacity(text.len());
    let mut position = 0;
    for line in text.split_inclusive('\n') {
        let is_within =
            literals.iter().any(|range| range.contains(&position) && range.start < position);
        if position > 0 && !is_within && !line.trim().is_empty() {
            out.push_str("    ");
        }
        out.push_str(line);
        position += line.len();
    }
    out
}
