//! Where items stand.
//!
//! In the kernel each cell is compiled with all items so far, and a definition takes the place of
//! the former one of its name: for the functions of earlier cells, too. Here items stand at module
//! level until a cell defines a name anew. That cell opens a block, which lasts to the end of the
//! notebook: the new item shadows the old one there, and the items that use the name are defined
//! once more with it, so that they find the new one. A name that earlier cells have from elsewhere
//! (a `use …::*`) is treated alike.
//!
//! A type that is defined anew is another type: where a value of the old one may still be used, or
//! where the methods of a type that stays would change under its values, the cell is refused.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens as _;
use syn::{Item, Stmt};

use crate::Refusal;
use crate::cell::{Code, Piece};
use crate::later::{Earlier, methods_of_impl};
use crate::names::{self, Import, method_mark, pattern_mark, unmarked};

/// The items of a cell, where its statements stand.
#[derive(Default)]
pub(crate) struct CellScope {
    /// Whether a block begins before the cell.
    pub(crate) opens: bool,
    /// The items that stand in the block.
    pub(crate) items: Vec<Placed>,
}

/// An item in its place.
#[derive(Clone)]
pub(crate) struct Placed {
    pub(crate) cell: usize,
    pub(crate) leading: String,
    pub(crate) text: String,
    pub(crate) item: Item,
    /// Whether the cell did not write it: it uses a name that the cell defines anew.
    pub(crate) is_again: bool,
}

/// The items so far.
#[derive(Default)]
pub(crate) struct Scopes {
    /// The items at module level.
    pub(crate) root: Vec<Placed>,
    is_open: bool,
    live: Vec<Live>,
    /// The names of items that stand in blocks, which no path from the root finds.
    in_blocks: BTreeSet<String>,
    /// The names and marks that cells have used so far, and those that statements have.
    used: BTreeSet<String>,
    by_statements: BTreeSet<String>,
    /// What each variable may hold: the names that its statements use.
    variables: BTreeMap<String, Held>,
    /// Variables that may hold a value of a type that was defined anew: the type, and the cell.
    lost: BTreeMap<String, (String, usize)>,
}

struct Held {
    cell: usize,
    of: BTreeSet<String>,
    /// The words of its written type.
    typed: BTreeSet<String>,
}

#[derive(Clone)]
struct Live {
    placed: Placed,
    names: Vec<String>,
    /// What else changes its meaning where the item is known.
    marks: Vec<String>,
    uses: BTreeSet<String>,
    /// The tokens, without comments.
    key: String,
    /// The named item of its cell that evcxr keeps this one with: an `impl` behind its type.
    follows: Option<String>,
}

impl Live {
    fn new(cell: usize, piece: &Piece, item: Item, follows: Option<String>) -> Self {
        let mut bare = item.clone();
        without_docs(&mut bare);
        let names = names::defined_by(&item);
        let is_pattern = match &item {
            Item::Const(_) | Item::Static(_) => true,
            Item::Struct(item) => matches!(item.fields, syn::Fields::Unit),
            _ => false,
        };
        Self {
            marks: names.iter().filter(|_| is_pattern).map(|name| pattern_mark(name)).collect(),
            names,
            uses: &names::used_by_item(&item) | &names::marks_in_item(&item),
            key: bare.to_token_stream().to_string(),
            placed: Placed {
                cell,
                leading: piece.leading.clone(),
                text: format!("{}{}", piece.text, piece.trailing),
                item,
                is_again: false,
            },
            follows,
        }
    }

    fn is_type(&self) -> bool {
        use Item::{Enum, Struct, Trait, TraitAlias, Type, Union};
        let item = &self.placed.item;
        matches!(item, Enum(_) | Struct(_) | Trait(_) | TraitAlias(_) | Type(_) | Union(_))
    }

    /// Whether a variable of the same name would hide it.
    fn is_value(&self) -> bool {
        matches!(self.placed.item, Item::Const(_) | Item::Fn(_) | Item::Static(_))
    }

    fn called(&self) -> String {
        let kind = match &self.placed.item {
            Item::Const(_) => "const",
            Item::Enum(_) => "enum",
            Item::Fn(_) => "fn",
            Item::Impl(item) => return impl_header(item),
            Item::Mod(_) => "mod",
            Item::Static(_) => "static",
            Item::Struct(_) => "struct",
            Item::Trait(_) => "trait",
            Item::Type(_) => "type",
            Item::Macro(_) => "macro",
            _ => "item",
        };
        format!("{kind} {}", self.names.join(", "))
    }

