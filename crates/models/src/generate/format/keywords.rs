//! The keywords of a JSON Schema: a keyword that would be ignored is refused by name, since the
//! answer would not be of the schema that was meant.

use serde_json::Value;

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

/// Refuses keywords that cannot be kept. Returns how many schemas there are, one within another.
///
/// # Errors
/// The keyword and its place.
pub(super) fn check(schema: &Value, at: &str) -> Result<usize, String> {
    let Value::Object(keywords) = schema else {
        return match schema {
            Value::Bool(_) => Ok(1),
            other => Err(format!("`{at}` is {}, expected a schema", kind(other))),
        };
    };
    let mut count = 1;
    for (keyword, value) in keywords {
        let below = format!("{at}/{keyword}");
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
            count += check(schema, &at)?;
        }
    }
    Ok(count)
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
        assert_eq!(check(&schema, "#"), Ok(5));
    }
}
