//! Which names code defines, binds and uses.
//!
//! A use is found by its syntax: the first part of a path, and any word in a macro's arguments. That
//! finds more than the compiler would: a parameter of a closure counts, too.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::visit::{self, Visit};
use syn::{Expr, Item, Pat, Stmt, UseTree};

use crate::cell::STATICS;

/// A variable that a `let` of a cell defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) is_mut: bool,
}

/// The variables of a statement.
pub(crate) fn variables(statement: &Stmt) -> Vec<Variable> {
    let Stmt::Local(local) = statement else { return Vec::new() };
    let mut patterns = Patterns::default();
    patterns.visit_pat(&local.pat);
    patterns.0
}

#[derive(Default)]
struct Patterns(Vec<Variable>);

impl<'ast> Visit<'ast> for Patterns {
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        let name = pattern.ident.to_string();
        // `None` in a pattern is a path, not a name.
        if pattern.subpat.is_some() || !name.starts_with(char::is_uppercase) {
            self.0.push(Variable { name, is_mut: pattern.mutability.is_some() });
        }
        visit::visit_pat_ident(self, pattern);
    }

    fn visit_expr(&mut self, _: &'ast Expr) {}
}

/// The names that a statement uses.
pub(crate) fn used_by(statement: &Stmt) -> BTreeSet<String> {
    uses(statement).used
}

/// The names that a statement uses, without those that it binds within, of which one may be used
/// outside, too.
pub(crate) fn free_in(statement: &Stmt) -> BTreeSet<String> {
    uses(statement).free()
}

fn uses(statement: &Stmt) -> Uses {
    let mut uses = Uses::default();
    match statement {
        // What the `let` binds is bound behind it only: `let a = a + 1;` uses `a`.
        Stmt::Local(local) => {
            let mut pattern = Uses::default();
            pattern.visit_pat(&local.pat);
            uses.used.extend(pattern.used);
            if let Some(init) = &local.init {
                uses.visit_local_init(init);
            }
        }
        statement => uses.visit_stmt(statement),
    }
    uses
}

/// The names that an item uses, without those that it binds within.
pub(crate) fn used_by_item(item: &Item) -> BTreeSet<String> {
    let mut uses = Uses::default();
    uses.visit_item(item);
    let mut names = uses.free();
    for name in defined_by(item) {
        names.remove(&name);
    }
    names
}

/// Where a statement uses a name that is none of its paths' first parts: `.name` for a method, or the
/// last part of a path, `~name` for one that a pattern binds. A trait, an `impl` or a `const` of a
/// later cell can give such a name another meaning.
pub(crate) fn marks_in(statement: &Stmt) -> BTreeSet<String> {
    let mut uses = Uses::default();
    uses.visit_stmt(statement);
    uses.marks()
}

/// As [`marks_in`], of an item.
pub(crate) fn marks_in_item(item: &Item) -> BTreeSet<String> {
    let mut uses = Uses::default();
    uses.visit_item(item);
    uses.marks()
}

/// The mark of a method, or of an item within a type.
pub(crate) fn method_mark(name: &str) -> String {
    format!(".{name}")
}

/// The mark of a name that patterns bind.
pub(crate) fn pattern_mark(name: &str) -> String {
    format!("~{name}")
}

/// The name without the sign of a mark.
pub(crate) fn unmarked(name: &str) -> &str {
    name.trim_start_matches(['.', '~'])
}

/// The names that code takes from the root of the crate (`crate::a`, `super::a`, `self::a`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rooted {
    pub(crate) names: BTreeSet<String>,
    /// Whether some are not named: `crate::*`, `crate::{…}`.
    pub(crate) any: bool,
}

/// Looks for paths from the root, those among the arguments of macros included.
pub(crate) fn rooted(tokens: TokenStream) -> Rooted {
    let mut found = Rooted::default();
    // Whether a root stands before, and how many colons since.
    let (mut is_after_root, mut colons) = (false, 0);
    for token in tokens {
        match token {
            TokenTree::Ident(name) if is_root(&name.to_string()) => {
                (is_after_root, colons) = (true, 0);
                continue;
            }
            TokenTree::Ident(name) if is_after_root && colons == 2 => {
                found.names.insert(name.to_string());
            }
            TokenTree::Punct(punct) if is_after_root && punct.as_char() == ':' => {
                colons += 1;
                continue;
            }
            TokenTree::Punct(punct) if is_after_root && colons == 2 && punct.as_char() == '*' => {
                found.any = true;
            }
            TokenTree::Group(group) => {
                found.any |= is_after_root && colons == 2;
                let within = rooted(group.stream());
                found.names.extend(within.names);
                found.any |= within.any;
            }
            _ => {}
        }
        is_after_root = false;
    }
    found
}

