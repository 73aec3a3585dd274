//! Calls that a later cell gives another meaning, though they do not name what it defines.
//!
//! An `impl` acts on the whole program. In the kernel it acts from its cell on: what earlier cells
//! have called by the same method's name they have called already. Which method a call means depends
//! on types, which an export does not know. So it asks whether an earlier call of that name could
//! have meant this type at all.

use std::collections::BTreeSet;

use quote::ToTokens as _;
use syn::{Item, ItemImpl, ItemTrait, Type};

use crate::names;

/// Methods that types have by a `derive` or by the standard library, and how cells show a value.
const UNIVERSAL: [&str; 26] = [
    "as_ref",
    "borrow",
    "borrow_mut",
    "clamp",
    "clone",
    "clone_from",
    "clone_into",
    "cmp",
    "default",
    "eq",
    "evcxr_display",
    "fmt",
    "from",
    "ge",
    "gt",
    "hash",
    "into",
    "le",
    "lt",
    "max",
    "min",
    "ne",
    "partial_cmp",
    "to_owned",
    "to_string",
    "type_id",
];

/// Traits of the standard library whose methods are all in [`UNIVERSAL`], or are called by operators.
const CLOSED: [&str; 27] = [
    "Add",
    "AddAssign",
    "AsRef",
    "Borrow",
    "Clone",
    "Copy",
    "Debug",
    "Default",
    "Display",
    "Div",
    "Drop",
    "Eq",
    "Error",
    "EvcxrDisplay",
    "From",
    "FromStr",
    "Hash",
    "Index",
    "IndexMut",
    "Into",
    "Mul",
    "Neg",
    "Ord",
    "PartialEq",
    "PartialOrd",
    "Sub",
    "TryFrom",
];

/// Types of the standard library whose methods are known: those of [`FAMILIAR`].
const STANDARD: [&str; 35] = [
    "[]", "Arc", "BTreeMap", "BTreeSet", "Box", "HashMap", "HashSet", "Option", "PathBuf", "Path",
    "Range", "Rc", "Result", "String", "Vec", "VecDeque", "bool", "char", "f32", "f64", "i128",
    "i16", "i32", "i64", "i8", "isize", "str", "u128", "u16", "u32", "u64", "u8", "usize",
    "Duration", "Instant",
];

/// Names of methods that types of the standard library have themselves.
const FAMILIAR: &[&str] = &[
    "abs",
    "all",
    "and_then",
    "any",
    "append",
    "as_bytes",
    "as_slice",
    "as_str",
    "average",
    "bytes",
    "ceil",
    "chain",
    "chars",
    "checked_add",
    "chunks",
    "clear",
    "collect",
    "concat",
    "contains",
    "contains_key",
    "copied",
    "cos",
    "count",
    "count_ones",
    "dedup",
    "drain",
    "elapsed",
    "ends_with",
    "entry",
    "enumerate",
    "exists",
    "exp",
    "expect",
    "extend",
    "filter",
    "find",
    "first",
    "flat_map",
    "flatten",
    "floor",
    "fold",
    "for_each",
    "get",
    "get_mut",
    "insert",
    "is_empty",
    "is_none",
    "is_some",
    "iter",
    "iter_mut",
    "join",
    "keys",
    "last",
    "len",
    "lines",
    "ln",
    "log",
    "map",
    "matches",
    "nth",
    "ok",
    "parse",
    "pop",
    "position",
    "pow",
    "powf",
    "powi",
    "product",
    "push",
    "push_str",
    "remove",
    "repeat",
    "replace",
    "resize",
    "retain",
    "rev",
    "reverse",
    "round",
    "sin",
    "skip",
    "sort",
    "sort_by",
    "split",
    "sqrt",
    "starts_with",
    "sum",
    "swap",
    "take",
    "tan",
    "tanh",
    "to_lowercase",
    "to_uppercase",
    "to_vec",
    "trim",
    "trunc",
    "truncate",
    "unwrap",
    "unwrap_or",
    "values",
    "windows",
    "zip",
];

