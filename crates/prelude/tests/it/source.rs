//! The sources of the workspace as a tree of modules, and names looked up in it as the compiler
//! looks them up.
//!
//! Crates are found by their manifests and files by their `mod` lines, so nothing here has to
//! follow when files or crates move. Items that a macro writes are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Item, UseTree, Visibility};

/// All crates in `crates/`, parsed.
pub(crate) struct Sources {
    /// By path: `tunebook_data`, `tunebook_data::split`.
    modules: BTreeMap<String, Module>,
}

/// One module.
#[derive(Default)]
pub(crate) struct Module {
    /// Its items without those of tests, without `use` and `mod`.
    pub items: Vec<Item>,
    uses: Vec<Use>,
    public: bool,
}

/// One name that a `use` brings.
struct Use {
    /// The name here; `None` for `*`.
    name: Option<String>,
    path: Vec<String>,
    public: bool,
}

/// An item of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Own {
    pub module: String,
    pub name: String,
}

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meaning {
    /// A module of the workspace, by its path.
    Module(String),
    /// An item of the workspace. A name may stand for two: a type and a function.
    Item(Own),
    /// Something of another crate, by its path.
    External(Vec<String>),
}

impl Sources {
    /// Reads the crates in the folder `crates`.
    pub(crate) fn read(crates: &Path) -> Self {
        let mut sources = Self { modules: BTreeMap::new() };
        for entry in fs::read_dir(crates).expect("the folder of the crates") {
            let folder = entry.expect("an entry of the folder of the crates").path();
            let root = folder.join("src/lib.rs");
            if !root.is_file() {
                continue;
            }
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
            let name = manifest
                .lines()
                .find_map(|line| line.strip_prefix("name = \""))
                .map(|name| name.trim_end_matches('"').replace('-', "_"))
                .expect("a package has a name");
            sources.file(&name, true, &root, &folder.join("src"));
        }
        sources
    }