    /// Whether both are `impl`s of which evcxr would keep the new one only.
    fn replaces(&self, old: &Self) -> bool {
        let (Item::Impl(new), Item::Impl(former)) = (&self.placed.item, &old.placed.item) else {
            return false;
        };
        impl_header(new) == impl_header(former)
            && (new.trait_.is_some() || !methods_of_impl(new).is_disjoint(&methods_of_impl(former)))
    }
}

fn without_docs(item: &mut Item) {
    let attributes = match item {
        Item::Const(item) => &mut item.attrs,
        Item::Enum(item) => &mut item.attrs,
        Item::Fn(item) => &mut item.attrs,
        Item::Impl(item) => &mut item.attrs,
        Item::Static(item) => &mut item.attrs,
        Item::Struct(item) => &mut item.attrs,
        Item::Trait(item) => &mut item.attrs,
        Item::Type(item) => &mut item.attrs,
        Item::Union(item) => &mut item.attrs,
        Item::Macro(item) => &mut item.attrs,
        _ => return,
    };
    attributes.retain(|attribute| !attribute.path().is_ident("doc"));
}

fn impl_header(item: &syn::ItemImpl) -> String {
    let mut header = item.clone();
    header.items.clear();
    header.attrs.clear();
    header.to_token_stream().to_string().trim_end_matches(['{', '}', ' ']).to_owned()
}

/// The names that an `impl` is of: those of its type and its trait.
fn impl_subjects(item: &syn::ItemImpl) -> BTreeSet<String> {
    let of = item.self_ty.to_token_stream();
    let of_trait = item.trait_.iter().map(|(_, path, _)| path.to_token_stream());
    of_trait.chain([of]).flat_map(names::words).collect()
}

/// Items with the lines of the cell that they begin on.
type Lines = Vec<(usize, Live)>;

impl Scopes {
    /// Takes a cell in.
    pub(crate) fn cell(&mut self, number: usize, code: &Code) -> Result<CellScope, Refusal> {
        let refuse = |line, reason| Refusal { cell: number, line: Some(line), reason };
        let (mut new, same) = self.new_items(number, code);
        for (line, item) in &new {
            let replaced = self.live.iter().find(|old| item.replaces(old));
            // With its type, which the cell defines anew, an `impl` is another's.
            let with_type = |old: &&Live| {
                let Item::Impl(of) = &old.placed.item else { return false };
                let subjects = impl_subjects(of);
                new.iter().any(|(_, other)| other.names.iter().any(|name| subjects.contains(name)))
            };
            if let Some(old) = replaced.filter(|old| !with_type(old)) {
                return Err(refuse(
                    *line,
                    format!(
                        "`{}` of cell {} is written anew; in the notebook values made before have \
                         the new methods, which a program cannot do: give the methods new names",
                        item.called(),
                        old.placed.cell
                    ),
                ));
            }
        }
        self.without_known_imports(&mut new);

        let defined: BTreeSet<String> =
            new.iter().flat_map(|(_, item)| item.names.iter().cloned()).collect();
        self.mark_later(&defined, &mut new).map_err(|(line, reason)| refuse(line, reason))?;
        let marks: BTreeSet<String> =
            new.iter().flat_map(|(_, item)| item.marks.iter().cloned()).collect();
        let known = |name: &String| self.live.iter().any(|old| old.names.contains(name));
        let anew: BTreeSet<String> = defined
            .iter()
            .filter(|name| {
                known(name) || self.used.contains(*name) && !self.variables.contains_key(*name)
            })
            .chain(marks.iter().filter(|mark| self.used.contains(*mark)))
            .cloned()
            .collect();
        let mut scope = CellScope::default();
        let has_main = defined.contains("main");
        if !anew.is_empty() || has_main {
            scope.opens = true;
            self.is_open = true;
            for (line, item) in &new {
                if let Some(name) = item
                    .names
                    .iter()
                    .find(|name| {
                        self.variables.contains_key(*name)
                            && (anew.contains(*name) || anew.contains(&pattern_mark(name)))
                    })
                    .filter(|_| item.is_value())
                {
                    return Err(refuse(
                        *line,
                        format!("`{name}` is a variable, too; give the item another name"),
                    ));
                }
            }
            let line = new.iter().find(|(_, item)| {
                item.names.iter().chain(&item.marks).any(|name| anew.contains(name))
            });
            let line = line.map_or(1, |(line, _)| *line);
            let again =
                self.defined_again(number, &anew, &new).map_err(|reason| refuse(line, reason))?;
            self.in_blocks.extend(defined.iter().cloned());
            self.in_blocks.extend(again.iter().flat_map(|item| item.names.iter().cloned()));
            for item in &again {
                self.refuse_rooted(&item.placed.item).map_err(|reason| {
                    refuse(
                        line,
                        format!("`{}` is defined once more with it: {reason}", item.called()),
                    )
                })?;
            }
            scope.items.extend(again.iter().map(|item| item.placed.clone()));
            self.live.extend(again);
        }
        new.extend(same.into_iter().filter(|(_, item)| !self.has(item)));
        if self.is_open {
            self.in_blocks.extend(defined);
            for (line, item) in &new {
                self.refuse_rooted(&item.placed.item).map_err(|reason| refuse(*line, reason))?;
            }
        }
        for (_, item) in new {
            if self.is_open {
                scope.items.push(item.placed.clone());
            } else {
                self.root.push(item.placed.clone());
            }
            self.used.extend(item.uses.iter().cloned());
            self.live.push(item);
        }
        // A macro by rules is known behind its definition only.
        scope.items.sort_by_key(|placed| !matches!(placed.item, Item::Macro(_)));
        for piece in code.pieces.iter().filter(|piece| piece.item().is_none()) {
            self.refuse_lost(&piece.statement).map_err(|reason| refuse(piece.line, reason))?;
            self.refuse_rooted(&piece.statement).map_err(|reason| refuse(piece.line, reason))?;
            self.statement(number, &piece.statement);
        }
        if code.pieces.last().is_some_and(Piece::is_value) {
            let shown = method_mark("evcxr_display");
            self.by_statements.insert(shown.clone());
            self.used.insert(shown);
        }
        Ok(scope)
    }

