//! Weighted mixes of adapters, by a request's `model` (`support:0.7+poet:0.3`) or by `lora`, as
//! llama.cpp has it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tunebook_models::{Model, Overlay};
use tunebook_tune::{AdapterMix, FrozenAdapter};

use crate::adapters::{AdapterTable, Kind, Origin, Served, now};
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

/// What mixes of one key share. Their names may differ, as one generation may have several.
#[derive(Clone, Debug)]
struct Built {
    generation: String,
    overlay: Arc<Overlay>,
    created: u64,
}

/// Whether a mix that is built is kept for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Yes,
    No,
}

/// The mixes that were answered with last, the latest one at the end.
#[derive(Debug, Default)]
pub(crate) struct Mixes(Mutex<Vec<(Key, Built)>>);

impl Mixes {
    fn lock(&self) -> MutexGuard<'_, Vec<(Key, Built)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets mixes with a generation that `is_served` does not know, which would keep its memory.
    pub(crate) fn retain(&self, is_served: impl Fn(&str) -> bool) {
        self.lock().retain(|(key, _)| key.iter().all(|(generation, _)| is_served(generation)));
    }

    fn find(&self, key: &Key, keep: Keep) -> Option<Built> {
        let mut kept = self.lock();
        let place = kept.iter().position(|(of, _)| of == key)?;
        if keep == Keep::Yes {
            kept[place..].rotate_left(1);
            return kept.last().map(|(_, built)| built.clone());
        }
        kept.get(place).map(|(_, built)| built.clone())
    }

    /// Keeps a mix whose parts are served still, and returns the one to answer with: somebody may
    /// have built it meanwhile.
    fn keep(&self, key: Key, built: Built, is_served: impl Fn(&str) -> bool) -> Built {
        let mut kept = self.lock();
        if let Some((_, other)) = kept.iter().find(|(of, _)| *of == key) {
            return other.clone();
        }
        // Under the lock: a name that goes from here on forgets its mixes after this.
        if key.iter().all(|(generation, _)| is_served(generation)) {
            if kept.len() >= KEPT {
                kept.remove(0);
            }
            kept.push((key, built.clone()));
        }
        built
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
    app.adapters.mix(&app.model, "lora", &of_list(app, lora)?, Keep::Yes)
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
    /// The adapters of a mix, each as it is now, with their weights but for those of weight 0.
    /// `param` is the field that asks for it.
    ///
    /// # Errors
    /// No such adapter (404); too many of them, the base or a name twice, or a weight out of range
    /// (400).
    pub(crate) fn parts(&self, param: &str, parts: &Parts) -> ApiResult<Vec<(Arc<Served>, f64)>> {
        if parts.len() > MOST_PARTS {
            let expected = format!("at most {MOST_PARTS}");
            return Err(ApiError::value(param, &format!("a mix of {}", parts.len()), &expected));
        }
        let mut names = BTreeSet::new();
        let mut found = Vec::with_capacity(parts.len());
        for (name, weight) in parts {
            let served = self.find(name).ok_or_else(|| self.unknown(param, name))?;
            let Kind::Adapter(_) = &served.kind else {
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
                found.push((served, *weight));
            }
        }
        Ok(found)
    }

    /// The mix of these adapters: the base where there is none of them, and an adapter itself where it
    /// is alone with weight 1.
    ///
    /// # Errors
    /// As [`AdapterTable::parts`]; an adapter without a weighted form (400).
    pub(crate) fn mix(
        &self,
        model: &Model,
        param: &str,
        parts: &Parts,
        keep: Keep,
    ) -> ApiResult<Arc<Served>> {
        let parts = self.parts(param, parts)?;
        match &*parts {
            [] => return Ok(Arc::clone(self.base())),
            [(served, 1.0)] => return Ok(Arc::clone(served)),
            _ => {}
        }
        let mut key: Key =
            parts.iter().map(|(part, w)| (part.generation.clone(), w.to_bits())).collect();
        key.sort_unstable();
        let built = match self.mixes.find(&key, keep) {
            Some(built) => built,
            None => {
                let built = build(model, param, &parts)?;
                match keep {
                    Keep::Yes => self.mixes.keep(key, built, |of| self.is_served(of)),
                    Keep::No => built,
                }
            }
        };
        let Built { generation, overlay, created } = built;
        let (name, kind, origin) = (description(&parts), Kind::Mix, Origin::Memory);
        Ok(Arc::new(Served { name, generation, overlay, kind, origin, created }))
    }
}

fn build(model: &Model, param: &str, parts: &[(Arc<Served>, f64)]) -> ApiResult<Built> {
    let adapter = |(part, weight): &(Arc<Served>, f64)| Some((part.adapter()?.clone(), *weight));
    let adapters: Vec<(FrozenAdapter, f64)> = parts.iter().filter_map(adapter).collect();
    let mix = AdapterMix::new(model, &adapters)
        .map_err(|error| ApiError::field("mix_refused", param, error.to_string()))?;
    Ok(Built { generation: mix.fingerprint().to_owned(), overlay: mix.overlay(), created: now() })
}

/// `support:0.7+poet:0.3`
fn description(parts: &[(Arc<Served>, f64)]) -> String {
    let part = |(part, weight): &(Arc<Served>, f64)| format!("{}:{weight}", part.name);
    parts.iter().map(part).collect::<Vec<_>>().join("+")
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

    #[test]
    fn a_mix_of_what_is_served_no_more_is_not_kept() {
        let mixes = Mixes::default();
        let key = |generation: &str| vec![(generation.to_owned(), 0), ("other".to_owned(), 0)];
        let built = |generation: &str| {
            let (generation, overlay) = (generation.to_owned(), Arc::default());
            Built { generation, overlay, created: 0 }
        };
        mixes.keep(key("gone"), built("a"), |generation| generation != "gone");
        assert!(mixes.find(&key("gone"), Keep::Yes).is_none());
        mixes.keep(key("here"), built("b"), |_| true);
        // Of two who build one at a time both answer with the first.
        assert_eq!(mixes.keep(key("here"), built("c"), |_| true).generation, "b");
        mixes.keep(key("too"), built("d"), |_| true);
        assert!(mixes.find(&key("here"), Keep::No).is_some());
        assert_eq!(mixes.lock().last().unwrap().0, key("too"), "a look is no use");
        assert!(mixes.find(&key("here"), Keep::Yes).is_some());
        assert_eq!(mixes.lock().last().unwrap().0, key("here"));
    }
}
