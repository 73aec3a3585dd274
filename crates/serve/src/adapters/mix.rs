//! Weighted mixes of adapters, by a request's `model` (`support:0.7+poet:0.3`) or by `lora`, as
//! llama.cpp has it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tunebook_models::Model;
use tunebook_tune::{AdapterMix, FrozenAdapter};

use crate::adapters::{AdapterTable, Kind, Served, now};
use crate::api_error::{ApiError, ApiResult};
use crate::app::App;
use crate::fields::{Fields, shown};

/// Beyond it an adapter says nothing any more, and numbers may overflow.
const MOST_WEIGHT: f64 = 10.0;
/// Each costs as much as an adapter alone.
const MOST_PARTS: usize = 8;
/// Mixes that are kept, so that their prompts stay in the prefix cache. They hold no tensors.
const KEPT: usize = 32;

/// The parts of a mix: names with weights.
pub(crate) type Parts = Vec<(String, f64)>;

/// Generations and weights, in an order of their own.
type Key = Vec<(String, u64)>;

/// The mixes that were asked for last, the latest one at the end.
#[derive(Debug, Default)]
pub(crate) struct Mixes(Mutex<Vec<(Key, Arc<Served>)>>);

impl Mixes {
    /// Forgets mixes with a generation that `is_served` does not know, which would keep its memory.
    pub(crate) fn retain(&self, is_served: impl Fn(&str) -> bool) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(key, _)| key.iter().all(|(generation, _)| is_served(generation)));
    }
}

/// What a request's `model` and `lora` name.
///
/// # Errors
/// No such model (404); a mix that there cannot be (400).
pub(crate) fn asked(app: &App, fields: &mut Fields) -> ApiResult<Arc<Served>> {
    let model = fields.required_text("model", "a name of `/v1/models`")?;
    let Some(lora) = fields.take("lora") else { return app.find(&model) };
    let base = &app.adapters.base().name;
    if model != *base {
        let message =
            format!("`lora` is given, expected it with the base (`model: \"{base}\"`) only");
        return Err(ApiError::field("invalid_value", "lora", message));
    }
    app.adapters.mix(&app.model, "lora", &of_list(app, lora)?)
}

/// The parts of `support:0.7+poet:0.3`; `None`: it does not look like a mix. A name without a weight
/// has 1.
///
/// # Errors
/// A weight that is no number.
pub(crate) fn parse(model: &str) -> Option<ApiResult<Parts>> {
    if !model.contains([':', '+']) {
        return None;
    }
    let part = |part: &str| match part.rsplit_once(':') {
        None => Ok((part.to_owned(), 1.0)),
        Some((name, weight)) => match weight.parse::<f64>() {
            Ok(weight) => Ok((name.to_owned(), weight)),
            Err(_) => {
                let found: String = weight.chars().take(40).collect();
                let found = format!("a mix with the weight `{found}`");
                Err(ApiError::value("model", &found, "NAME:WEIGHT+NAME:WEIGHT with numbers"))
            }
        },
    };
    Some(model.split('+').map(part).collect())
}

/// The parts of llama.cpp's `lora`. An adapter's id is its place in `/v1/models` behind the base,
/// from 0, or its name.
fn of_list(app: &App, lora: Value) -> ApiResult<Parts> {
    let Value::Array(items) = lora else {
        return Err(ApiError::value("lora", &shown(&lora), "a list of `{id, scale}`"));
    };
    let known = app.adapters.all();
    let part = |(number, item): (usize, Value)| {
        let mut fields = Fields::of(item, &format!("lora[{number}]"))?;
        let expected = format!("an adapter's name, or its number below {}", known.len());
        let at = fields.name("id");
        let name = match fields.take("id") {
            None => return Err(fields.missing("id", &expected)),
            Some(Value::String(name)) => name,
            Some(id) => match id.as_u64().and_then(|id| known.get(id as usize)) {
                Some(served) => served.name.clone(),
                None => return Err(ApiError::value(&at, &shown(&id), &expected)),
            },
        };
        let scale = fields.number("scale", -MOST_WEIGHT..=MOST_WEIGHT)?;
        let scale = scale.ok_or_else(|| fields.missing("scale", "the adapter's weight"))?;
        fields.end()?;
        Ok((name, scale))
    };
    items.into_iter().enumerate().map(part).collect()
}

