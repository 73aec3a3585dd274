//! Who uses a model's own weights: a server answers with them, and full fine-tuning moves them in
//! place. Never both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tunebook_models::Model;

use crate::error::{Error, Result};

/// The users of one model's weights; lives in the model.
#[derive(Default)]
struct Uses(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// Where they are served.
    served: Vec<String>,
    /// Runs that move them.
    trained: usize,
}

impl Uses {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model's own weights, held as they are: as long as this lives, full fine-tuning of them is
/// refused. Adapters beside them are trained as always.
pub struct ServedWeights {
    uses: Arc<Uses>,
    at: String,
}

impl ServedWeights {
    /// Holds the weights of a model. `at` says in errors who does: `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// A run is training them.
    pub fn hold(model: &Model, at: &str) -> Result<Self> {
        let uses: Arc<Uses> = model.extension();
        let mut counts = uses.lock();
        if counts.trained > 0 {
            return Err(Error::InTraining);
        }
        counts.served.push(at.to_owned());
        drop(counts);
        Ok(Self { uses, at: at.to_owned() })
    }
}

impl std::fmt::Debug for ServedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServedWeights({})", self.at)
    }
}

impl Drop for ServedWeights {
    fn drop(&mut self) {
        let mut counts = self.uses.lock();
        if let Some(place) = counts.served.iter().position(|at| *at == self.at) {
            counts.served.swap_remove(place);
        }
    }
}

/// The weights of a model, moved by a run.
pub(crate) struct TrainedWeights(Arc<Uses>);

impl TrainedWeights {
    /// # Errors
    /// Somebody serves them.
    pub(crate) fn hold(model: &Model) -> Result<Self> {
        let uses: Arc<Uses> = model.extension();
        let mut counts = uses.lock();
        check(&counts)?;
        counts.trained += 1;
        drop(counts);
        Ok(Self(uses))
    }
}

impl Drop for TrainedWeights {
    fn drop(&mut self) {
        self.0.lock().trained -= 1;
    }
}

/// # Errors
/// Somebody serves the weights of the model.
pub(crate) fn check_not_served(model: &Model) -> Result<()> {
    check(&model.extension::<Uses>().lock())
}

fn check(counts: &Counts) -> Result<()> {
    match counts.served.first() {
        Some(at) => Err(Error::Served { at: at.clone() }),
        None => Ok(()),
    }
}