    /// Reads a file as the module `path`, whose own modules lie in `folder`.
    fn file(&mut self, path: &str, public: bool, file: &Path, folder: &Path) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.module(path, public, parsed.items, folder);
    }

    fn module(&mut self, path: &str, public: bool, items: Vec<Item>, folder: &Path) {
        let mut module = Module { public, ..Module::default() };
        for item in items {
            match item {
                item if is_of_tests(attributes(&item)) => {}
                Item::Mod(inner) => {
                    let (name, public) = (inner.ident.to_string(), is_public(&inner.vis));
                    let (path, inside) = (format!("{path}::{name}"), folder.join(&name));
                    match inner.content {
                        Some((_, items)) => self.module(&path, public, items, &inside),
                        None => {
                            let beside = folder.join(format!("{name}.rs"));
                            let within = inside.join("mod.rs");
                            let file = if beside.is_file() { beside } else { within };
                            self.file(&path, public, &file, &inside);
                        }
                    }
                }
                Item::Use(item) => {
                    let public = is_public(&item.vis);
                    flatten(&item.tree, &mut Vec::new(), &mut |name, path| {
                        module.uses.push(Use { name, path, public });
                    });
                }
                // A macro that is given items declares them.
                Item::Macro(invoked) if invoked.ident.is_none() => {
                    let given = syn::parse2::<syn::File>(invoked.mac.tokens);
                    module.items.extend(given.into_iter().flat_map(|file| file.items));
                }
                item => module.items.push(item),
            }
        }
        self.modules.insert(path.to_owned(), module);
    }

    /// All modules with their paths.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (&str, &Module)> {
        self.modules.iter().map(|(path, module)| (path.as_str(), module))
    }

    /// The items of this name: a type, a function, or both.
    pub(crate) fn items(&self, own: &Own) -> impl Iterator<Item = &Item> {
        let items = self.modules.get(&own.module).into_iter().flat_map(|module| &module.items);
        items.filter(|item| name_of(item).is_some_and(|name| name == own.name))
    }

    /// The names that a module exports, with what they mean. `_` is a trait without a name. An
    /// export of all names of another crate has the name `*`.
    pub(crate) fn exports(&self, module: &str) -> BTreeSet<(String, Meaning)> {
        let mut exports = BTreeSet::new();
        for item in &self.modules[module].items {
            if let Some(name) = name_of(item).filter(|_| is_public(visibility(item))) {
                let own = Own { module: module.to_owned(), name: name.clone() };
                exports.insert((name, Meaning::Item(own)));
            }
        }
        for import in self.modules[module].uses.iter().filter(|import| import.public) {
            for meaning in self.resolve(module, &import.path) {
                match (&import.name, meaning) {
                    // A function's name may be its private module's, too.
                    (Some(_), Meaning::Module(inner)) if !self.modules[&inner].public => {}
                    (Some(name), meaning) => drop(exports.insert((name.clone(), meaning))),
                    (None, Meaning::Module(all)) => exports.extend(self.exports(&all)),
                    (None, meaning) => drop(exports.insert(("*".to_owned(), meaning))),
                }
            }
        }
        exports
    }

    /// The meanings of a path that stands in a module. None if nobody knows it.
    pub(crate) fn resolve(&self, module: &str, path: &[String]) -> Vec<Meaning> {
        self.follow(module, path, &mut Vec::new())
    }

    fn follow<'a>(&'a self, module: &str, path: &[String], seen: &mut Seen<'a>) -> Vec<Meaning> {
        let [first, rest @ ..] = path else { return Vec::new() };
        let mut meanings = match first.as_str() {
            "crate" => {
                vec![Meaning::Module(module.split("::").next().unwrap_or(module).to_owned())]
            }
            "self" => vec![Meaning::Module(module.to_owned())],
            "super" => vec![Meaning::Module(above(module).to_owned())],
            // More follows, so it is the module and not a function that has its name.
            name if !rest.is_empty() && self.modules.contains_key(&format!("{module}::{name}")) => {
                vec![Meaning::Module(format!("{module}::{name}"))]
            }
            name => {
                let known = self.lookup(module, name, seen);
                if known.is_empty() { self.outside(module, name, rest, seen) } else { known }
            }
        };
        for name in rest {
            let next = |meaning: Meaning| match meaning {
                Meaning::Module(module) if name == "super" => {
                    vec![Meaning::Module(above(&module).to_owned())]
                }
                Meaning::Module(module) => self.lookup(&module, name, seen),
                // A variant or an associated type: the item is meant.
                Meaning::Item(own) => vec![Meaning::Item(own)],
                Meaning::External(mut path) => {
                    path.push(name.clone());
                    vec![Meaning::External(path)]
                }
            };
            meanings = meanings.into_iter().flat_map(next).collect();
        }
        meanings
    }

    /// A name as a module has it: its own, imported, or by `*` from another module of the
    /// workspace.
    fn lookup<'a>(&'a self, path: &str, name: &str, seen: &mut Seen<'a>) -> Vec<Meaning> {
        let Some((path, module)) = self.modules.get_key_value(path) else { return Vec::new() };
        // Two modules that import all of each other would go round for ever.
        if seen.iter().any(|(module, looked_for)| *module == path && looked_for == name) {
            return Vec::new();
        }
        seen.push((path, name.to_owned()));
        let mut meanings = Vec::new();
        if module.items.iter().any(|item| name_of(item).is_some_and(|own| own == name)) {
            let own = Own { module: path.clone(), name: name.to_owned() };
            meanings.push(Meaning::Item(own));
        }
        let inner = format!("{path}::{name}");
        if self.modules.contains_key(&inner) {
            meanings.push(Meaning::Module(inner));
        }
        // `use serde_json;` names a crate.
        let imports = module.uses.iter().filter(|import| import.path != [name]);
        for import in imports.filter(|import| import.name.as_deref() == Some(name)) {
            meanings.extend(self.follow(path, &import.path, seen));
        }
        if meanings.is_empty() {
            for all in module.uses.iter().filter(|import| import.name.is_none()) {
                for meaning in self.follow(path, &all.path, seen) {
                    if let Meaning::Module(other) = meaning {
                        meanings.extend(self.lookup(&other, name, seen));
                    }
                }
            }
        }
        seen.pop();
        meanings
    }

    /// A name that the workspace's modules do not have: a crate, Rust's own, or by `*` from another
    /// crate.
    fn outside<'a>(
        &'a self,
        module: &str,
        name: &str,
        rest: &[String],
        seen: &mut Seen<'a>,
    ) -> Vec<Meaning> {
        if self.modules.contains_key(name) {
            return vec![Meaning::Module(name.to_owned())];
        }
        if rest.is_empty() && RUSTS_OWN.contains(&name) {
            return vec![Meaning::External(vec!["std".to_owned(), name.to_owned()])];
        }
        if name.starts_with(char::is_lowercase) {
            return vec![Meaning::External(vec![name.to_owned()])];
        }
        let all = self.modules.get(module).into_iter().flat_map(|module| &module.uses);
        let mut meanings = Vec::new();
        for import in all.filter(|import| import.name.is_none()) {
            for meaning in self.follow(module, &import.path, seen) {
                if let Meaning::External(mut path) = meaning {
                    path.push(name.to_owned());
                    meanings.push(Meaning::External(path));
                }
            }
        }
        meanings
    }
}

