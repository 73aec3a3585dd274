//! Which definitions the type of a variable is made of.
//!
//! A variable is kept under its name, and its `TypeId` says whether a cell may have it back. That id
//! covers the names of a type's fields, not their types: after `struct S { rate: u32 }` was run again
//! as `struct S { rate: f32 }` an old value would be read as what it is not. So the name carries a
//! number, too, which changes with the text of every definition that the type rests on: its own, those
//! of its fields, constants in array lengths, traits behind `dyn`, and the files of a path dependency.
//! Bodies of methods, comments and derives do not count: they change no value.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use ra_ap_syntax::ast::{self, AstNode, HasArgList, HasGenericArgs, HasName};
use ra_ap_syntax::{Edition, SourceFile, SyntaxKind, SyntaxNode, SyntaxToken};

use super::path_deps::PathDeps;

/// Stands between a variable's name and the number. No identifier holds it.
const BETWEEN: char = '@';
const STORE: &str = "evcxr_variable_store";
/// Attributes that change no value of the type that they stand at.
const INERT: [&str; 9] =
    ["allow", "deny", "derive", "doc", "expect", "must_use", "non_exhaustive", "serde", "warn"];
/// Names that a glob import does not bring.
const WELL_KNOWN: [&str; 8] = ["Box", "None", "Option", "Result", "Self", "Some", "String", "Vec"];

/// The generated code of a cell with the numbers behind the names of its variables. Line breaks stay.
pub(super) fn with_definitions(code: &str, edited: &PathDeps) -> String {
    if !code.contains(STORE) {
        return code.to_owned();
    }
    let root = SourceFile::parse(code, Edition::Edition2024).tree().syntax().clone();
    let definitions = Definitions::read(&root, edited);
    let calls = root.descendants().filter_map(ast::MethodCallExpr::cast);
    let mut out = code.to_owned();
    for (place, number) in calls.filter_map(|call| definitions.place(&call)).rev_sorted() {
        let name = &code[place.clone()];
        out.replace_range(place.clone(), &format!("concat!({name}, \"{BETWEEN}{number}\")"));
    }
    out
}

/// Places from the last to the first, so that a change moves none that is still to come.
trait RevSorted: Iterator<Item = (Range<usize>, String)> + Sized {
    fn rev_sorted(self) -> Vec<Self::Item> {
        let mut all: Vec<_> = self.collect();
        all.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
        all
    }
}

impl<I: Iterator<Item = (Range<usize>, String)>> RevSorted for I {}

/// A definition: its text, and the names that it rests on.
#[derive(Debug)]
struct Definition {
    text: String,
    names: Vec<String>,
}

/// The definitions in the code of a cell, by name.
struct Definitions<'a> {
    by_name: HashMap<String, Vec<Definition>>,
    /// The first parts of glob imports.
    globs: BTreeSet<String>,
    edited: &'a PathDeps,
}

impl<'a> Definitions<'a> {
    fn read(root: &SyntaxNode, edited: &'a PathDeps) -> Self {
        let mut all = Self { by_name: HashMap::new(), globs: BTreeSet::new(), edited };
        for node in root.descendants() {
            // No variable has a type that a function defines inside.
            if node.ancestors().skip(1).any(|node| node.kind() == SyntaxKind::FN) {
                continue;
            }
            let Some(item) = ast::Item::cast(node) else { continue };
            match &item {
                ast::Item::Use(item) => {
                    if let Some(tree) = item.use_tree() {
                        all.add_use(&tree, &[]);
                    }
                }
                // An associated type or constant, which `Cat::Out` names.
                ast::Item::Impl(item) => {
                    let items = item.assoc_item_list().into_iter().flat_map(|l| l.assoc_items());
                    for item in items {
                        match item {
                            ast::AssocItem::TypeAlias(item) => all.add(item.name(), item.syntax()),
                            ast::AssocItem::Const(item) => all.add(item.name(), item.syntax()),
                            _ => {}
                        }
                    }
                }
                ast::Item::Struct(item) => all.add(item.name(), item.syntax()),
                ast::Item::Enum(item) => all.add(item.name(), item.syntax()),
                ast::Item::Union(item) => all.add(item.name(), item.syntax()),
                ast::Item::TypeAlias(item) => all.add(item.name(), item.syntax()),
                ast::Item::Trait(item) => all.add(item.name(), item.syntax()),
                ast::Item::Const(item) => all.add(item.name(), item.syntax()),
                ast::Item::Static(item) => all.add(item.name(), item.syntax()),
                ast::Item::Fn(item) => all.add(item.name(), item.syntax()),
                ast::Item::MacroRules(item) => all.add(item.name(), item.syntax()),
                _ => {}
            }
        }
        all
    }

    fn add(&mut self, name: Option<ast::Name>, item: &SyntaxNode) {
        let Some(name) = name else { return };
        let definition = Definition { text: text(item), names: names(item) };
        self.by_name.entry(name.text().to_string()).or_default().push(definition);
    }

