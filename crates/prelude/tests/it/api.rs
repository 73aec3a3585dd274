//! The names of the prelude with their signatures: that they hold together, and a record of them.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{Attribute, Fields, FnArg, Generics, ImplItem, Item, ItemImpl, Signature, TraitItem};

use crate::source::{self, Meaning, Own, Sources, is_hidden, is_public};
use crate::tokens;

/// Types in signatures that the prelude does not export. Most are for whoever builds a model or an
/// adapter type, which a notebook seldom does, and candle or others have such names, too. The rest
/// is what an error holds. Code that wants one names the crate: `tunebook::models::Weight`.
const BY_PATH: &[&str] = &[
    "safetensors::SafeTensorError",
    "tunebook_hub::Error",
    "tunebook_models::Family",
    "tunebook_models::LoraUpdate",
    "tunebook_models::Overlay",
    "tunebook_models::Pass",
    "tunebook_models::PastKeyValues",
    "tunebook_models::Positions",
    "tunebook_models::Residual",
    "tunebook_models::Slot",
    "tunebook_models::Snapshot",
    "tunebook_models::Weight",
    "tunebook_ops::Format",
    "tunebook_ops::Matrix",
];

/// The prelude and what it exports.
struct Prelude {
    sources: Sources,
    exports: BTreeSet<(String, Meaning)>,
    /// The `impl` blocks of each item, with the modules that they stand in.
    impls: BTreeMap<Own, Vec<(String, ItemImpl)>>,
}

/// A line of an item's public form.
struct Line {
    text: String,
    /// The paths in it.
    paths: Vec<Vec<String>>,
    /// Where they are to be looked up.
    module: String,
}

impl Prelude {
    fn read() -> Self {
        let sources = Sources::read(&source::crates());
        let mut exports = sources.exports("tunebook::prelude");
        // A module's items go by its name: `interrupt::check`.
        for (name, meaning) in exports.clone() {
            let Meaning::Module(path) = meaning else { continue };
            let inner = sources.exports(&path).into_iter();
            exports.extend(inner.map(|(item, meaning)| (format!("{name}::{item}"), meaning)));
        }
        let mut impls: BTreeMap<Own, Vec<(String, ItemImpl)>> = BTreeMap::new();
        for (path, module) in sources.modules() {
            for item in &module.items {
                let Item::Impl(block) = item else { continue };
                let syn::Type::Path(of) = &*block.self_ty else { continue };
                for meaning in sources.resolve(path, &segments(&of.path)) {
                    if let Meaning::Item(own) = meaning {
                        impls.entry(own).or_default().push((path.to_owned(), block.clone()));
                    }
                }
            }
        }
        Self { sources, exports, impls }
    }

    /// The items of the workspace that the prelude exports, with their names there.
    fn items(&self) -> impl Iterator<Item = (&str, &Own)> {
        self.exports.iter().filter_map(|(name, meaning)| match meaning {
            Meaning::Item(own) => Some((name.as_str(), own)),
            _ => None,
        })
    }

    /// Whether cells can name a path's meaning: by itself or, if it is of another crate, by a
    /// crate that they know.
    fn is_named(&self, meaning: &Meaning) -> bool {
        match meaning {
            Meaning::Module(_) => true,
            Meaning::Item(own) => {
                self.items().any(|(name, exported)| exported == own && name != "_")
            }
            Meaning::External(path) => {
                let of = [path[0].clone()];
                ["std", "core", "alloc"].contains(&of[0].as_str())
                    || self.exports.iter().any(|(_, meaning)| match meaning {
                        Meaning::External(exported) => *exported == of,
                        _ => false,
                    })
            }
        }
    }