/// The names that are being looked up, with their modules.
type Seen<'a> = Vec<(&'a String, String)>;

/// The module around a module.
fn above(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(above, _)| above)
}

/// Names of types and traits that every module has.
#[rustfmt::skip]
const RUSTS_OWN: &[&str] = &[
    "AsMut", "AsRef", "Box", "Clone", "Copy", "Default", "DoubleEndedIterator", "Drop", "Eq",
    "ExactSizeIterator", "Extend", "Fn", "FnMut", "FnOnce", "From", "FromIterator", "Into",
    "IntoIterator", "Iterator", "Option", "Ord", "PartialEq", "PartialOrd", "Result", "Send",
    "Sized", "String", "Sync", "ToOwned", "ToString", "TryFrom", "TryInto", "Unpin", "Vec",
    "bool", "char", "str", "f32", "f64", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16",
    "i32", "i64", "i128", "isize",
];

/// The name of an item that has one.
pub(crate) fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn visibility(item: &Item) -> &Visibility {
    match item {
        Item::Const(item) => &item.vis,
        Item::Enum(item) => &item.vis,
        Item::Fn(item) => &item.vis,
        Item::Static(item) => &item.vis,
        Item::Struct(item) => &item.vis,
        Item::Trait(item) => &item.vis,
        Item::Type(item) => &item.vis,
        Item::Union(item) => &item.vis,
        _ => &Visibility::Inherited,
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

pub(crate) fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Whether the attributes hide an item from the documentation.
pub(crate) fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("doc")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|word| word == "hidden")
    })
}

/// `#[cfg(test)]`
fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|word| word == "test")
    })
}

/// Calls `found` with each name of a `use` and the path that it stands for.
fn flatten(
    tree: &UseTree,
    path: &mut Vec<String>,
    found: &mut impl FnMut(Option<String>, Vec<String>),
) {
    match tree {
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            flatten(&tree.tree, path, found);
            path.pop();
        }
        // `a::{self}` is `a`.
        UseTree::Name(tree) if tree.ident == "self" => found(path.last().cloned(), path.clone()),
        UseTree::Rename(tree) if tree.ident == "self" => {
            found(Some(tree.rename.to_string()), path.clone());
        }
        UseTree::Name(tree) => {
            let name = tree.ident.to_string();
            found(Some(name.clone()), path.iter().cloned().chain([name]).collect());
        }
        UseTree::Rename(tree) => {
            let whole = path.iter().cloned().chain([tree.ident.to_string()]).collect();
            found(Some(tree.rename.to_string()), whole);
        }
        UseTree::Glob(_) => found(None, path.clone()),
        UseTree::Group(tree) => tree.items.iter().for_each(|tree| flatten(tree, path, found)),
    }
}

/// The folder of the workspace's crates.
pub(crate) fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