#[derive(Default)]
struct Uses {
    used: BTreeSet<String>,
    bound: BTreeSet<String>,
    /// Methods, and the last parts of paths.
    called: BTreeSet<String>,
}

impl Uses {
    fn free(self) -> BTreeSet<String> {
        self.used.difference(&self.bound).cloned().collect()
    }

    fn marks(self) -> BTreeSet<String> {
        let called = self.called.iter().map(|name| method_mark(name));
        called.chain(self.bound.iter().map(|name| pattern_mark(name))).collect()
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let (mut dots, mut colons) = (0, 0);
        let mut quote = false;
        for token in tokens {
            if let TokenTree::Ident(name) = &token
                && (dots == 1 || colons == 2)
            {
                self.called.insert(name.to_string());
            }
            match token {
                // Neither a field nor a method, nor a lifetime; but the end of a range.
                TokenTree::Ident(name) if dots != 1 && !quote => {
                    self.used.insert(name.to_string());
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    self.used.extend(captured(&literal.to_string()));
                }
                TokenTree::Punct(punct) if punct.as_char() == '.' => {
                    dots += 1;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    (dots, colons, quote) = (0, colons + 1, false);
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == '\'' => {
                    quote = true;
                    continue;
                }
                _ => {}
            }
            (dots, colons, quote) = (0, 0, false);
        }
    }

    fn use_tree(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) if is_root(&path.ident.to_string()) => self.use_tree(&path.tree),
            UseTree::Path(path) => {
                self.used.insert(path.ident.to_string());
            }
            UseTree::Name(name) => {
                self.used.insert(name.ident.to_string());
            }
            UseTree::Rename(rename) => {
                self.used.insert(rename.ident.to_string());
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree)),
            UseTree::Glob(_) => {}
        }
    }
}

fn is_root(name: &str) -> bool {
    ["crate", "self", "super"].contains(&name)
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut segments = path.segments.iter().map(|segment| segment.ident.to_string());
        if let Some(name) = segments.find(|name| !is_root(name)) {
            self.used.insert(name);
        }
        if let Some(last) = path.segments.last().filter(|_| path.segments.len() > 1) {
            self.called.insert(last.ident.to_string());
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.called.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    // `<u8>::max`
    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        if path.qself.is_some() {
            self.called.extend(path.path.segments.last().map(|last| last.ident.to_string()));
        }
        visit::visit_expr_path(self, path);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        let name = pattern.ident.to_string();
        if pattern.subpat.is_none() && name.starts_with(char::is_uppercase) {
            self.used.insert(name);
        } else {
            self.bound.insert(name);
        }
        visit::visit_pat_ident(self, pattern);
    }

    fn visit_type_param(&mut self, param: &'ast syn::TypeParam) {
        self.bound.insert(param.ident.to_string());
        visit::visit_type_param(self, param);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.visit_path(&mac.path);
        self.tokens(mac.tokens.clone());
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree);
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}

/// The names in the braces of a format's text: `{loss:.3}`, `{:width$}`.
fn captured(literal: &str) -> Vec<String> {
    if !literal.ends_with(['"', '#']) {
        return Vec::new();
    }
    let mut names = Vec::new();
    let mut rest = literal.replace("{{", "");
    while let Some(open) = rest.find('{') {
        rest = rest.split_off(open + 1);
        let inside = rest.split('}').next().unwrap_or_default();
        for word in inside.split(|c: char| !c.is_alphanumeric() && c != '_') {
            if word.starts_with(|c: char| c.is_alphabetic() || c == '_') {
                names.push(word.to_owned());
            }
        }
    }
    names
}

/// A name that a `use` brings: the name, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// None for `*` and `_`.
    pub(crate) name: Option<String>,
    /// The `use` of this name alone.
    pub(crate) text: String,
}

impl Import {
    /// Whether it is `use …::*`.
    pub(crate) fn is_all(&self) -> bool {
        self.text.ends_with("*;")
    }
}

/// The names of a `use`, one by one.
pub(crate) fn imports(item: &syn::ItemUse) -> Vec<Import> {
    let mut found = Vec::new();
    let root = if item.leading_colon.is_some() { "::" } else { "" };
    walk(&item.tree, root.to_owned(), &mut found);
    found
}