    /// A name that is imported rests on the parts of its path.
    fn add_use(&mut self, tree: &ast::UseTree, before: &[String]) {
        let mut path = before.to_vec();
        path.extend(tree.path().into_iter().flat_map(|path| names(path.syntax())));
        if let Some(list) = tree.use_tree_list() {
            list.use_trees().for_each(|tree| self.add_use(&tree, &path));
        } else if tree.star_token().is_some() {
            self.globs.extend(path.into_iter().next());
        } else {
            let renamed = tree.rename().and_then(|rename| rename.name());
            let name = renamed.map(|name| name.text().to_string()).or_else(|| path.last().cloned());
            if let Some(name) = name {
                let definition = Definition { text: String::new(), names: path };
                self.by_name.entry(name).or_default().push(definition);
            }
        }
    }

    /// Where a variable is put, looked at or taken: the place of its name, and the number of its
    /// type.
    fn place(&self, call: &ast::MethodCallExpr) -> Option<(Range<usize>, String)> {
        let method = call.name_ref()?;
        if !["put_variable", "keep_variable", "check_variable", "take_variable"]
            .contains(&method.text())
            || call.receiver()?.syntax().text() != STORE
        {
            return None;
        }
        let name = call.arg_list()?.args().next()?;
        if !name.syntax().text().to_string().starts_with("stringify!(") {
            return None;
        }
        let number = self.number(call.generic_arg_list()?.syntax())?;
        let range = name.syntax().text_range();
        Some((usize::from(range.start())..usize::from(range.end()), number))
    }

