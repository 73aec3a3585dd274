//! The keywords of a JSON Schema: a keyword that would be ignored is refused by name, since the
//! answer would not be of the schema that was meant.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Keywords without an effect on which values are valid.
const ANNOTATIONS: [&str; 16] = [
    "$anchor",
    "$comment",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "id",
    "readOnly",
    "title",
    "writeOnly",
];

/// Keywords whose value is no schema.
const ASSERTIONS: [&str; 16] = [
    "$ref",
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "pattern",
];

/// How large a schema is, with all that it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    /// How many schemas there are, one within another.
    pub(super) schemas: usize,
    /// Bytes of all regular expressions.
    pub(super) patterns: usize,
    /// Bytes of the longest of them.
    pub(super) longest_pattern: usize,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.schemas += other.schemas;
        self.patterns += other.patterns;
        self.longest_pattern = self.longest_pattern.max(other.longest_pattern);
    }

    fn add_pattern(&mut self, pattern: &str) {
        let bytes = pattern.len();
        self.add(Self { schemas: 0, patterns: bytes, longest_pattern: bytes });
    }
}

/// Refuses keywords that cannot be kept.
///
/// # Errors
/// The keyword and its place.
pub(super) fn check(schema: &Value, at: &str) -> Result<Size, String> {
    let mut size = Size { schemas: 1, ..Size::default() };
    let Value::Object(keywords) = schema else {
        return match schema {
            Value::Bool(_) => Ok(size),
            other => Err(format!("`{at}` is {}, expected a schema", kind(other))),
        };
    };
    check_min_properties(keywords, at)?;
    for (keyword, value) in keywords {
        let below = format!("{at}/{keyword}");
        match (keyword.as_str(), value) {
            ("pattern", Value::String(pattern)) => size.add_pattern(pattern),
            ("patternProperties", Value::Object(map)) => {
                map.keys().for_each(|pattern| size.add_pattern(pattern));
            }
            (
                "const" | "enum" | "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum",
                value,
            ) => check_numbers(value, &below)?,
            _ => {}
        }
        let schemas: Vec<(String, &Value)> = match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(map)) => {
                map.iter().map(|(name, schema)| (format!("{below}/{name}"), schema)).collect()
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(list)) => {
                let numbered = list.iter().enumerate();
                numbered.map(|(number, schema)| (format!("{below}/{number}"), schema)).collect()
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => vec![(below, schema)],
            ("allOf" | "anyOf" | "oneOf" | "prefixItems", other) => {
                return Err(format!("`{below}` is {}, expected a list of schemas", kind(other)));
            }
            ("properties" | "patternProperties" | "$defs" | "definitions", other) => {
                return Err(format!("`{below}` is {}, expected schemas by name", kind(other)));
            }
            ("required" | "type", _) => Vec::new(),
            (known, _) if ASSERTIONS.contains(&known) || ANNOTATIONS.contains(&known) => Vec::new(),
            (unknown, _) => {
                return Err(format!("the keyword `{unknown}` (at `{at}`) is not supported"));
            }
        };
        for (at, schema) in schemas {
            size.add(check(schema, &at)?);
        }
    }
    Ok(size)
}

/// Names that no keyword lists may come twice, and would be counted twice.
fn check_min_properties(keywords: &Map<String, Value>, at: &str) -> Result<(), String> {
    let least = keywords.get("minProperties").and_then(Value::as_f64).unwrap_or(0.0);
    let required = keywords
        .get("required")
        .and_then(Value::as_array)
        .map_or(0, |names| names.iter().collect::<HashSet<_>>().len());
    let closed = keywords.get("additionalProperties") == Some(&Value::Bool(false))
        && !keywords.contains_key("patternProperties");
    if closed || least <= (required + 1) as f64 {
        return Ok(());
    }
    Err(format!(
        "`{at}/minProperties` is {least}, expected at most {}, one more than there are `required` \
         names, or `additionalProperties: false` without `patternProperties`",
        required + 1
    ))
}