fn walk(tree: &UseTree, before: String, found: &mut Vec<Import>) {
    let mut add = |name: Option<String>, path: String| {
        found.push(Import { name, text: format!("use {path};") });
    };
    match tree {
        UseTree::Path(path) => walk(&path.tree, format!("{before}{}::", path.ident), found),
        // `use a::{self}` is `use a`.
        UseTree::Name(name) if name.ident == "self" => {
            let path = before.trim_end_matches("::");
            let last = path.rsplit("::").next().unwrap_or(path);
            add(Some(last.to_owned()), path.to_owned());
        }
        UseTree::Name(name) => {
            add(Some(name.ident.to_string()), format!("{before}{}", name.ident));
        }
        UseTree::Rename(rename) => {
            let (from, to) = (rename.ident.to_string(), rename.rename.to_string());
            let path = match from.as_str() {
                "self" => before.trim_end_matches("::").to_owned(),
                from => format!("{before}{from}"),
            };
            add((to != "_").then(|| to.clone()), format!("{path} as {to}"));
        }
        UseTree::Glob(_) => add(None, format!("{before}*")),
        UseTree::Group(group) => {
            for tree in &group.items {
                walk(tree, before.clone(), found);
            }
        }
    }
}

/// The names that an item defines.
pub(crate) fn defined_by(item: &Item) -> Vec<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Mod(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => match &item.ident {
            Some(name) => name,
            None => return statics(item.mac.tokens.clone()),
        },
        Item::Use(item) => {
            return imports(item).into_iter().filter_map(|import| import.name).collect();
        }
        _ => return Vec::new(),
    };
    // `const _: () = …;` has none.
    if name == "_" { Vec::new() } else { vec![name.to_string()] }
}

/// The statics within a macro that defines some.
fn statics(tokens: TokenStream) -> Vec<String> {
    let words: Vec<String> = tokens.into_iter().map(|token| token.to_string()).collect();
    let after = |at: usize| match words.get(at + 1).map(String::as_str) {
        Some("ref") => words.get(at + 2),
        _ => words.get(at + 1),
    };
    let found = words.iter().enumerate().filter(|(_, word)| *word == "static");
    found.filter_map(|(at, _)| after(at)).cloned().collect()
}

/// The statics of an item, and of the functions in it, whose values may change.
pub(crate) fn changing_statics(item: &Item) -> Vec<String> {
    let mut found = Statics::default();
    found.visit_item(item);
    found.0
}

#[derive(Default)]
struct Statics(Vec<String>);

impl<'ast> Visit<'ast> for Statics {
    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        if matches!(item.mutability, syn::StaticMutability::Mut(_)) || !is_plain(&item.ty) {
            self.0.push(item.ident.to_string());
        }
        visit::visit_item_static(self, item);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let name = mac.path.segments.last().map(|last| last.ident.to_string());
        if name.is_some_and(|name| STATICS.contains(&name.as_str())) {
            self.0.extend(statics(mac.tokens.clone()));
        }
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if item.ident.is_none() {
            self.visit_macro(&item.mac);
        }
    }
}

/// Whether the values of a type cannot change in a static: others may have a `Cell` within.
fn is_plain(of: &syn::Type) -> bool {
    const PLAIN: [&str; 3] = ["Option", "String", "Vec"];
    words(of.to_token_stream()).iter().all(|word| {
        // Not the length of a list, which is a constant.
        !word.starts_with(char::is_uppercase)
            || !word.contains(char::is_lowercase)
            || PLAIN.contains(&word.as_str())
    })
}

/// How a cell's own level leaves it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaves {
    /// Whether it waits for a future.
    pub(crate) awaits: bool,
    /// The `return`s, by the places of their tokens: the whole, and the value.
    pub(crate) returns: Vec<(std::ops::Range<usize>, Option<std::ops::Range<usize>>)>,
    /// Whether a macro's arguments hold a `return`.
    pub(crate) returns_in_macro: bool,
}

/// Looks for `return` and `.await` outside of functions, closures and `async` blocks.
pub(crate) fn leaves(statement: &Stmt) -> Leaves {
    let mut found = Leaves::default();
    found.visit_stmt(statement);
    found
}