    /// The number of a type; none if it rests on no definition that could change.
    fn number(&self, of: &SyntaxNode) -> Option<String> {
        let mut todo = names(of);
        let (mut seen, mut texts) = (BTreeSet::new(), BTreeSet::new());
        let mut unknown = false;
        while let Some(name) = todo.pop() {
            if seen.contains(&name) {
                continue;
            }
            match self.by_name.get(&name) {
                Some(definitions) => {
                    for definition in definitions {
                        texts.insert((name.clone(), definition.text.as_str()));
                        todo.extend(definition.names.iter().cloned());
                    }
                }
                None => {
                    unknown |= name.starts_with(char::is_uppercase)
                        && !WELL_KNOWN.contains(&name.as_str());
                }
            }
            seen.insert(name);
        }
        texts.retain(|(_, text)| !text.is_empty());
        let from_edited = self
            .edited
            .names
            .iter()
            .any(|name| seen.contains(name) || unknown && self.globs.contains(name));
        if texts.is_empty() && !from_edited {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        from_edited.then_some(&self.edited.fingerprint).hash(&mut hasher);
        Some(format!("{:016x}", hasher.finish()))
    }
}

/// Whether a token says nothing about values: it stands in an inert attribute, or in the body of a
/// method of a trait.
fn is_inert(token: &SyntaxToken) -> bool {
    token.parent_ancestors().any(|node| match node.kind() {
        SyntaxKind::ATTR => ast::Attr::cast(node)
            .and_then(|attribute| attribute.simple_name())
            .is_some_and(|name| INERT.contains(&name.as_str())),
        SyntaxKind::BLOCK_EXPR => {
            node.parent().filter(|parent| parent.kind() == SyntaxKind::FN).is_some_and(|function| {
                function.ancestors().any(|node| node.kind() == SyntaxKind::TRAIT)
            })
        }
        _ => false,
    })
}

fn tokens(node: &SyntaxNode) -> impl Iterator<Item = SyntaxToken> {
    node.descendants_with_tokens()
        .filter_map(|element| element.into_token())
        .filter(|token| !token.kind().is_trivia() && !is_inert(token))
}

fn text(node: &SyntaxNode) -> String {
    let tokens: Vec<String> = tokens(node).map(|token| token.text().to_owned()).collect();
    tokens.join(" ")
}

/// The names that code refers to: those of paths, and all in a macro's arguments.
fn names(node: &SyntaxNode) -> Vec<String> {
    let refers = |token: &SyntaxToken| {
        token.kind() == SyntaxKind::IDENT
            && token.parent().is_some_and(|parent| {
                matches!(parent.kind(), SyntaxKind::NAME_REF | SyntaxKind::TOKEN_TREE)
            })
    };
    tokens(node).filter(refers).map(|token| token.text().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that a variable of type `of` gets among these items.
    fn number(items: &str, of: &str) -> Option<String> {
        number_with(items, of, &PathDeps::default())
    }

    fn number_with(items: &str, of: &str, edited: &PathDeps) -> Option<String> {
        let code = format!(
            "{items}\nfn run_user_code_1() {{\nvars_ok &= evcxr_variable_store.check_variable::<{of}>(stringify!(x));\n\
             let x = evcxr_variable_store.take_variable::<{of}>(stringify!(x));\n{{ struct S {{ own: u8 }} }}\n\
             evcxr_variable_store.put_variable::<{of}>(stringify!(x), x);\n}}\n"
        );
        let numbered = with_definitions(&code, edited);
        assert_eq!(numbered.lines().count(), code.lines().count());
        let mut found = numbered.split(BETWEEN).skip(1).map(|rest| rest[..16].to_owned());
        let first = found.next();
        if let Some(number) = &first {
            assert_eq!(found.collect::<Vec<_>>(), [number.as_str(), number.as_str()], "{numbered}");
            assert!(numbered.contains(&format!(
                "check_variable::<{of}>(concat!(stringify!(x), \"@{number}\"));"
            )));
        } else {
            assert_eq!(numbered, code);
        }
        first
    }

    #[test]
    fn what_changes_values_changes_the_number() {
        for (before, after, of) in [
            ("struct S { rate: u32 }", "struct S { rate: f32 }", "S"),
            ("struct S(u64);", "struct S(String);", "S"),
            ("enum S { One(u32) }", "enum S { One(f32) }", "S"),
            ("struct S { a: u8 }", "#[repr(C)] struct S { a: u8 }", "S"),
            // Within another type, by name and by path.
            ("struct S(u8); struct T(S);", "struct S(i8); struct T(S);", "Vec<T>"),
            ("mod m { pub struct S(u8); }", "mod m { pub struct S(i8); }", "crate::m::S"),
            (
                "mod m { pub struct S(u8); } use m::S as R;",
                "mod m { pub struct S(i8); } use m::S as R;",
                "R",
            ),
            ("type A = u8; struct S(A);", "type A = i8; struct S(A);", "S"),
            (
                "const N: usize = 1; struct S([u8; N]);",
                "const N: usize = 2; struct S([u8; N]);",
                "S",
            ),
            (
                "const fn n() -> usize { 1 } struct S([u8; n()]);",
                "const fn n() -> usize { 2 } struct S([u8; n()]);",
                "S",
            ),
            (
                "trait T { fn a(&self); fn b(&self); }",
                "trait T { fn b(&self); fn a(&self); }",
                "Box<dyn T>",
            ),
            (
                "trait T { type O; } impl T for u8 { type O = u8; } struct S(<u8 as T>::O);",
                "trait T { type O; } impl T for u8 { type O = i8; } struct S(<u8 as T>::O);",
                "S",
            ),
            (
                "macro_rules! t { () => { u8 } } struct S(t!());",
                "macro_rules! t { () => { i8 } } struct S(t!());",
                "S",
            ),
        ] {
            let (first, second) = (number(before, of), number(after, of));
            assert!(first.is_some() && second.is_some(), "{before}");
            assert_ne!(first, second, "{before}");
        }
    }

    #[test]
    fn what_changes_no_value_does_not() {
        for (before, after) in [
            (
                "struct S { a: u8 }",
                "/// A thing.\n#[derive(Debug, Clone)]\nstruct  S {\n    a: u8, // one\n}"
                    .replace("u8,", "u8")
                    .as_str(),
            ),
            (
                "struct S(u8); impl S { fn f() -> u8 { 1 } }",
                "struct S(u8); impl S { fn f() -> u8 { 2 } }",
            ),
            ("struct S(u8); fn other() {}", "fn other() { let rate = 1; } struct S(u8);"),
            // A field of the name of a function.
            ("struct S { f: u8 } fn f() {}", "struct S { f: u8 } fn f() -> u8 { 1 }"),
            (
                "struct S(Box<dyn T>); trait T { fn f(&self) -> u8 { 1 } }",
                "struct S(Box<dyn T>); trait T { fn f(&self) -> u8 { 2 } }",
            ),
            ("struct S(u8); use std::fmt::Debug;", "struct S(u8); use std::fmt::{Debug, Display};"),
        ] {
            assert_eq!(number(before, "S"), number(after, "S"), "{after}");
        }
        assert_eq!(number("struct S(u8); use std::time::Duration;", "Vec<Duration>"), None);
        assert_eq!(number("fn f() {}", "tunebook::prelude::Dataset"), None);
    }

    #[test]
    fn a_type_of_an_edited_dependency_changes_with_its_files() {
        let deps = |fingerprint: &str| PathDeps {
            names: vec!["mine".to_owned()],
            fingerprint: fingerprint.to_owned(),
        };
        for (items, of) in [
            ("", "Vec<mine::S>"),
            ("use mine::S;", "S"),
            ("use mine::{self, other::{S as T}};", "T"),
            ("struct S(mine::S);", "S"),
            ("use mine::*;", "S"),
        ] {
            let (first, second) =
                (number_with(items, of, &deps("1")), number_with(items, of, &deps("2")));
            assert!(first.is_some(), "{items}");
            assert_ne!(first, second, "{items}");
        }
        for (items, of) in [("use mine::S;", "Vec<u8>"), ("use mine::*;", "Vec<String>")] {
            assert_eq!(number_with(items, of, &deps("1")), None, "{items}");
        }
    }
}
