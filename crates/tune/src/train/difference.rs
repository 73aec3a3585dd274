//! What differs between two configurations: the field, and both values.

use std::fmt;

use serde_json::{Map, Value};

/// A field that is not what it was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    /// As the user writes it, with its type: `Lora.lora_alpha`.
    field: String,
    was: Value,
    is: Value,
}

impl Difference {
    /// The fields of two configurations of one type that differ, as their JSON has them. `except`
    /// are left out.
    pub(crate) fn all(kind: &str, was: &Value, is: &Value, except: &[&str]) -> Vec<Self> {
        let none = Map::new();
        let (was, is) = (was.as_object().unwrap_or(&none), is.as_object().unwrap_or(&none));
        let compared = was.iter().filter(|(field, _)| !except.contains(&field.as_str()));
        compared
            .filter_map(|(field, was)| {
                let is = is.get(field).unwrap_or(&Value::Null);
                let differs =
                    || Self { field: format!("{kind}.{field}"), was: was.clone(), is: is.clone() };
                (!same(was, is)).then(differs)
            })
            .collect()
    }
}

/// `` `Lora.lora_alpha` is 99, and was 8 ``
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}, and was {}", self.field, self.is, self.was)
    }
}

/// Equal, but for the last bits that a number may lose on its way through JSON.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let of_b = |(key, value): (&String, &Value)| {
                b.get(key).is_some_and(|other| same(value, other))
            };
            a.len() == b.len() && a.iter().all(of_b)
        }
        _ if a == b => true,
        // Two whole numbers are what they are: of large seeds every digit counts.
        _ if a.is_f64() || b.is_f64() => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * a.abs(),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_with_both_values() {
        let was = json!({"r": 4, "alpha": 0.1 + 0.2, "names": ["q"], "of": {"a": 1.0}, "rank": 1});
        let mut is = was.clone();
        let found = |is: &Value| -> Vec<String> {
            let all = Difference::all("Lora", &was, is, &["rank"]);
            all.iter().map(ToString::to_string).collect()
        };
        is["alpha"] = json!(0.3); // its last bit
        is["rank"] = json!(2);
        assert_eq!(found(&is), Vec::<String>::new());
        is["r"] = json!(8);
        is["names"] = json!(["q", "v"]);
        is["of"]["a"] = json!(2.0);
        let expected = [
            "`Lora.names` is [\"q\",\"v\"], and was [\"q\"]",
            "`Lora.of` is {\"a\":2.0}, and was {\"a\":1.0}",
            "`Lora.r` is 8, and was 4",
        ];
        let mut found = found(&is);
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn seeds_differ_in_their_last_digit() {
        let (was, is) = (json!({"seed": u64::MAX}), json!({"seed": u64::MAX - 1}));
        assert_eq!(Difference::all("TrainingArgs", &was, &is, &[]).len(), 1);
    }
}
