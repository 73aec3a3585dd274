//! The adapters of one model, and which of them is active.
//!
//! An adapter is a generation: an immutable [`Overlay`] that whoever uses it holds until done. The
//! registry maps names to generations; the model holds one pointer to the active one. Both are
//! changed under the registry's lock, which is never held while a file is read or an adapter built.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tunebook_models::{Model, Overlay};

use crate::adapters::Adapter;
use crate::adapters::frozen::FrozenAdapter;
use crate::adapters::full::FullWeights;
use crate::adapters::mix;
use crate::error::{Error, Result};
use crate::train::trained::Trained;

/// PEFT's name for rows of a batch without an adapter.
pub const BASE: &str = "__base__";

/// The state of a model: what answers when it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Active {
    /// The base itself.
    Base,
    /// The adapter of this name.
    Adapter(String),
    /// The adapter of this name, merged into copies of the weights.
    Merged(String),
    /// The model's own weights, while they are trained.
    Full,
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("the base"),
            Self::Adapter(name) => write!(f, "`{name}`"),
            Self::Merged(name) => write!(f, "`{name}`, merged"),
            Self::Full => f.write_str("the model's own weights, in training"),
        }
    }
}

/// What an overlay was made of.
pub(crate) enum Generation {
    Adapter(Arc<Adapter>),
    Merged(Arc<Adapter>),
    /// One that is on no model's list and is not trained.
    Frozen(Arc<Adapter>),
    /// Several of those, each with a weight.
    Mix(Arc<[(FrozenAdapter, f64)]>),
    Full(Arc<FullWeights>),
}

impl Generation {
    /// What the overlay was made of; `None` for the base's.
    pub(crate) fn of(overlay: &Overlay) -> Option<Arc<Self>> {
        overlay.owner()
    }

    fn active(&self) -> Active {
        match self {
            Self::Adapter(adapter) | Self::Frozen(adapter) => {
                Active::Adapter(adapter.name().to_owned())
            }
            Self::Mix(parts) => Active::Adapter(mix::description(parts)),
            Self::Merged(adapter) => Active::Merged(adapter.name().to_owned()),
            Self::Full(_) => Active::Full,
        }
    }

    /// The one adapter, merged or not.
    pub(crate) fn adapter(&self) -> Option<&Arc<Adapter>> {
        match self {
            Self::Adapter(adapter) | Self::Merged(adapter) | Self::Frozen(adapter) => Some(adapter),
            Self::Mix(_) | Self::Full(_) => None,
        }
    }
}

/// What answers when this handle is asked.
pub(crate) fn active(model: &Model) -> Active {
    Generation::of(&model.overlay()).map_or(Active::Base, |generation| generation.active())
}

/// The overlay of an adapter, or of the base ([`BASE`]).
///
/// # Errors
/// No adapter of that name.
pub(crate) fn overlay(model: &Model, name: &str) -> Result<Arc<Overlay>> {
    if name == BASE {
        return Ok(Arc::default());
    }
    Ok(Registry::of(model).lock().get(name)?.overlay)
}

/// # Errors
/// A handle that answers each text with an adapter of its own.
pub(crate) fn check_one(model: &Model) -> Result<()> {
    match model.snapshot().rows() {
        None => Ok(()),
        Some(_) => Err(Error::MixedHandle),
    }
}

/// The overlay of a handle and what a run on it trains: the model's own weights if they are
/// unfrozen, else the adapter.
///
/// # Errors
/// There is neither; the adapter is merged; the handle answers with several.
pub(crate) fn trained(model: &Model) -> Result<(Arc<Overlay>, Trained)> {
    check_one(model)?;
    let overlay = model.overlay();
    let trained = match Generation::of(&overlay).as_deref() {
        Some(Generation::Adapter(adapter)) => Trained::Adapter(Arc::clone(adapter)),
        Some(Generation::Full(weights)) => Trained::Full(Arc::clone(weights)),
        Some(Generation::Merged(adapter)) => {
            return Err(Error::Merged { name: adapter.name().to_owned() });
        }
        Some(Generation::Frozen(adapter)) => {
            return Err(Error::Frozen { name: adapter.name().to_owned() });
        }
        Some(Generation::Mix(parts)) => {
            return Err(Error::Frozen { name: mix::description(parts) });
        }
        None => {
            return Err(Error::NothingToTrain { resident: Registry::of(model).lock().names() });
        }
    };
    Ok((overlay, trained))
}

/// The adapters of one model; lives in the model.
#[derive(Default)]
pub(crate) struct Registry(Mutex<State>);

#[derive(Default)]
pub(crate) struct State {
    resident: BTreeMap<String, Resident>,
    /// The overlay that was switched off in favour of the base or of full fine-tuning.
    paused: Option<Arc<Overlay>>,
}

/// An adapter and its overlay.
#[derive(Clone)]
pub(crate) struct Resident {
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) overlay: Arc<Overlay>,
}