impl<'ast> Visit<'ast> for Leaves {
    fn visit_item(&mut self, _: &'ast Item) {}
    fn visit_expr_closure(&mut self, _: &'ast syn::ExprClosure) {}
    fn visit_expr_async(&mut self, _: &'ast syn::ExprAsync) {}

    fn visit_expr_await(&mut self, expr: &'ast syn::ExprAwait) {
        self.awaits = true;
        visit::visit_expr_await(self, expr);
    }

    fn visit_expr_return(&mut self, expr: &'ast syn::ExprReturn) {
        use syn::spanned::Spanned as _;
        let value = expr.expr.as_ref().map(|value| value.span().byte_range());
        self.returns.push((expr.span().byte_range(), value));
        visit::visit_expr_return(self, expr);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let path: Vec<String> =
            mac.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let words = words(mac.tokens.clone());
        self.returns_in_macro |= words.iter().any(|word| word == "return");
        self.awaits |= words.windows(2).any(|pair| pair == [".", "await"])
            || path.first().is_some_and(|first| first == "tokio")
                && ["join", "select", "try_join"].contains(&path.last().map_or("", String::as_str));
    }
}

/// The words of code, those within brackets included.
pub(crate) fn words(tokens: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let ends = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ["(", ")"],
                    proc_macro2::Delimiter::Brace => ["{", "}"],
                    proc_macro2::Delimiter::Bracket => ["[", "]"],
                    proc_macro2::Delimiter::None => ["", ""],
                };
                found.push(ends[0].to_owned());
                found.extend(words(group.stream()));
                found.push(ends[1].to_owned());
            }
            token => found.push(token.to_string()),
        }
    }
    found
}

/// The variable and the parts of `let name: Type = value;`.
pub(crate) fn simple_let(local: &syn::Local) -> Option<(Variable, Option<&syn::Type>, &Expr)> {
    let init = local.init.as_ref().filter(|init| init.diverge.is_none())?;
    let (pattern, of) = match &local.pat {
        Pat::Type(typed) => (&*typed.pat, Some(&*typed.ty)),
        pattern => (pattern, None),
    };
    let Pat::Ident(name) = pattern else { return None };
    if name.by_ref.is_some() || name.subpat.is_some() {
        return None;
    }
    let variable = Variable { name: name.ident.to_string(), is_mut: name.mutability.is_some() };
    Some((variable, of, &init.expr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(code: &str) -> Stmt {
        syn::parse_str(code).expect("a statement")
    }

    fn used(code: &str) -> Vec<String> {
        used_by(&statement(code)).into_iter().collect()
    }

    #[test]
    fn uses_are_found_in_paths_macros_and_formats() {
        assert_eq!(used("let a = a + b.c(d::e, |x| x + y);"), ["a", "b", "d", "x", "y"]);
        assert_eq!(
            used("println!(\"{loss:.3} {{no}} {:w$}\", run.steps[..n].len());"),
            ["loss", "n", "println", "run", "w"]
        );
        assert_eq!(used("let S { x, .. }: T<U> = S { y, x: 1 };"), ["S", "T", "U", "y"]);
        assert_eq!(
            used("match v { None => 1, Some(N) => 2, Some(n) => n };"),
            ["N", "None", "Some", "n", "v"]
        );
        let within: Vec<_> = free_in(&statement("let a = a + f(|x| x + y);")).into_iter().collect();
        assert_eq!(within, ["a", "f", "y"]);
        let item =
            syn::parse_str("fn f<T: A>(x: &T) -> B { crate::g(x); use h::I; f(x) }").unwrap();
        assert_eq!(used_by_item(&item).into_iter().collect::<Vec<_>>(), ["A", "B", "g", "h"]);
    }

    #[test]
    fn definitions_are_named() {
        let defined = |code: &str| defined_by(&syn::parse_str(code).expect("an item"));
        assert_eq!(defined("use a::{b, c as d, self, e::*, f as _};"), ["b", "d", "a"]);
        assert_eq!(defined("macro_rules! m { () => {} }"), ["m"]);
        assert_eq!(defined("thread_local! { static A: u8 = 1; pub static B: u8 = 2 }"), ["A", "B"]);
        assert_eq!(defined("impl S {}"), [""; 0]);
        let Stmt::Local(_) = statement("let a = 1;") else { panic!() };
        let names: Vec<_> =
            variables(&statement("let (mut a, Some(B), c @ None) = d else { return };"))
                .into_iter()
                .map(|one| (one.name, one.is_mut))
                .collect();
        assert_eq!(names, [("a".to_owned(), true), ("c".to_owned(), false)]);
    }

    #[test]
    fn only_the_cells_own_level_leaves_it() {
        let of = |code: &str| {
            let found = leaves(&statement(code));
            (found.awaits, found.returns.len(), found.returns_in_macro)
        };
        assert_eq!(of("let x = f().await;"), (true, 0, false));
        assert_eq!(of("let x = async { f().await };"), (false, 0, false));
        assert_eq!(of("if a { return; }"), (false, 1, false));
        assert_eq!(of("let f = || { return 1; };"), (false, 0, false));
        assert_eq!(of("let Some(x) = y else { return Ok(()) };"), (false, 1, false));
        assert_eq!(of("m!(return);"), (false, 0, true));
        assert_eq!(of("println!(\"{}\", f().await);"), (true, 0, false));
    }
}