    /// What a path in a signature asks for that cells cannot name.
    fn missing(&self, module: &str, path: &[String], missing: &mut BTreeSet<String>) {
        let meanings = self.sources.resolve(module, path);
        if meanings.is_empty() {
            missing.insert(format!("{} (unknown in {module})", path.join("::")));
        }
        if meanings.iter().any(|meaning| self.is_named(meaning)) {
            return;
        }
        for meaning in meanings {
            let own = match meaning {
                Meaning::Item(own) => own,
                Meaning::External(path) => {
                    missing.insert(path.join("::"));
                    continue;
                }
                Meaning::Module(_) => continue,
            };
            for item in self.sources.items(&own) {
                match item {
                    // `Result` of a crate is Rust's with the crate's error: the alias may stay
                    // unnamed, what it stands for may not.
                    Item::Type(alias) => {
                        let mut paths = Paths::default();
                        paths.generics(&alias.generics);
                        paths.visit_generics(&alias.generics);
                        paths.visit_type(&alias.ty);
                        for path in paths.found {
                            self.missing(&own.module, &path, missing);
                        }
                    }
                    Item::Fn(_) => {}
                    _ => {
                        let root = own.module.split("::").next().unwrap_or_default();
                        missing.insert(format!("{root}::{}", own.name));
                    }
                }
            }
        }
    }

    /// The lines of an item: its declaration, what it has, and what is implemented for it.
    fn lines(&self, own: &Own) -> Vec<Line> {
        let mut lines = Vec::new();
        for item in self.sources.items(own) {
            declaration(&own.module, item, &mut lines);
        }
        // By name, not by place: `impl` blocks lie in many files, which may move.
        let (mut inherent, mut traits) = (Vec::new(), Vec::new());
        for (module, block) in self.impls.get(own).into_iter().flatten() {
            members(module, block, &mut inherent, &mut traits);
        }
        for mut more in [inherent, traits] {
            more.sort_by(|a, b| a.text.cmp(&b.text));
            lines.extend(more);
        }
        lines
    }
}

/// The paths in types, without generic parameters and `Self`.
#[derive(Default)]
struct Paths {
    generic: BTreeSet<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    fn generics(&mut self, generics: &Generics) {
        self.generic.extend(generics.type_params().map(|parameter| parameter.ident.to_string()));
        self.generic.extend(generics.const_params().map(|parameter| parameter.ident.to_string()));
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let path_segments = segments(path);
        let first = path_segments.first().map_or("", String::as_str);
        if first != "Self" && !self.generic.contains(first) {
            self.found.push(path_segments);
        }
        visit::visit_path(self, path);
    }