impl AdapterTable {
    /// The mix of these adapters, each as it is now. `param` is the field that asks for it.
    ///
    /// # Errors
    /// No such adapter (404); too many of them, the base or a name twice, a weight out of range, or
    /// an adapter without a weighted form (400).
    pub(crate) fn mix(&self, model: &Model, param: &str, parts: &Parts) -> ApiResult<Arc<Served>> {
        if parts.len() > MOST_PARTS {
            let expected = format!("at most {MOST_PARTS}");
            return Err(ApiError::value(param, &format!("a mix of {}", parts.len()), &expected));
        }
        let mut names = BTreeSet::new();
        let mut adapters: Vec<(FrozenAdapter, f64)> = Vec::with_capacity(parts.len());
        for (name, weight) in parts {
            let served = self.find(name).ok_or_else(|| self.unknown(param, name))?;
            let Kind::Adapter(adapter) = &served.kind else {
                let found = format!("a mix with the base `{}`", served.name);
                return Err(ApiError::value(param, &found, "adapters: the base is always in it"));
            };
            if !names.insert(served.name.clone()) {
                let found = format!("a mix with `{}` twice", served.name);
                return Err(ApiError::value(param, &found, "each adapter once"));
            }
            if !weight.is_finite() || weight.abs() > MOST_WEIGHT {
                let found = format!("a mix with the weight {weight}");
                let expected = format!("weights from -{MOST_WEIGHT} to {MOST_WEIGHT}");
                return Err(ApiError::value(param, &found, &expected));
            }
            if *weight != 0.0 {
                adapters.push((adapter.clone(), *weight));
            }
        }
        let mut key: Key =
            adapters.iter().map(|(a, w)| (a.fingerprint().to_owned(), w.to_bits())).collect();
        key.sort_unstable();
        let mut kept = self.mixes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = kept.iter().position(|(of, _)| *of == key) {
            let found = kept.remove(place);
            let served = Arc::clone(&found.1);
            kept.push(found);
            return Ok(served);
        }
        let mix = AdapterMix::new(model, &adapters)
            .map_err(|error| ApiError::field("mix_refused", param, error.to_string()))?;
        let served = Arc::new(Served {
            name: match adapters.is_empty() {
                true => self.base().name.clone(),
                false => description(&adapters),
            },
            generation: mix.fingerprint().to_owned(),
            overlay: mix.overlay(),
            kind: if adapters.is_empty() { Kind::Base } else { Kind::Mix },
            folder: None,
            watched: false,
            created: now(),
        });
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&served)));
        Ok(served)
    }
}

/// `support:0.7+poet:0.3`
fn description(adapters: &[(FrozenAdapter, f64)]) -> String {
    let part = |(adapter, weight): &(FrozenAdapter, f64)| format!("{}:{weight}", adapter.name());
    adapters.iter().map(part).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_weights_are_read() {
        let parts = |model: &str| parse(model).unwrap().unwrap();
        let part = |name: &str, weight| (name.to_owned(), weight);
        assert_eq!(parts("a:0.7+b:-.3"), [part("a", 0.7), part("b", -0.3)]);
        assert_eq!(parts("a@4f:2+b"), [part("a@4f", 2.0), part("b", 1.0)]);
        assert!(parse("support").is_none() && parse("support@4f3a").is_none());
        for wrong in ["a:", "a:x+b:1", "a:0.5:b"] {
            let error = parse(wrong).unwrap().unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), ("invalid_value", Some("model")));
        }
    }
}
