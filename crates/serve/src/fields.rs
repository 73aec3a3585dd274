//! The fields of a request's JSON object, read one by one. A field that nobody has read is refused
//! by name, so that no wish of a client is dropped in silence.

use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::api_error::{ApiError, ApiResult};

/// An object of a request.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where it stands in the request: empty, or `messages[0].`.
    at: String,
}

impl Fields {
    /// A request's body.
    pub(crate) fn parse(body: &[u8]) -> ApiResult<Self> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            let message = format!("the body is no JSON: {error}; expected an object");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
        })?;
        match value {
            Value::Object(map) => Ok(Self { map, at: String::new() }),
            other => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_json",
                format!("the body is {}, expected an object", shown(&other)),
            )),
        }
    }

    /// An object within a request.
    pub(crate) fn of(value: Value, at: &str) -> ApiResult<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, at: format!("{at}.") }),
            other => Err(ApiError::value(at, &shown(&other), "an object")),
        }
    }

    /// The whole name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.at)
    }

    /// Takes a field; `null` is as good as none.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, field: &str, value: &Value, expected: &str) -> ApiResult<T> {
        Err(ApiError::value(&self.name(field), &shown(value), expected))
    }

    pub(crate) fn text(&mut self, field: &str) -> ApiResult<Option<String>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.wrong(field, &other, "a text"),
        }
    }

    pub(crate) fn required_text(&mut self, field: &str, what: &str) -> ApiResult<String> {
        self.text(field)?.ok_or_else(|| self.missing(field, what))
    }

    pub(crate) fn missing(&self, field: &str, what: &str) -> ApiError {
        let name = self.name(field);
        ApiError::field("missing_field", &name, format!("`{name}` is missing, expected {what}"))
    }

    pub(crate) fn flag(&mut self, field: &str) -> ApiResult<Option<bool>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => self.wrong(field, &other, "true or false"),
        }
    }

    pub(crate) fn number(
        &mut self,
        field: &str,
        range: RangeInclusive<f64>,
    ) -> ApiResult<Option<f64>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                self.wrong(field, &value, &expected)
            }
        }
    }

    pub(crate) fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> ApiResult<Option<i64>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = whole(&value);
        // What is beyond i64 is beyond every upper limit that is.
        let number = number.or_else(|| value.as_u64().map(|_| i64::MAX));
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = match *range.end() {
                    i64::MAX => format!("a whole number, at least {}", range.start()),
                    end => format!("a whole number from {} to {end}", range.start()),
                };
                self.wrong(field, &value, &expected)
            }
        }
    }

    /// A whole number of 64 bits, with a sign or without one.
    pub(crate) fn seed(&mut self, field: &str) -> ApiResult<Option<u64>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_u64().or_else(|| whole(&value).map(|number| number as u64)) {
            Some(number) => Ok(Some(number)),
            None => self.wrong(field, &value, "a whole number from -2^63 to 2^64 - 1"),
        }
    }

    pub(crate) fn count(&mut self, field: &str, least: i64) -> ApiResult<Option<usize>> {
        Ok(self.integer(field, least..=i64::MAX)?.map(|number| number as usize))
    }

    /// Takes a field that is not supported, but for values that ask for nothing.
    pub(crate) fn neutral(&mut self, field: &str, values: &[Value]) -> ApiResult<()> {
        match self.take(field) {
            Some(value) if !values.contains(&value) => {
                let name = self.name(field);
                let but = match values.first() {
                    Some(neutral) => format!(" other than {neutral}"),
                    None => String::new(),
                };
                let message = format!(
                    "`{name}` is {}; it is not supported{but}. Leave it out",
                    shown(&value)
                );
                Err(ApiError::field("unsupported_field", name, message))
            }
            _ => Ok(()),
        }
    }

    /// Takes fields that say something of the client alone and change no answer.
    pub(crate) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.remove(*field);
        }
    }

    /// Refuses the first field that nobody has read.
    pub(crate) fn end(self) -> ApiResult<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((field, _)) => {
                let name = self.name(&cut(field));
                let message = format!("`{name}` is not supported; leave it out");
                Err(ApiError::field("unsupported_field", name, message))
            }
        }
    }
}

/// A whole number. Some clients write them with a point; beyond 2^53 these are not exact.
fn whole(value: &Value) -> Option<i64> {
    let exact = |number: f64| {
        (number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0).then_some(number as i64)
    };
    value.as_i64().or_else(|| exact(value.as_f64()?))
}

/// A value for an error message.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        other => cut(&other.to_string()),
    }
}

fn cut(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn wrong_values_name_field_value_and_range() {
        let mut all = fields(json!({
            "a": 3, "b": "x", "c": 2.5, "d": 1e300, "e": 18_446_744_073_709_551_615u64, "f": [1],
            "g": 4.0, "h": null, "i": u64::MAX,
        }));
        let message = |error: ApiError| (error.param.clone().unwrap(), error.message);
        let (param, says) = message(all.text("a").unwrap_err());
        assert_eq!((param.as_str(), says.as_str()), ("a", "`a` is 3, expected a text"));
        let says = message(all.number("b", 0.0..=2.0).unwrap_err()).1;
        assert_eq!(says, "`b` is \"x\", expected a number from 0 to 2");
        let says = message(all.integer("c", 0..=9).unwrap_err()).1;
        assert_eq!(says, "`c` is 2.5, expected a whole number from 0 to 9");
        assert!(all.integer("d", 0..=9).is_err());
        assert!(all.integer("e", 0..=9).is_err());
        assert_eq!(
            message(all.flag("f").unwrap_err()).1,
            "`f` is a list of 1, expected true or false"
        );
        assert_eq!(all.integer("g", 0..=9).unwrap(), Some(4));
        assert_eq!(all.text("h").unwrap(), None);
        assert_eq!(all.count("i", 0).unwrap(), Some(i64::MAX as usize));
        all.end().unwrap();
    }

    #[test]
    fn seeds_have_all_of_their_64_bits() {
        let mut all = fields(json!({
            "a": u64::MAX, "b": (1u64 << 63) + 5, "c": -1, "d": 7.0, "e": 2e19, "f": 1.5,
        }));
        assert_eq!(all.seed("a").unwrap(), Some(u64::MAX));
        assert_eq!(all.seed("b").unwrap(), Some((1 << 63) + 5));
        assert_eq!(all.seed("c").unwrap(), Some(u64::MAX));
        assert_eq!(all.seed("d").unwrap(), Some(7));
        for field in ["e", "f"] {
            let error = all.seed(field).unwrap_err();
            assert!(error.message.ends_with("from -2^63 to 2^64 - 1"), "{}", error.message);
        }
        assert_eq!(all.seed("none").unwrap(), None);
    }

    #[test]
    fn what_is_not_read_is_refused() {
        let mut all = fields(json!({ "model": "m", "tools": [], "user": "me", "penalty": 0.5 }));
        all.ignore(&["user"]);
        all.neutral("tools", &[json!([])]).unwrap();
        let error = all.neutral("penalty", &[json!(0)]).unwrap_err();
        assert_eq!(error.code, "unsupported_field");
        assert!(error.message.contains("other than 0"), "{}", error.message);
        let error = all.end().unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), ("unsupported_field", Some("model")));
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        let deep = "[".repeat(100_000);
        for body in [b"".as_slice(), b"{", b"[]", b"3", b"{\"a\":\"\xff\"}", deep.as_bytes()] {
            assert_eq!(Fields::parse(body).unwrap_err().code, "invalid_json");
        }
    }
}