    // Not a part of the signature.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_block(&mut self, _: &'ast syn::Block) {}
    fn visit_expr(&mut self, _: &'ast syn::Expr) {}
}

fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

fn line(module: &str, text: String, paths: Paths) -> Line {
    Line { text, paths: paths.found, module: module.to_owned() }
}

/// An item without its members.
fn declaration(module: &str, item: &Item, lines: &mut Vec<Line>) {
    let mut paths = Paths::default();
    match item {
        Item::Struct(item) => {
            paths.generics(&item.generics);
            paths.visit_generics(&item.generics);
            let generics = item.generics.clone();
            let name = text(&item.ident) + &text(&item.generics);
            lines.push(line(module, format!("struct {name}{}", tail(&item.fields)), paths));
            fields(module, &generics, &item.fields, lines);
            derived(module, &item.attrs, lines);
        }
        Item::Enum(item) => {
            paths.generics(&item.generics);
            paths.visit_generics(&item.generics);
            lines.push(line(
                module,
                format!("enum {}{}", text(&item.ident), text(&item.generics)),
                paths,
            ));
            for variant in &item.variants {
                let mut paths = Paths::default();
                paths.generics(&item.generics);
                paths.visit_fields(&variant.fields);
                let mut shown = variant.clone();
                shown.attrs.clear();
                shown.fields.iter_mut().for_each(|field| field.attrs.clear());
                lines.push(line(module, format!("    {}", text(&shown)), paths));
            }
            derived(module, &item.attrs, lines);
        }
        Item::Trait(item) => {
            paths.generics(&item.generics);
            paths.visit_generics(&item.generics);
            item.supertraits.iter().for_each(|bound| paths.visit_type_param_bound(bound));
            let bounds = text(&item.supertraits);
            let colon = if bounds.is_empty() { "" } else { ": " };
            let name = text(&item.ident) + &text(&item.generics);
            lines.push(line(module, format!("trait {name}{colon}{bounds}"), paths));
            for member in &item.items {
                let mut paths = Paths::default();
                paths.generics(&item.generics);
                match member {
                    TraitItem::Fn(method) if !is_hidden(&method.attrs) => {
                        let end = if method.default.is_some() { " { … }" } else { "" };
                        let text = format!("    {}{end}", function(&method.sig, &mut paths));
                        lines.push(line(module, text, paths));
                    }
                    TraitItem::Type(of) => {
                        of.bounds.iter().for_each(|bound| paths.visit_type_param_bound(bound));
                        lines.push(line(module, format!("    type {}", text(&of.ident)), paths));
                    }
                    TraitItem::Const(of) => {
                        paths.visit_type(&of.ty);
                        let shown = format!("    const {}: {}", text(&of.ident), text(&of.ty));
                        lines.push(line(module, shown, paths));
                    }
                    _ => {}
                }
            }
        }
        Item::Fn(item) => {
            let text = function(&item.sig, &mut paths);
            lines.push(line(module, text, paths));
        }
        Item::Const(item) => {
            paths.visit_type(&item.ty);
            let text = format!("const {}: {}", text(&item.ident), text(&item.ty));
            lines.push(line(module, text, paths));
        }
        Item::Type(item) => {
            paths.generics(&item.generics);
            paths.visit_type(&item.ty);
            let name = text(&item.ident) + &text(&item.generics);
            lines.push(line(module, format!("type {name} = {}", text(&item.ty)), paths));
        }
        _ => {}
    }
}

/// What an `impl` block gives: public members to `lines`, a trait to `traits`.
fn members(module: &str, block: &ItemImpl, lines: &mut Vec<Line>, traits: &mut Vec<Line>) {
    let mut of_block = Paths::default();
    of_block.generics(&block.generics);
    if let Some((_, of, _)) = &block.trait_ {
        of_block.visit_generics(&block.generics);
        of_block.visit_path(of);
        // The trait of a crate that cells do not know is not asked for by name; its parameters are.
        of_block.found.retain(|path| *path != segments(of));
        let mut shown = format!("    impl {}", text(of));
        for member in &block.items {
            if let ImplItem::Type(associated) = member {
                of_block.visit_type(&associated.ty);
                shown += &format!(", {} = {}", text(&associated.ident), text(&associated.ty));
            }
        }
        traits.push(line(module, shown, of_block));
        return;
    }
    for member in &block.items {
        let mut paths = Paths::default();
        paths.generics(&block.generics);
        match member {
            ImplItem::Fn(method) if is_public(&method.vis) && !is_hidden(&method.attrs) => {
                let text = format!("    {}", function(&method.sig, &mut paths));
                lines.push(line(module, text, paths));
            }
            ImplItem::Const(of) if is_public(&of.vis) => {
                paths.visit_type(&of.ty);
                let text = format!("    const {}: {}", text(&of.ident), text(&of.ty));
                lines.push(line(module, text, paths));
            }
            _ => {}
        }
    }
}

/// The end of a struct's first line: of tuples all, of others whether they have private fields.
fn tail(fields: &Fields) -> String {
    let private = fields.iter().any(|field| !is_public(&field.vis));
    match fields {
        Fields::Unit => String::new(),
        Fields::Unnamed(_) if private => "(…)".to_owned(),
        Fields::Unnamed(fields) => {
            let types: Vec<String> = fields.unnamed.iter().map(|field| text(&field.ty)).collect();
            format!("({})", types.join(", "))
        }
        Fields::Named(_) => if private { " { … }" } else { "" }.to_owned(),
    }
}

fn fields(module: &str, generics: &Generics, fields: &Fields, lines: &mut Vec<Line>) {
    for field in fields.iter().filter(|field| is_public(&field.vis)) {
        let mut paths = Paths::default();
        paths.generics(generics);
        paths.visit_type(&field.ty);
        let name = field.ident.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        lines.push(line(module, format!("    {name}{}", text(&field.ty)), paths));
    }
}

fn derived(module: &str, attributes: &[Attribute], lines: &mut Vec<Line>) {
    let derives = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    let mut names: Vec<String> = derives
        .filter_map(|attribute| attribute.meta.require_list().ok())
        .flat_map(|list| {
            let names = tokens::text(list.tokens.clone());
            names.split(", ").map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    names.sort();
    if !names.is_empty() {
        let text = format!("    derive {}", names.join(", "));
        lines.push(line(module, text, Paths::default()));
    }
}

/// A signature; its paths go to `paths`.
fn function(signature: &Signature, paths: &mut Paths) -> String {
    paths.generics(&signature.generics);
    paths.visit_signature(signature);
    let mut shown = signature.clone();
    for argument in &mut shown.inputs {
        match argument {
            // `mut self` is the function's own business.
            FnArg::Receiver(receiver) if receiver.reference.is_none() => receiver.mutability = None,
            FnArg::Receiver(_) => {}
            FnArg::Typed(argument) => argument.attrs.clear(),
        }
    }
    text(&shown)
}

fn text(tokens: &impl ToTokens) -> String {
    tokens::text(tokens.to_token_stream())
}

/// Whoever can call a function can also name what it takes and gives: to write a variable's type, a
/// struct's field, or a function of one's own.
#[test]
fn every_type_of_a_signature_is_in_the_prelude() {
    let prelude = Prelude::read();
    assert!(prelude.items().count() > 50, "the sources were not understood");
    let mut missing: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, own) in prelude.items() {
        for line in prelude.lines(own) {
            let mut asked = BTreeSet::new();
            line.paths.iter().for_each(|path| prelude.missing(&line.module, path, &mut asked));
            for asked in asked {
                let at =
                    format!("{}: {}", if name == "_" { &own.name } else { name }, line.text.trim());
                missing.entry(asked).or_default().insert(at);
            }
        }
    }
    let stale: Vec<_> = BY_PATH.iter().filter(|name| !missing.contains_key(**name)).collect();
    assert!(stale.is_empty(), "no signature asks for these any more: {stale:?}");
    missing.retain(|asked, _| !BY_PATH.contains(&asked.as_str()));
    let report: Vec<String> = missing
        .iter()
        .map(|(asked, by)| {
            let by: Vec<&str> = by.iter().take(3).map(String::as_str).collect();
            format!("{asked}\n    {}", by.join("\n    "))
        })
        .collect();
    assert!(
        report.is_empty(),
        "the prelude does not export these, but items that it exports ask for them:\n{}",
        report.join("\n")
    );
}

/// The public API of the prelude. A change of it is a change for everyone's notebooks and belongs
/// in the changelog. To accept one:
///
/// `INSTA_UPDATE=always cargo nextest run --locked -p tunebook the_public_api`
#[test]
fn the_public_api() {
    let prelude = Prelude::read();
    let mut api: BTreeMap<String, String> = BTreeMap::new();
    for (name, meaning) in &prelude.exports {
        let (key, shown) = match meaning {
            Meaning::Module(path) => (name.clone(), format!("mod {name} = {path}")),
            Meaning::External(path) => (name.clone(), format!("{name} = {}", path.join("::"))),
            Meaning::Item(own) => {
                let lines: Vec<String> =
                    prelude.lines(own).into_iter().map(|line| line.text).collect();
                let name = if name == "_" { format!("{} (as _)", own.name) } else { name.clone() };
                let renamed =
                    if name.starts_with(&own.name) { String::new() } else { format!("{name} = ") };
                (name, renamed + &lines.join("\n"))
            }
        };
        // A type and a function may share a name.
        let entry = api.entry(key).or_default();
        *entry = if entry.is_empty() { shown } else { format!("{entry}\n{shown}") };
    }
    let api: Vec<String> = api.into_values().collect();
    insta::assert_snapshot!(api.join("\n\n"));
}
