//! What a run trains: an adapter, or the model's own weights.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLockWriteGuard};

use candle_core::Tensor;
use tunebook_models::Model;
use tunebook_models::tensor_file::{Data, Entry};

use crate::adapters::Adapter;
use crate::adapters::full::FullWeights;
use crate::adapters::registry;
use crate::adapters::scheduled::Scheduled;
use crate::error::{Error, Result};
use crate::files::peft::AdapterFiles;
use crate::record::fingerprint;
use crate::record::run_record::Strategy;
use crate::train::parameter::Parameters;

/// What a run trains.
#[derive(Clone)]
pub(crate) enum Trained {
    Adapter(Arc<Adapter>),
    Full(Arc<FullWeights>),
}

/// Whether a run has trained the model's own weights; lives in the model.
#[derive(Default)]
struct BaseMoved(AtomicBool);

/// What a run that begins now does not begin with as its configuration says: the adapter or the
/// model's weights, where they were trained, loaded or combined before. `None`: nothing of that.
///
/// # Errors
/// Nothing to train.
pub fn moved_before(model: &Model) -> Result<Option<String>> {
    if model.extension::<BaseMoved>().0.load(Ordering::Relaxed) {
        return Ok(Some("the model's own weights".to_owned()));
    }
    Ok(match registry::trained(model)?.1 {
        Trained::Adapter(adapter) if adapter.is_moved() => {
            Some(format!("the adapter `{}`", adapter.name()))
        }
        _ => None,
    })
}

/// The name of a run that trains the model's own weights. No adapter can have it: there is a blank
/// in it.
const FULL: &str = "full fine-tuning";

impl Trained {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Adapter(adapter) => adapter.name(),
            Self::Full(_) => FULL,
        }
    }

    pub(crate) fn parameters(&self) -> Parameters {
        match self {
            Self::Adapter(adapter) => adapter.parameters(),
            Self::Full(weights) => weights.parameters.clone(),
        }
    }

    /// What there is to say about it in a few words, and how many modules it sits on.
    pub(crate) fn description(&self) -> (String, usize) {
        match self {
            Self::Adapter(adapter) => adapter.description(),
            Self::Full(weights) => ("full fine-tuning".to_owned(), weights.parameters.len()),
        }
    }

    /// An adapter as PEFT's files hold it.
    pub(crate) fn files(&self, model: &Model) -> Result<Option<AdapterFiles>> {
        match self {
            Self::Adapter(adapter) => adapter.files(model).map(Some),
            Self::Full(_) => Ok(None),
        }
    }

    /// What an adapter does by itself in a run of so many steps, if its type does anything.
    pub(crate) fn scheduled(&self, total_steps: usize) -> Option<Box<dyn Scheduled>> {
        match self {
            Self::Adapter(adapter) => adapter.scheduled(total_steps),
            Self::Full(_) => None,
        }
    }

    /// The configuration, as it is now.
    pub(crate) fn strategy(&self) -> Strategy {
        match self {
            Self::Adapter(adapter) => Strategy::Adapter(Box::new(adapter.config())),
            Self::Full(weights) => Strategy::Full(weights.config.clone()),
        }
    }

    /// To be held while the tensors are changed; see [`Adapter::in_step`].
    pub(crate) fn in_step(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self {
            Self::Adapter(adapter) => Some(adapter.in_step()),
            Self::Full(_) => None,
        }
    }

    /// To be called before the first step of a run.
    pub(crate) fn set_moved(&self, model: &Model) {
        match self {
            Self::Adapter(adapter) => adapter.set_moved(),
            Self::Full(_) => model.extension::<BaseMoved>().0.store(true, Ordering::Relaxed),
        }
    }

    /// To be called after every change of the tensors.
    pub(crate) fn changed(&self, model: &Model) {
        model.weights_changed();
        if let Self::Full(weights) = self {
            // An evaluation within the run has made it known anew.
            fingerprint::forget_base(model);
            weights.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The trained tensors as they are now: an adapter's are copied, a model's stay where they are.
    pub(crate) fn weights(&self, parameters: &Parameters) -> Result<Weights> {
        Ok(match self {
            Self::Adapter(_) => Weights::copy(parameters)?,
            Self::Full(weights) => Weights::InModel {
                parameters: parameters.clone(),
                version: Arc::clone(&weights.version),
                of: weights.version.load(Ordering::Relaxed),
            },
        })
    }
}

/// The values of a run's tensors at some step, by name, in the order of the parameters.
#[derive(Clone)]
pub(crate) enum Weights {
    /// A copy.
    Copied(Vec<(String, Vec<f32>)>),
    /// The model's own tensors, valid until they are trained further: there is no room for a second
    /// copy of a whole model.
    InModel { parameters: Parameters, version: Arc<AtomicU64>, of: u64 },
}

impl Default for Weights {
    fn default() -> Self {
        Self::Copied(Vec::new())
    }
}

impl Weights {
    /// A copy, whatever is trained.
    pub(crate) fn copy(parameters: &Parameters) -> Result<Self> {
        let mut weights = Vec::with_capacity(parameters.len());
        for parameter in parameters.iter() {
            weights.push((parameter.name.clone(), parameter.var.flatten_all()?.to_vec1()?));
        }
        Ok(Self::Copied(weights))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Copied(weights) => weights.len(),
            Self::InModel { parameters, .. } => parameters.len(),
        }
    }

    /// For a checkpoint, each name after `prefix`, flat.
    ///
    /// # Errors
    /// The model's weights have been trained on since.
    pub(crate) fn entries(&self, prefix: &str) -> Result<Vec<Entry<'_>>> {
        match self {
            Self::Copied(weights) => Ok(weights
                .iter()
                .map(|(name, values)| {
                    Entry::new(format!("{prefix}{name}"), &[values.len()], Data::F32(values))
                })
                .collect()),
            Self::InModel { parameters, .. } => {
                self.check()?;
                Ok(parameters
                    .iter()
                    .map(|p| {
                        let data = Data::Tensor(p.var.as_tensor());
                        Entry::new(format!("{prefix}{}", p.name), &[p.var.elem_count()], data)
                    })
                    .collect())
            }
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::InModel { version, of, .. } if version.load(Ordering::Relaxed) != *of => {
                let problem = "the model's weights have been trained on since, and the run holds no copy of them; \
                               load one of its checkpoints (`Run::last_checkpoint`)";
                Err(Error::Continue { problem: problem.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Puts the values back.
    ///
    /// # Errors
    /// The tensors are not those of `parameters`; the model's weights have been trained on since.
    /// Nothing has changed then.
    pub(crate) fn put_back(&self, parameters: &Parameters) -> Result<()> {
        let other = |problem: &str| Err(Error::Continue { problem: problem.to_owned() });
        match self {
            Self::Copied(weights) => {
                let pairs = || parameters.iter().zip(weights);
                let fits = weights.len() == parameters.len()
                    && pairs().all(|(parameter, (name, values))| {
                        parameter.name == *name && parameter.var.elem_count() == values.len()
                    });
                if !fits {
                    return other(
                        "its tensors are not those that are trained: another rank or other target modules",
                    );
                }
                for (parameter, (_, values)) in pairs() {
                    let var = &parameter.var;
                    var.set(&Tensor::from_slice(values, var.shape(), var.device())?)?;
                }
                Ok(())
            }
            Self::InModel { parameters: own, .. } => {
                self.check()?;
                let same = own.len() == parameters.len()
                    && own.iter().zip(parameters.iter()).all(|(a, b)| a.var.id() == b.var.id());
                if same { Ok(()) } else { other("its weights are those of another model") }
            }
        }
    }
}