/// The name of a trait without its arguments.
fn last_word(path: &syn::Path) -> String {
    path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default()
}

fn trait_of(item: &ItemImpl) -> Option<String> {
    item.trait_.as_ref().map(|(_, path, _)| last_word(path))
}

/// The name of the type that an `impl` is for, without arguments and references.
fn subject(item: &ItemImpl) -> String {
    let mut of = &*item.self_ty;
    loop {
        of = match of {
            Type::Group(inner) => &inner.elem,
            Type::Paren(inner) => &inner.elem,
            Type::Reference(inner) => &inner.elem,
            _ => break,
        };
    }
    match of {
        Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
        Type::TraitObject(object) => object.bounds.iter().find_map(|bound| match bound {
            syn::TypeParamBound::Trait(bound) => Some(last_word(&bound.path)),
            _ => None,
        }),
        // A list or a tuple, with the methods of the standard library.
        _ => None,
    }
    .unwrap_or_else(|| "[]".to_owned())
}

/// Whether it is for every type that fits (`impl<T: A> B for T`).
fn is_blanket(item: &ItemImpl) -> bool {
    let of = subject(item);
    item.generics.type_params().any(|param| param.ident == of)
}

/// The names within an `impl`.
pub(crate) fn methods_of_impl(item: &ItemImpl) -> BTreeSet<String> {
    let name = |item: &syn::ImplItem| match item {
        syn::ImplItem::Const(item) => Some(item.ident.to_string()),
        syn::ImplItem::Fn(item) => Some(item.sig.ident.to_string()),
        syn::ImplItem::Type(item) => Some(item.ident.to_string()),
        _ => None,
    };
    item.items.iter().filter_map(name).collect()
}

/// The names within a trait.
pub(crate) fn methods_of_trait(item: &ItemTrait) -> BTreeSet<String> {
    let name = |item: &syn::TraitItem| match item {
        syn::TraitItem::Const(item) => Some(item.ident.to_string()),
        syn::TraitItem::Fn(item) => Some(item.sig.ident.to_string()),
        syn::TraitItem::Type(item) => Some(item.ident.to_string()),
        _ => None,
    };
    item.items.iter().filter_map(name).collect()
}

/// The items before a cell, and what cells have used so far.
pub(crate) struct Earlier<'a> {
    pub(crate) items: Vec<&'a Item>,
    /// Names and marks that statements have used.
    pub(crate) by_statements: &'a BTreeSet<String>,
    /// Those that items have used, too.
    pub(crate) used: &'a BTreeSet<String>,
}