/// Numbers are 64-bit floats to whoever compiles a schema, and its integers end at 2^63.
fn check_numbers(value: &Value, at: &str) -> Result<(), String> {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0; // 2^63
    match value {
        Value::Number(number) => {
            let float = number.as_f64().unwrap_or(f64::INFINITY);
            let kept = number.is_f64() || number.as_i64() == Some(float as i64);
            if float.abs() < BEYOND && kept {
                return Ok(());
            }
            Err(format!(
                "`{at}` is {number}, expected a number that a 64-bit float holds exactly, within \
                 ±2^63"
            ))
        }
        Value::Array(list) => list.iter().try_for_each(|value| check_numbers(value, at)),
        Value::Object(map) => map.values().try_for_each(|value| check_numbers(value, at)),
        _ => Ok(()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keywords_that_would_be_ignored_are_named_with_their_place() {
        for (schema, says) in [
            (
                json!({ "type": "array", "uniqueItems": true }),
                "the keyword `uniqueItems` (at `#`) is not supported",
            ),
            (
                json!({ "properties": { "a": { "anyOf": [{ "not": {} }] } } }),
                "the keyword `not` (at `#/properties/a/anyOf/0`) is not supported",
            ),
            (
                json!({ "$defs": { "x": { "maxLenght": 3 } } }),
                "the keyword `maxLenght` (at `#/$defs/x`) is not supported",
            ),
            (json!({ "x-guidance": { "lenient": true } }), "the keyword `x-guidance` (at `#`)"),
            (json!({ "items": 3 }), "`#/items` is a number, expected a schema"),
            (json!({ "anyOf": {} }), "`#/anyOf` is an object, expected a list of schemas"),
            (json!({ "properties": [] }), "`#/properties` is a list, expected schemas by name"),
        ] {
            let error = check(&schema, "#").unwrap_err();
            assert!(error.starts_with(says), "{error}");
        }
        // A property may have any name.
        let schema = json!({ "properties": { "not": true, "x-y": { "items": [{}, {}] } } });
        assert_eq!(check(&schema, "#").map(|size| size.schemas), Ok(5));
    }

    #[test]
    fn the_patterns_of_a_schema_are_measured() {
        let schema = json!({
            "items": { "pattern": "a?b?" }, "patternProperties": { "ab": { "pattern": "c" } },
            "properties": { "pattern": true },
        });
        let size = Size { schemas: 4, patterns: 7, longest_pattern: 4 };
        assert_eq!(check(&schema, "#"), Ok(size));
    }

    #[test]
    fn numbers_that_would_become_others_are_refused() {
        for schema in [
            json!({ "const": 9_007_199_254_740_993_u64 }),
            json!({ "enum": [1, { "a": [u64::MAX] }] }),
            json!({ "type": "integer", "minimum": 9_007_199_254_740_993_i64 }),
            json!({ "type": "integer", "maximum": 1e19 }),
            json!({ "type": "integer", "exclusiveMinimum": -1e30 }),
            json!({ "properties": { "a": { "exclusiveMaximum": i64::MAX } } }),
        ] {
            let error = check(&schema, "#").unwrap_err();
            assert!(error.contains("a 64-bit float holds exactly"), "{error}");
        }
        for schema in [
            json!({ "enum": [0.1, -1e15, 9_007_199_254_740_992_i64, i64::MIN + (1 << 20)] }),
            json!({ "minimum": -2.5, "maximum": 1e18, "exclusiveMinimum": true }),
        ] {
            check(&schema, "#").unwrap();
        }
    }

    #[test]
    fn properties_that_could_be_counted_twice_are_refused() {
        for (schema, kept) in [
            (json!({ "minProperties": 2 }), false),
            (json!({ "minProperties": 2, "additionalProperties": { "type": "null" } }), false),
            (json!({ "minProperties": 3, "required": ["a", "a"] }), false),
            (
                json!({
                    "minProperties": 2, "additionalProperties": false,
                    "patternProperties": { "a": true },
                }),
                false,
            ),
            (json!({ "minProperties": 1 }), true),
            (json!({ "minProperties": 3, "required": ["a", "b"] }), true),
            (json!({ "minProperties": 2, "additionalProperties": false }), true),
        ] {
            let checked = check(&schema, "#");
            assert_eq!(checked.is_ok(), kept, "{schema}: {checked:?}");
        }
    }
}
