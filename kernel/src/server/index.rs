//! What completion and inspection know: the public items of the crates behind the prelude, read
//! from their sources.
//!
//! No compiler and no rust-analyzer takes part, so an answer takes milliseconds, also while a cell
//! trains, and the kernel stays small. The price is that a chain is followed only as far as
//! signatures say what comes next.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ra_ap_syntax::ast::{
    self, AstNode, AstToken, HasDocComments, HasGenericArgs, HasModuleItem, HasName, HasVisibility,
};
use ra_ap_syntax::{Edition, SourceFile};

/// One item or method.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What kind it is, in Jupyter's words ("function", "class", "instance").
    pub(crate) kind: &'static str,
    /// Its signature, without body.
    pub(crate) signature: String,
    /// Its documentation.
    pub(crate) docs: String,
    /// The name of the type that it gives, when it is a function.
    gives: Option<String>,
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Index {
    items: BTreeMap<String, Entry>,
    /// Methods, associated functions and fields by the type's name.
    members: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Methods of traits by the trait's name.
    traits: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Traits and the types that have them.
    implemented: Vec<(String, String)>,
}

impl Index {
    /// Reads the crates in a clone.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut index = Self::default();
        let mut pending = vec![dir.join("crates")];
        while let Some(folder) = pending.pop() {
            for path in fs::read_dir(folder)
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
            {
                if path.is_dir() {
                    pending.push(path);
                } else if path.extension().is_some_and(|ext| ext == "rs") {
                    index.read_file(&path);
                }
            }
        }
        index.settle();
        index
    }

    /// Gives each type what its traits provide, and the docs that stand at the trait's methods.
    fn settle(&mut self) {
        for (of_trait, name) in self.implemented.drain(..) {
            let Some(provided) = self.traits.get(&of_trait) else { continue };
            let members = self.members.entry(name).or_default();
            for (method, entry) in provided {
                let member = members.entry(method.clone()).or_insert_with(|| entry.clone());
                if member.docs.is_empty() {
                    member.docs.clone_from(&entry.docs);
                }
            }
        }
    }

    fn read_file(&mut self, path: &PathBuf) {
        if let Ok(text) = fs::read_to_string(path) {
            self.add(&text);
        }
    }

    /// Adds the public items of a source text.
    pub(crate) fn add(&mut self, text: &str) {
        let file = SourceFile::parse(text, Edition::Edition2024).tree();
        for item in file.items() {
            self.add_item(item);
        }
    }

    fn add_item(&mut self, item: ast::Item) {
        match item {
            ast::Item::Fn(function) if is_public(&function) => {
                if let Some((name, entry)) = function_entry(&function, None) {
                    self.items.insert(name, entry);
                }
            }
            ast::Item::Struct(item) if is_public(&item) => {
                let Some(name) = item.name().map(|name| name.text().to_string()) else { return };
                if let Some(ast::FieldList::RecordFieldList(fields)) = item.field_list() {
                    for field in fields.fields().filter(is_public) {
                        let (Some(field_name), Some(ty)) = (field.name(), field.ty()) else {
                            continue;
                        };
                        let entry = Entry {
                            kind: "instance",
                            signature: format!("{field_name}: {}", ty.syntax().text()),
                            docs: docs(&field),
                            gives: type_name(&ty, None),
                        };
                        self.members
                            .entry(name.clone())
                            .or_default()
                            .insert(field_name.text().to_string(), entry);
                    }
                }
                self.add_type(name, "struct", docs(&item));
            }
            ast::Item::Enum(item) if is_public(&item) => {
                let Some(name) = item.name().map(|name| name.text().to_string()) else { return };
                for variant in item.variant_list().into_iter().flat_map(|list| list.variants()) {
                    let Some(variant_name) = variant.name() else { continue };
                    let entry = Entry {
                        kind: "instance",
                        signature: variant.syntax().text().to_string(),
                        docs: docs(&variant),
                        gives: Some(name.clone()),
                    };
                    self.members
                        .entry(name.clone())
                        .or_default()
                        .insert(variant_name.text().to_string(), entry);
                }
                self.add_type(name, "enum", docs(&item));
            }
            ast::Item::Trait(item) if is_public(&item) => {
                let Some(name) = item.name().map(|name| name.text().to_string()) else { return };
                for member in item.assoc_item_list().into_iter().flat_map(|list| list.assoc_items())
                {
                    let ast::AssocItem::Fn(function) = member else { continue };
                    if let Some((method, entry)) = function_entry(&function, None) {
                        self.traits.entry(name.clone()).or_default().insert(method, entry);
                    }
                }
                self.add_type(name, "trait", docs(&item));
            }
            ast::Item::Impl(item) => {
                let Some(name) = item.self_ty().and_then(|ty| type_name(&ty, None)) else { return };
                let of_trait = item.trait_().is_some();
                if let Some(of_trait) = item.trait_().and_then(|ty| type_name(&ty, None)) {
                    self.implemented.push((of_trait, name.clone()));
                }
                for member in item.assoc_item_list().into_iter().flat_map(|list| list.assoc_items())
                {
                    let ast::AssocItem::Fn(function) = member else { continue };
                    if !of_trait && !is_public(&function) {
                        continue;
                    }
                    if let Some((method, entry)) = function_entry(&function, Some(&name)) {
                        self.members.entry(name.clone()).or_default().insert(method, entry);
                    }
                }
            }
            _ => {}
        }
    }

    fn add_type(&mut self, name: String, keyword: &str, docs: String) {
        let signature = format!("{keyword} {name}");
        self.items.insert(name, Entry { kind: "class", signature, docs, gives: None });
    }

    /// The names that fit at the end of `before`, with their entries. `variables` are names and
    /// types.
    pub(crate) fn complete(
        &self,
        before: &str,
        variables: &[(String, String)],
    ) -> Vec<(String, &'static str)> {
        let (path, begun) = split(before);
        if path.is_none()
            && let Some(fields) = self.fields_at(&before[..before.len() - begun.len()])
        {
            let fields = fields.filter(|(name, _)| name.starts_with(begun));
            return fields.map(|(name, entry)| (name.clone(), entry.kind)).collect();
        }
        let mut found: Vec<(String, &'static str)> = match path {
            Some(path) => {
                let Some(members) =
                    self.type_of(path, variables).and_then(|ty| self.members.get(&ty))
                else {
                    return Vec::new();
                };
                members.iter().map(|(name, entry)| (name.clone(), entry.kind)).collect()
            }
            None => {
                let items = self.items.iter().map(|(name, entry)| (name.clone(), entry.kind));
                items.chain(variables.iter().map(|(name, _)| (name.clone(), "instance"))).collect()
            }
        };
        found.retain(|(name, _)| name.starts_with(begun));
        found
    }

    /// What is known of the name at the end of `up_to`.
    pub(crate) fn inspect(
        &self,
        up_to: &str,
        variables: &[(String, String)],
    ) -> Option<(String, String)> {
        let (path, name) = split(up_to);
        if name.is_empty() {
            // Within the parentheses of a call, or the braces of a struct: of what it is.
            let open = open_bracket(up_to)?;
            let head = up_to[..open].trim_end();
            let is_of_a_name = up_to[open..].starts_with(['(', '{']) && !split(head).1.is_empty();
            return if is_of_a_name { self.inspect(head, variables) } else { None };
        }
        if let Some(path) = path {
            let entry = self.members.get(&self.type_of(path, variables)?)?.get(name)?;
            return Some((entry.signature.clone(), entry.docs.clone()));
        }
        if let Some((name, type_name)) = variables.iter().find(|(variable, _)| variable == name) {
            let docs = last_segment(type_name)
                .and_then(|ty| self.items.get(ty))
                .map(|entry| entry.docs.clone());
            return Some((format!("{name}: {type_name}"), docs.unwrap_or_default()));
        }
        let entry = self.items.get(name)?;
        let mut signature = entry.signature.clone();
        let fields: Vec<String> = self
            .fields(name)
            .map(|(_, field)| {
                let docs = field.docs.lines().next().unwrap_or_default();
                let comment = if docs.is_empty() { "" } else { "  // " };
                format!("    {},{comment}{docs}\n", field.signature)
            })
            .collect();
        if !fields.is_empty() {
            signature = format!("{signature} {{\n{}}}", fields.concat());
        }
        Some((signature, entry.docs.clone()))
    }

    /// The public fields of a struct; none of an enum.
    fn fields(&self, name: &str) -> impl Iterator<Item = (&String, &Entry)> {
        let is_struct =
            self.items.get(name).is_some_and(|entry| entry.signature.starts_with("struct "));
        let members = self.members.get(name).filter(|_| is_struct);
        members.into_iter().flatten().filter(|(_, entry)| entry.kind == "instance")
    }

    /// The fields that may begin at the end of `before`: it ends behind the brace of a struct, or
    /// behind a comma in it.
    fn fields_at(&self, before: &str) -> Option<impl Iterator<Item = (&String, &Entry)>> {
        let before = before.trim_end();
        if !before.ends_with(['{', ',']) {
            return None;
        }
        let open = open_bracket(before)?;
        let (_, name) = split(before[..open].trim_end());
        let mut fields = self.fields(name).peekable();
        (before[open..].starts_with('{') && fields.peek().is_some()).then_some(fields)
    }

    /// The name of the type of a chain like `model.config()` or `Trainer::new(&model, &args)`.
    fn type_of(&self, chain: &str, variables: &[(String, String)]) -> Option<String> {
        let chain = chain.trim_end();
        let chain = chain.strip_suffix('?').map_or(chain, str::trim_end);
        let chain = match chain.strip_suffix(')') {
            Some(_) => chain[..matching_paren(chain)?].trim_end(),
            None => chain,
        };
        let (path, name) = split(chain);
        match path {
            Some(path) => {
                let ty = self.type_of(path, variables)?;
                match self.members.get(&ty).and_then(|members| members.get(name)) {
                    Some(member) => member.gives.clone(),
                    // Derived, so written nowhere.
                    None => ["default", "clone"].contains(&name).then_some(ty),
                }
            }
            None => match variables.iter().find(|(variable, _)| variable == name) {
                Some((_, type_name)) => last_segment(type_name).map(str::to_owned),
                None if self.members.contains_key(name) => Some(name.to_owned()),
                None => self.items.get(name)?.gives.clone(),
            },
        }
    }
}

