//! Who has how many places in the queue, so that one model's requests do not fill it for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::App;

/// Places by model.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<BTreeMap<String, usize>>);

impl Shares {
    /// Takes places for a model. Where `models` share the `room`, its last `kept` places are for
    /// models that have less than their equal part.
    ///
    /// # Errors
    /// There is none for this model; how many it has.
    fn take(
        &self,
        model: &str,
        places: usize,
        (room, kept, models): (usize, usize, usize),
    ) -> Result<(), usize> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: usize = shares.values().sum();
        let own = shares.get(model).copied().unwrap_or(0);
        if models > 1 && taken + places > room - kept && own + places > room / models {
            return Err(own);
        }
        *shares.entry(model.to_owned()).or_default() += places;
        Ok(())
    }

    fn give_back(&self, model: &str, places: usize) {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = shares.get_mut(model) {
            *own = own.saturating_sub(places);
            if *own == 0 {
                shares.remove(model);
            }
        }
    }
}

/// Places that a request has, until it is dropped.
pub(crate) struct Share {
    app: Arc<App>,
    model: String,
    places: usize,
}

impl Share {
    /// # Errors
    /// The model has its part, and the rest is for others; how many places it has.
    pub(crate) fn take(app: &Arc<App>, model: &str, places: usize) -> Result<Self, usize> {
        let (batch, queue) = (app.config.engine.max_batch_size, app.config.limits.max_queue);
        let models = 1 + app.adapters.len();
        app.shares.take(model, places, (batch + queue, queue / 4, models))?;
        Ok(Self { app: Arc::clone(app), model: model.to_owned(), places })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.app.shares.give_back(&self.model, self.places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_for_models_with_few() {
        let shares = Shares::default();
        let limits = (20, 4, 4);
        for _ in 0..16 {
            shares.take("a", 1, limits).unwrap();
        }
        assert_eq!(shares.take("a", 1, limits), Err(16));
        for _ in 0..4 {
            shares.take("b", 1, limits).unwrap();
        }
        shares.give_back("a", 1);
        assert_eq!(shares.take("a", 1, limits), Err(15));
        assert_eq!(shares.take("b", 2, limits), Err(4), "it has its part");
        shares.take("c", 1, limits).unwrap();
        shares.give_back("c", 1);
        assert!(!shares.0.lock().unwrap().contains_key("c"), "names are not kept");
    }

    #[test]
    fn one_model_alone_has_all_places() {
        let shares = Shares::default();
        (0..20).for_each(|_| shares.take("a", 1, (20, 4, 1)).unwrap());
    }
}