    /// Refuses an `impl` that would act on earlier cells, and marks the methods of traits that may
    /// take the place of others.
    fn mark_later(
        &self,
        defined: &BTreeSet<String>,
        new: &mut [(usize, Live)],
    ) -> Result<(), (usize, String)> {
        let earlier = Earlier {
            items: self.live.iter().map(|item| &item.placed.item).collect(),
            by_statements: &self.by_statements,
            used: &self.used,
        };
        for (line, item) in new.iter() {
            if let Item::Impl(of) = &item.placed.item
                && let Some(reason) = earlier.acts(of, defined)
            {
                return Err((*line, format!("`{}` {reason}", item.called())));
            }
        }
        let impls: Vec<syn::ItemImpl> = new
            .iter()
            .filter_map(|(_, item)| match &item.placed.item {
                Item::Impl(of) => Some(of.clone()),
                _ => None,
            })
            .collect();
        let modules: Vec<String> = earlier
            .items
            .iter()
            .copied()
            .chain(new.iter().map(|(_, item)| &item.placed.item))
            .filter(|item| matches!(item, Item::Mod(_)))
            .flat_map(|item| names::words(item.to_token_stream()))
            .collect();
        for (_, item) in new {
            // A constant of a module of the notebook.
            if let Item::Use(_) = &item.placed.item {
                let is_const = |name: &&String| {
                    modules.windows(2).any(|two| two[0] == "const" && two[1] == **name)
                };
                let marks = item.names.iter().filter(is_const).map(|name| pattern_mark(name));
                item.marks.extend(marks.collect::<Vec<_>>());
            }
            if let Item::Trait(of) = &item.placed.item {
                let shadowed = earlier.shadowed_by(of, &impls, defined);
                item.marks.extend(shadowed.iter().map(|name| method_mark(name)));
            }
        }
        Ok(())
    }

    /// Refuses a path from the root to an item that stands in a block.
    fn refuse_rooted(&self, code: &impl quote::ToTokens) -> Result<(), String> {
        if self.in_blocks.is_empty() {
            return Ok(());
        }
        let tokens = code.to_token_stream();
        let mut rooted = names::rooted(tokens.clone());
        if rooted.any {
            rooted.names.extend(names::words(tokens));
        }
        match rooted.names.intersection(&self.in_blocks).next() {
            None => Ok(()),
            Some(name) => Err(format!(
                "a path begins at the root (`crate::`, `self::`, `super::`), where the program does \
                 not have `{name}`, as names are defined anew before it: write `{name}` without that"
            )),
        }
    }

    fn has(&self, item: &Live) -> bool {
        self.live.iter().any(|old| old.key == item.key)
    }