/// Splits `a.b(c).de` into the chain before the last `.` or `::`, if there is one, and the name
/// behind it.
fn split(text: &str) -> (Option<&str>, &str) {
    let start = text
        .rfind(|c: char| !c.is_alphanumeric() && c != '_')
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let (before, name) = text.split_at(start);
    let path = before
        .strip_suffix("::")
        .or_else(|| before.strip_suffix('.').filter(|path| !path.ends_with('.')));
    (path, name)
}

/// Where the parenthesis that closes at the end opens.
fn matching_paren(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices().rev() {
        match c {
            ')' | ']' | '}' => depth += 1,
            '(' | '[' | '{' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Where the innermost bracket that is open at the end opens. Strings are skipped as far as a line
/// tells.
fn open_bracket(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '(' | '[' | '{' => open.push(at),
            ')' | ']' | '}' => {
                open.pop();
            }
            '"' => {
                while let Some((_, c)) = chars.next() {
                    match c {
                        '\\' => {
                            chars.next();
                        }
                        '"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    open.pop()
}

fn last_segment(type_name: &str) -> Option<&str> {
    type_name.split('<').next()?.trim().trim_start_matches('&').rsplit("::").next()
}

fn is_public(item: &impl HasVisibility) -> bool {
    item.visibility().is_some_and(|visibility| visibility.syntax().text() == "pub")
}

fn docs(item: &impl HasDocComments) -> String {
    let lines: Vec<String> = item
        .doc_comments()
        .filter_map(|comment| {
            Some(comment.text().strip_prefix("///")?.trim_start_matches(' ').to_owned())
        })
        .collect();
    lines.join("\n")
}

fn function_entry(function: &ast::Fn, owner: Option<&str>) -> Option<(String, Entry)> {
    let name = function.name()?.text().to_string();
    let mut signature = String::new();
    for child in function.syntax().children_with_tokens() {
        use ra_ap_syntax::SyntaxKind::{ATTR, BLOCK_EXPR, COMMENT};
        match child.kind() {
            BLOCK_EXPR => break,
            COMMENT | ATTR => {}
            _ => signature.push_str(&child.to_string()),
        }
    }
    let gives = function.ret_type().and_then(|ret| ret.ty()).and_then(|ty| type_name(&ty, owner));
    let signature = signature.split_whitespace().collect::<Vec<_>>().join(" ");
    Some((name, Entry { kind: "function", signature, docs: docs(function), gives }))
}

/// The last name of a type's path. Of a `Result` or an `Arc`, that of what is inside: cells unwrap
/// the one with `?` and see through the other.
fn type_name(ty: &ast::Type, owner: Option<&str>) -> Option<String> {
    match ty {
        ast::Type::RefType(reference) => type_name(&reference.ty()?, owner),
        ast::Type::PathType(path) => {
            let segment = path.path()?.segment()?;
            let name = segment.name_ref()?.text().to_string();
            if matches!(name.as_str(), "Result" | "Arc" | "Box" | "PolarsResult")
                && let Some(ast::GenericArg::TypeArg(inner)) =
                    segment.generic_arg_list().and_then(|list| list.generic_args().next())
            {
                return type_name(&inner.ty()?, owner);
            }
            if name == "Self" { owner.map(str::to_owned) } else { Some(name) }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let mut index = Index::default();
        index.add(
            "/// A data set.\npub struct Dataset { /// Its rows.\n pub rows: Rows, hidden: u8 }\n\
             impl Dataset {\n/// Reads a file.\n#[must_use]\npub fn read(path: &str) -> Result<Self> { todo!() }\n\
             pub fn split(&self, by: &Split) -> Result<Splits> { todo!() }\n fn private(&self) {} }\n\
             pub struct Splits { pub train: Dataset }\nfn secret() {}\npub fn evaluate() -> Splits {}\n\
             pub struct Model {}\nimpl Adapters for Model { fn set(&self, name: &str) {} }\n\
             pub trait Adapters { /// Adds one.\n fn add(&self, config: impl Into<Config>) -> Splits { todo!() }\n\
             /// Chooses one.\n fn set(&self, name: &str); }",
        );
        index.settle();
        index
    }

    fn names(before: &str) -> Vec<String> {
        let variables = [("data".to_owned(), "tunebook::prelude::Dataset".to_owned())];
        index().complete(before, &variables).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn members_follow_the_signatures() {
        assert_eq!(names("data."), ["read", "rows", "split"]);
        assert_eq!(names("let s = data.split(&Split::new(1)).un"), Vec::<String>::new());
        assert_eq!(names("data.split(&Split::new(1))?.tr"), ["train"]);
        assert_eq!(names("Dataset::re"), ["read"]);
        assert_eq!(names("Dataset::read(\"a)b\")?.sp"), Vec::<String>::new());
        assert_eq!(names("Dataset::read(path)?.sp"), ["split"]);
        assert_eq!(names("evaluate()."), ["train"]);
    }

    #[test]
    fn fields_complete_within_a_struct_and_are_shown() {
        let mut index = Index::default();
        index.add(
            "/// A plan.\npub struct Plan { /// Steps a minute.\n pub pace: u8, pub parts: Vec<u8>, own: u8 }\n\
             impl Plan { /// Runs.\n pub fn run(&self, times: u8) {} }\npub fn pay() {}",
        );
        let names = |before: &str| {
            index.complete(before, &[]).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names("let p = Plan { pa"), ["pace", "parts"]);
        assert_eq!(names("Plan { pace: f(\"{\", 1),\n  par"), ["parts"]);
        assert_eq!(names("Plan { pace: pa"), ["pay"]);
        assert_eq!(names("if x { pa"), ["pay"]);
        assert_eq!(names("Plan::default().ru"), ["run"]);
        let (signature, docs) = index.inspect("Plan", &[]).expect("it is known");
        assert_eq!(docs, "A plan.");
        assert_eq!(
            signature,
            "struct Plan {\n    pace: u8,  // Steps a minute.\n    parts: Vec<u8>,\n}"
        );
        assert_eq!(index.inspect("Plan { pace: 1, ", &[]), Some((signature, docs)));
        let (run, _) = index.inspect("Plan::default().run(3, ", &[]).expect("a call");
        assert_eq!(run, "pub fn run(&self, times: u8)");
        assert_eq!(index.inspect("", &[]), None);
        assert_eq!(index.inspect("f[", &[]), None);
        assert_eq!(index.inspect(&"(".repeat(100_000), &[]), None);
    }

    #[test]
    fn a_trait_gives_methods_and_docs() {
        assert_eq!(names("Model::"), ["add", "set"]);
        assert_eq!(names("Model::add(lora)."), ["train"]);
        assert_eq!(index().inspect("Model::set", &[]).expect("known").1, "Chooses one.");
    }

    #[test]
    fn items_and_variables_complete_by_their_beginning() {
        assert_eq!(names("x = da"), ["data"]);
        assert_eq!(names("Data"), ["Dataset"]);
        assert!(!names("").contains(&"secret".to_owned()));
    }

    #[test]
    fn inspection_shows_signature_and_docs() {
        let read = index().inspect("Dataset::read", &[]).expect("known");
        assert_eq!(
            read,
            ("pub fn read(path: &str) -> Result<Self>".into(), "Reads a file.".into())
        );
        let variables = [("data".to_owned(), "tunebook::prelude::Dataset".to_owned())];
        let data = index().inspect("data", &variables).expect("known");
        assert_eq!(data, ("data: tunebook::prelude::Dataset".into(), "A data set.".into()));
        assert_eq!(index().inspect("nothing", &[]), None);
    }
}