impl Resident {
    /// # Errors
    /// Something of the adapter has another size than what it replaces.
    pub(crate) fn new(model: &Model, adapter: Adapter) -> Result<Self> {
        let adapter = Arc::new(adapter);
        let owner = Arc::new(Generation::Adapter(Arc::clone(&adapter)));
        let overlay = Arc::new(adapter.hooks().overlay(model)?.owned_by(owner));
        Ok(Self { adapter, overlay })
    }
}

impl Registry {
    pub(crate) fn of(model: &Model) -> Arc<Self> {
        model.extension()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change keeps the state whole: maps and pointers are assigned, nothing in between
        // can fail.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(crate) fn names(&self) -> Vec<String> {
        self.resident.keys().cloned().collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Resident> {
        self.resident.values()
    }

    pub(crate) fn get(&self, name: &str) -> Result<Resident> {
        self.resident
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoSuchAdapter { name: name.to_owned(), available: self.names() })
    }

    pub(crate) fn check_free(&self, name: &str) -> Result<()> {
        if self.resident.contains_key(name) {
            return Err(Error::AdapterExists { name: name.to_owned() });
        }
        Ok(())
    }

    /// # Errors
    /// Somebody replaced or removed the adapter of that name meanwhile.
    pub(crate) fn check_is(&self, name: &str, adapter: &Arc<Adapter>) -> Result<()> {
        match self.get(name)?.adapter {
            same if Arc::ptr_eq(&same, adapter) => Ok(()),
            _ => {
                let (name, available) = (name.to_owned(), self.names());
                Err(Error::NoSuchAdapter { name, available })
            }
        }
    }

    /// Makes an overlay the model's active one.
    pub(crate) fn activate(&mut self, model: &Model, overlay: &Arc<Overlay>) {
        self.paused = None;
        model.set_overlay(Arc::clone(overlay));
    }

    /// Adds a new adapter and makes it the active one.
    ///
    /// # Errors
    /// The name is taken: somebody was faster.
    pub(crate) fn add(&mut self, model: &Model, new: Resident) -> Result<()> {
        self.check_free(new.adapter.name())?;
        self.activate(model, &new.overlay);
        self.resident.insert(new.adapter.name().to_owned(), new);
        Ok(())
    }

    /// Puts another overlay to work and remembers the one that it switches off.
    pub(crate) fn pause(&mut self, model: &Model, instead: Arc<Overlay>) {
        let active = model.active_overlay();
        if Generation::of(&active).is_some_and(|generation| generation.adapter().is_some()) {
            self.paused = Some(active);
        }
        model.set_overlay(instead);
    }

    /// Puts the overlay back to work that [`State::pause`] switched off.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn resume(&mut self, model: &Model) -> Result<()> {
        if Generation::of(&model.active_overlay()).is_some_and(|g| g.adapter().is_some()) {
            return Ok(());
        }
        match self.paused.take() {
            Some(overlay) => {
                model.set_overlay(overlay);
                Ok(())
            }
            None => Err(Error::NothingToTrain { resident: self.names() }),
        }
    }

    /// Takes an adapter out. Whoever holds it keeps it; the base is active if it was.
    ///
    /// # Errors
    /// No adapter of that name.
    pub(crate) fn remove(&mut self, model: &Model, name: &str) -> Result<()> {
        let adapter = self.get(name)?.adapter;
        self.resident.remove(name);
        let is_it = |overlay: &Arc<Overlay>| {
            Generation::of(overlay)
                .is_some_and(|g| g.adapter().is_some_and(|other| Arc::ptr_eq(other, &adapter)))
        };
        self.paused.take_if(|paused| is_it(paused));
        if is_it(&model.active_overlay()) {
            model.set_overlay(Arc::default());
        }
        Ok(())
    }

    /// Puts `new`, which is the same adapter, in the place of `old`, under its own name, if `old` is
    /// still there.
    ///
    /// # Errors
    /// Somebody replaced or removed `old` meanwhile, or the new name is taken.
    pub(crate) fn replace(&mut self, model: &Model, old: &Resident, new: Resident) -> Result<()> {
        let (from, to) = (old.adapter.name().to_owned(), new.adapter.name().to_owned());
        self.check_is(&from, &old.adapter)?;
        if from != to {
            self.check_free(&to)?;
        }
        // What answers in its place, merged or not; `None`: it does not answer.
        let renamed = |overlay: &Arc<Overlay>| match Generation::of(overlay).as_deref()? {
            Generation::Adapter(adapter) if Arc::ptr_eq(adapter, &old.adapter) => {
                Some(Arc::clone(&new.overlay))
            }
            Generation::Merged(adapter) if Arc::ptr_eq(adapter, &old.adapter) => {
                let owner = Generation::Merged(Arc::clone(&new.adapter));
                Some(Arc::new(Overlay::clone(overlay).owned_by(Arc::new(owner))))
            }
            _ => None,
        };
        if let Some(paused) = self.paused.as_ref().and_then(renamed) {
            self.paused = Some(paused);
        }
        if let Some(active) = renamed(&model.active_overlay()) {
            model.set_overlay(active);
        }
        self.resident.remove(&from);
        self.resident.insert(to, new);
        Ok(())
    }
}