    /// The cell's items with their lines: the new ones, and those that are there already.
    fn new_items(&self, number: usize, code: &Code) -> (Lines, Lines) {
        let mut follows = None;
        let (mut new, mut same) = (Vec::new(), Vec::new());
        for piece in &code.pieces {
            let Some(item) = piece.item() else { continue };
            let is_impl = matches!(item, Item::Impl(_));
            let live = Live::new(number, piece, item, if is_impl { follows.clone() } else { None });
            if !is_impl && !matches!(live.placed.item, Item::Use(_)) {
                follows = live.names.first().cloned().or(follows);
            }
            if self.has(&live) {
                same.push((piece.line, live));
            } else {
                new.push((piece.line, live));
            }
        }
        (new, same)
    }

    /// Leaves out of each `use` what is there already: twice is an error.
    fn without_known_imports(&self, new: &mut [(usize, Live)]) {
        let known: BTreeSet<String> = self
            .live
            .iter()
            .filter_map(|old| match &old.placed.item {
                Item::Use(item) => Some(names::imports(item)),
                _ => None,
            })
            .flatten()
            .map(|import| import.text)
            .collect();
        for (_, live) in new {
            let Item::Use(item) = &live.placed.item else { continue };
            let all = names::imports(item);
            let left: Vec<_> = all.iter().filter(|one| !known.contains(&one.text)).collect();
            if left.len() < all.len() {
                live.placed.text =
                    left.iter().map(|one| one.text.as_str()).collect::<Vec<_>>().join(" ");
                live.names = left.iter().filter_map(|one| one.name.clone()).collect();
            }
        }
    }

    /// The items that use names which the cell defines anew, and so must be defined again. The former
    /// ones are forgotten.
    fn defined_again(
        &mut self,
        number: usize,
        anew: &BTreeSet<String>,
        new: &[(usize, Live)],
    ) -> Result<Vec<Live>, String> {
        let mut changed = anew.clone();
        let items = self.live.iter().chain(new.iter().map(|(_, item)| item));
        let mut types: BTreeSet<String> = items
            .filter(|item| item.is_type())
            .flat_map(|item| item.names.iter().filter(|name| anew.contains(*name)).cloned())
            .collect();
        // A `use` of a name that came by `*` before mostly names the same.
        let by_use_only = new.iter().all(|(_, item)| {
            !item.marks.iter().any(|mark| anew.contains(mark))
                && (matches!(item.placed.item, Item::Use(_))
                    || !item.names.iter().any(|name| anew.contains(name)))
        });
        let mut dead: BTreeSet<usize> = BTreeSet::new();
        for (at, old) in self.live.iter().enumerate() {
            let goes = |name: &String| anew.contains(name);
            let is_replaced = !old.names.is_empty() && old.names.iter().all(goes);
            if is_replaced
                || old.follows.as_ref().is_some_and(goes)
                || new.iter().any(|(_, item)| item.replaces(old))
            {
                dead.insert(at);
            }
        }
        let mut again: BTreeMap<usize, Live> = BTreeMap::new();
        loop {
            let before = again.len();
            for (at, old) in self.live.iter().enumerate() {
                if dead.contains(&at) || again.contains_key(&at) || old.uses.is_disjoint(&changed) {
                    continue;
                }
                let name = old.uses.intersection(&changed).next().map_or("", |name| unmarked(name));
                match &old.placed.item {
                    Item::Use(item) if names::imports(item).iter().any(Import::is_all) => {
                        if by_use_only {
                            continue;
                        }
                        return Err(format!(
                            "`{name}` is defined anew, and `{}` of cell {} takes all names from it, \
                             which an export cannot follow: name them one by one",
                            old.placed.text.trim(),
                            old.placed.cell
                        ));
                    }
                    Item::Impl(item) if impl_subjects(item).is_disjoint(&types) => {
                        if by_use_only {
                            continue;
                        }
                        return Err(format!(
                            "`{name}` is defined anew, and `{}` of cell {} uses it: in the \
                             notebook the methods change under values made before, which a program \
                             cannot do; give it a new name",
                            old.called(),
                            old.placed.cell
                        ));
                    }
                    Item::Mod(_) if !by_use_only => {
                        return Err(format!(
                            "`{name}` is defined anew, and `{}` of cell {} uses it; give it a new \
                             name",
                            old.called(),
                            old.placed.cell
                        ));
                    }
                    Item::Mod(_) => continue,
                    _ => {}
                }
                let mut copy = old.clone();
                copy.placed.cell = number;
                copy.placed.is_again = true;
                changed.extend(copy.names.iter().cloned());
                if copy.is_type() {
                    types.extend(copy.names.iter().cloned());
                }
                again.insert(at, copy);
            }
            if again.len() == before {
                break;
            }
        }
        self.refuse_two_traits(&types)?;
        if !by_use_only {
            self.lose(number, &types);
        }
        dead.extend(again.keys());
        let mut at = 0;
        self.live.retain(|_| {
            at += 1;
            !dead.contains(&(at - 1))
        });
        Ok(again.into_values().collect())
    }

