//! A YAML document as a tree that knows the line of each key, and what is read from it: an error names
//! the place, what was expected and the nearest name that is known.

use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer as _, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_saphyr::Spanned;

use super::foreign;

/// What an entry of a map is called in an error.
pub(super) const KEY: &str = "key";

/// A value and the line of its key; line 0: it was not in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn entry(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => {
                entries.iter().find(|(name, _)| name == key).map(|entry| &entry.1)
            }
            _ => None,
        }
    }

    /// Takes an entry out of a map.
    pub(super) fn take(&mut self, key: &str) -> Option<Node> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        let at = entries.iter().position(|(name, _)| name == key)?;
        Some(entries.remove(at).1)
    }

    /// Puts a value at the end of a path of keys, making maps on the way where nothing is.
    ///
    /// # Errors
    /// The keys up to something that is no map.
    pub(super) fn put(&mut self, path: &[&str], value: Node) -> Result<(), String> {
        let [first, rest @ ..] = path else {
            *self = value;
            return Ok(());
        };
        if let Kind::Null = self.kind {
            self.kind = Kind::Map(Vec::new());
        }
        let Kind::Map(entries) = &mut self.kind else { return Err(String::new()) };
        let at = entries.iter().position(|(name, _)| name == first).unwrap_or_else(|| {
            entries.push(((*first).to_owned(), Node { line: 0, kind: Kind::Null }));
            entries.len() - 1
        });
        entries[at].1.put(rest, value).map_err(|below| match below.as_str() {
            "" => (*first).to_owned(),
            below => format!("{first}.{below}"),
        })
    }

    /// What the value is called in an error.
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.kind {
            Kind::Null => Unexpected::Unit,
            Kind::Bool(value) => Unexpected::Bool(*value),
            Kind::Unsigned(value) => Unexpected::Unsigned(*value),
            Kind::Signed(value) => Unexpected::Signed(*value),
            Kind::Float(value) => Unexpected::Float(*value),
            Kind::Text(value) => Unexpected::Str(value),
            Kind::List(_) => Unexpected::Seq,
            Kind::Map(_) => Unexpected::Map,
        }
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Kind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Kind, E> {
                Ok(Kind::Null)
            }

            fn visit_none<E>(self) -> Result<Kind, E> {
                Ok(Kind::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
                Ok(Kind::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
                Ok(Kind::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
                Ok(Kind::Signed(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
                Ok(Kind::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
                Ok(Kind::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Kind, A::Error> {
                let mut nodes = Vec::new();
                while let Some(item) = list.next_element::<Spanned<Kind>>()? {
                    nodes.push(Node { line: item.referenced.line(), kind: item.value });
                }
                Ok(Kind::List(nodes))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let kind = map.next_value::<Kind>()?;
                    entries.push((key.value, Node { line: key.referenced.line(), kind }));
                }
                Ok(Kind::Map(entries))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// What is wrong with a document, and where.
#[derive(Debug)]
pub(super) struct NodeError {
    /// The line of the innermost key, 0 if it is not in the file; none: not known yet.
    pub(super) line: Option<u64>,
    /// The keys on the way to it.
    pub(super) keys: Vec<String>,
    pub(super) problem: String,
}

impl NodeError {
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { line: None, keys: Vec::new(), problem: problem.into() }
    }

    /// The same as an error below this key.
    pub(super) fn below(mut self, key: &str, line: u64) -> Self {
        self.keys.insert(0, key.to_owned());
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Self::new(problem.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}, found {}", words(expected), value(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(unknown("value", variant, expected))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(unknown(KEY, field, expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("the key `{field}` is missing"))
    }
}

/// What is not known, with what may have been meant: another trainer's name for it, the nearest that
/// is known here, a key of another place; or all that are known.
pub(super) fn unknown(what: &str, found: &str, known: &[&str]) -> String {
    let here = |name: Option<&str>| name.map(|name| format!("`{name}`"));
    let key = |find: fn(&str) -> Option<String>| if what == KEY { find(found) } else { None };
    let meant = here(foreign::ours(found, known))
        .or_else(|| key(foreign::elsewhere))
        .or_else(|| here(nearest(found, known)))
        .or_else(|| key(foreign::section));
    match meant {
        Some(meant) => format!("there is no {what} `{found}` here; did you mean {meant}?"),
        None => {
            let all: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            format!("there is no {what} `{found}` here, expected one of {}", all.join(", "))
        }
    }
}

/// The name that differs least, if it is like enough to be meant.
pub(super) fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let distances = known.iter().map(|name| (strsim::levenshtein(found, name), *name));
    let (distance, near) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + near.len().min(found.len()) / 4).then_some(near)
}

/// What a type is called where people read it.
fn words(expected: &dyn Expected) -> String {
    match expected.to_string().as_str() {
        "usize" | "u64" | "u32" => "a whole number of 0 or more".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "path string" => "a text".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") => "a map of keys and values".to_owned(),
        other if other.starts_with("enum ") || other.starts_with("variant ") => {
            "a name, or one name with its settings".to_owned()
        }
        other => other.to_owned(),
    }
}

fn value(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Unit => "nothing (null)".to_owned(),
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => format!("{value:?}"),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Unsigned(value) => visitor.visit_u64(*value),
            Kind::Signed(value) => visitor.visit_i64(*value),
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text(value) => visitor.visit_borrowed_str(value),
            Kind::List(items) => visitor.visit_seq(Items { items: items.iter(), at: 0 }),
            Kind::Map(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), open: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match self.kind {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        match &self.kind {
            Kind::Text(name) => visitor.visit_enum(Choice { name, content: None }),
            Kind::Map(entries) => match entries.as_slice() {
                [(name, content)] => visitor.visit_enum(Choice { name, content: Some(content) }),
                [] => Err(NodeError::new(format!("expected one of {}", variants.join(", ")))),
                [.., (name, last)] => {
                    let error =
                        NodeError::new("expected one key, found several; a list has one an item");
                    Err(error.below(name, last.line))
                }
            },
            _ => {
                let (all, found) = (variants.join(", "), value(self.unexpected()));
                Err(NodeError::new(format!("expected one of {all}; found {found}")))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, NodeError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        self.at += 1;
        let number = self.at.to_string();
        seed.deserialize(item).map(Some).map_err(|error| error.below(&number, item.line))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (String, Node)>,
    /// The entry whose value is asked for next.
    open: Option<&'de (String, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, NodeError> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.open = Some(entry);
        let (key, node) = entry;
        let read = seed.deserialize(de::value::BorrowedStrDeserializer::new(key));
        read.map(Some).map_err(|error: NodeError| error.below(key, node.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let Some((key, node)) = self.open.take() else {
            return Err(NodeError::new("a value without a key"));
        };
        seed.deserialize(node).map_err(|error| error.below(key, node.line))
    }
}

/// A variant by name, with what it holds.
struct Choice<'de> {
    name: &'de str,
    content: Option<&'de Node>,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = NodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), NodeError> {
        let name: StringDeserializer<NodeError> = self.name.to_owned().into_deserializer();
        let line = self.content.map(|content| content.line);
        let variant = seed.deserialize(name).map_err(|error| NodeError { line, ..error })?;
        Ok((variant, self))
    }
}

impl<'de> Choice<'de> {
    /// What the name holds; `form`: how that is written.
    fn content(self, form: &str) -> Result<(&'de Node, &'de str), NodeError> {
        let missing = || {
            let name = self.name;
            NodeError::new(format!("`{name}` does not stand alone: write `{{{name}: {form}}}`"))
        };
        Ok((self.content.ok_or_else(missing)?, self.name))
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = NodeError;

    fn unit_variant(self) -> Result<(), NodeError> {
        match self.content {
            None | Some(Node { kind: Kind::Null, .. }) => Ok(()),
            Some(content) => {
                let error = NodeError::new(format!("`{}` has no settings", self.name));
                Err(error.below(self.name, content.line))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NodeError> {
        let (content, name) = self.content("…")?;
        seed.deserialize(content).map_err(|error| error.below(name, content.line))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, NodeError> {
        let (content, name) = self.content("[…]")?;
        content.deserialize_any(visitor).map_err(|error| error.below(name, content.line))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let (content, name) = self.content("{…}")?;
        content.deserialize_any(visitor).map_err(|error| error.below(name, content.line))
    }
}