impl Earlier<'_> {
    fn named_trait(&self, name: &str) -> Option<&ItemTrait> {
        self.items.iter().find_map(|item| match item {
            Item::Trait(item) if item.ident == name => Some(item),
            _ => None,
        })
    }

    fn impls(&self) -> impl Iterator<Item = &ItemImpl> {
        self.items.iter().filter_map(|item| match item {
            Item::Impl(item) => Some(item),
            _ => None,
        })
    }

    /// Whether the type is the notebook's.
    fn is_own(&self, subject: &str) -> bool {
        self.items.iter().any(|item| {
            matches!(item, Item::Enum(_) | Item::Struct(_) | Item::Trait(_) | Item::Union(_))
                && names::defined_by(item).iter().any(|name| name == subject)
        })
    }

    /// Whether a statement may have made a value of the type.
    fn is_made(&self, subject: &str) -> bool {
        let mut reach = BTreeSet::from([subject.to_owned()]);
        loop {
            let before = reach.len();
            for item in &self.items {
                if names::used_by_item(item).is_disjoint(&reach) {
                    continue;
                }
                let marks = match item {
                    Item::Trait(item) => methods_of_trait(item),
                    // Its methods are called by the type's name, or on its values.
                    Item::Impl(item) if subject != self::subject(item) => methods_of_impl(item),
                    _ => BTreeSet::new(),
                };
                reach.extend(marks.iter().map(|name| names::method_mark(name)));
                reach.extend(names::defined_by(item));
            }
            if reach.len() == before {
                break;
            }
        }
        !reach.is_disjoint(self.by_statements)
    }

    /// Whether a call of this name on this type had a meaning before.
    fn had_meaning(&self, name: &str, new: &ItemImpl) -> bool {
        let (of, of_trait) = (subject(new), trait_of(new));
        let by_another_trait = self.impls().any(|item| {
            let other = trait_of(item).filter(|other| Some(other) != of_trait.as_ref());
            let fits = is_blanket(item) || is_blanket(new) || subject(item) == of;
            let methods = other.as_ref().and_then(|other| self.named_trait(other));
            fits && methods.is_some_and(|item| methods_of_trait(item).contains(name))
        });
        let by_itself = of_trait.is_some()
            && self.impls().any(|item| {
                item.trait_.is_none() && subject(item) == of && methods_of_impl(item).contains(name)
            });
        if by_another_trait || by_itself {
            return true;
        }
        let is_own_trait = of_trait.as_ref().is_none_or(|name| self.named_trait(name).is_some());
        if !self.is_own(&of) || is_blanket(new) {
            return FAMILIAR.contains(&name)
                || is_own_trait && UNIVERSAL.contains(&name)
                || !is_blanket(new) && !STANDARD.contains(&of.as_str());
        }
        // By a trait whose methods are not known here.
        let by_a_foreign_trait = self.impls().any(|item| {
            subject(item) == of
                && trait_of(item).is_some_and(|name| {
                    self.named_trait(&name).is_none() && !CLOSED.contains(&name.as_str())
                })
        });
        is_own_trait && (UNIVERSAL.contains(&name) || by_a_foreign_trait)
    }

    /// Why a cell's `impl` would act on earlier cells; `here` are the names that the cell defines.
    pub(crate) fn acts(&self, new: &ItemImpl, here: &BTreeSet<String>) -> Option<String> {
        let of_trait = trait_of(new);
        let of = subject(new);
        // Nothing before can have meant what this cell defines.
        let of_words = names::words(new.self_ty.to_token_stream());
        let trait_words = new.trait_.iter().map(|(_, path, _)| path.to_token_stream());
        let mut words = trait_words.flat_map(names::words).chain(of_words);
        if words.any(|word| here.contains(&word)) {
            return None;
        }
        let is_own = self.is_own(&of) && !is_blanket(new);
        if is_own && !self.is_made(&of) {
            return None;
        }
        if of_trait.as_deref() == Some("Drop") {
            return Some(
                "would act on values that earlier cells have dropped; in the notebook it acts from \
                 here on: write it in the cell of its type"
                    .to_owned(),
            );
        }
        let own_trait = of_trait.as_ref().and_then(|name| self.named_trait(name));
        let methods = match own_trait {
            Some(item) => methods_of_trait(item),
            None => methods_of_impl(new),
        };
        let name = methods.into_iter().find(|name| {
            self.used.contains(&names::method_mark(name)) && self.had_meaning(name, new)
        })?;
        Some(format!(
            "gives `{name}` another meaning, and earlier cells use a `{name}`; in the notebook \
             theirs stays: write the `impl` in the cell of its type, or give `{name}` another name"
        ))
    }

    /// The methods of a cell's trait that earlier cells may have called on types of theirs, where
    /// they meant others.
    pub(crate) fn shadowed_by(
        &self,
        new: &ItemTrait,
        impls: &[ItemImpl],
        here: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let mut methods = methods_of_trait(new);
        methods.retain(|name| self.used.contains(&names::method_mark(name)));
        let is_for_earlier = |item: &&ItemImpl| {
            trait_of(item).is_some_and(|name| new.ident == name)
                && (is_blanket(item) || !here.contains(&subject(item)))
        };
        let impls: Vec<_> = impls.iter().filter(is_for_earlier).collect();
        methods.retain(|name| {
            impls.iter().any(|item| !self.is_own(&subject(item)) || self.had_meaning(name, item))
        });
        methods
    }
}