    /// Refuses a trait that is defined anew and was one of a type that stays: the type would have the
    /// methods of both traits.
    fn refuse_two_traits(&self, types: &BTreeSet<String>) -> Result<(), String> {
        let is_trait = |name: &String| {
            types.contains(name)
                && self.live.iter().any(|old| {
                    matches!(&old.placed.item, Item::Trait(item)
                        if item.ident == name && !item.items.is_empty())
                })
        };
        for old in &self.live {
            let Item::Impl(item) = &old.placed.item else { continue };
            let Some((_, path, _)) = &item.trait_ else { continue };
            let name = path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default();
            let of = names::words(item.self_ty.to_token_stream());
            if is_trait(&name) && !of.iter().any(|word| types.contains(word)) {
                return Err(format!(
                    "the trait `{name}` is defined anew, and `{}` of cell {} is for a type that \
                     stays, which would have the methods of both: give the new trait another name",
                    old.called(),
                    old.placed.cell
                ));
            }
        }
        Ok(())
    }

    /// Marks the variables that may hold values of types that are defined anew. One that is of
    /// another's type, whose name the notebook takes, is lost to the kernel only if its `let` names
    /// the type.
    fn lose(&mut self, number: usize, types: &BTreeSet<String>) {
        // Also by way of functions that make such values, and of other variables.
        let (own, others): (BTreeSet<String>, BTreeSet<String>) = types
            .iter()
            .cloned()
            .partition(|name| self.live.iter().any(|item| item.names.contains(name)));
        let mut reach = own;
        loop {
            let before = reach.len();
            for item in &self.live {
                if !item.uses.is_disjoint(&reach) {
                    reach.extend(item.names.iter().cloned());
                }
            }
            for (name, held) in &self.variables {
                if !held.of.is_disjoint(&reach) || !held.typed.is_disjoint(&others) {
                    reach.insert(name.clone());
                }
            }
            if reach.len() == before {
                break;
            }
        }
        let of = types.iter().next().cloned().unwrap_or_default();
        for name in self.variables.keys().filter(|name| reach.contains(*name)) {
            self.lost.insert(name.clone(), (of.clone(), number));
        }
    }

    fn refuse_lost(&self, statement: &Stmt) -> Result<(), String> {
        if self.lost.is_empty() || matches!(statement, Stmt::Item(_)) {
            return Ok(());
        }
        let used = names::used_by(statement);
        let Some((name, (of, cell))) = self.lost.iter().find(|(name, _)| used.contains(*name))
        else {
            return Ok(());
        };
        let made = self.variables.get(name).map_or(0, |held| held.cell);
        Err(format!(
            "`{name}` of cell {made} may hold a value of the former `{of}`, which cell {cell} defines \
             anew; define it once, or make `{name}` again"
        ))
    }

    fn statement(&mut self, number: usize, statement: &Stmt) {
        let free = names::free_in(statement);
        let of = names::used_by(statement);
        let typed: BTreeSet<String> = match statement {
            Stmt::Local(syn::Local { pat: syn::Pat::Type(typed), .. }) => {
                names::words(typed.ty.to_token_stream()).into_iter().collect()
            }
            _ => BTreeSet::new(),
        };
        let bound = names::variables(statement);
        // `lines.push(S)` puts into `lines` what it names.
        if bound.is_empty() {
            for name in &free {
                if let Some(held) = self.variables.get_mut(name) {
                    held.of.extend(of.iter().cloned());
                }
            }
        }
        let variables = &self.variables;
        let marks = names::marks_in(statement);
        let used: BTreeSet<String> =
            free.into_iter().filter(|name| !variables.contains_key(name)).chain(marks).collect();
        self.by_statements.extend(used.iter().cloned());
        self.used.extend(used);
        for variable in bound {
            self.lost.remove(&variable.name);
            self.variables
                .insert(variable.name, Held { cell: number, of: of.clone(), typed: typed.clone() });
        }
    }
}
