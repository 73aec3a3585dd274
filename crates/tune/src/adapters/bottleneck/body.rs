//! Bottleneck adapters as the body of an adapter: a [`Branch`] for each sublayer; see
//! [`Bottleneck`] for what it computes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use tunebook_models::{Branch, Context, Flow, Model, Residual, Sublayer};
use tunebook_ops as ops;

use crate::adapters::body::{AdapterTensor, Body};
use crate::adapters::bottleneck::{Activation, Bottleneck, BottleneckInit};
use crate::adapters::config::AdapterConfig;
use crate::adapters::dropout;
use crate::adapters::hooks::Hooks;
use crate::adapters::target;
use crate::error::{Error, Result};
use crate::train::rng::Stream;

/// AdapterHub's names of a layer's tensors.
const DOWN: &str = "adapter_down.0";
const UP: &str = "adapter_up";

#[derive(Debug)]
pub(crate) struct BottleneckBody {
    config: Bottleneck,
    layers: Vec<Arc<BottleneckLayer>>,
}

/// One adapter after one sublayer.
#[derive(Debug)]
struct BottleneckLayer {
    /// Of the sublayer in the model.
    joint: String,
    /// AdapterHub's name of the adapter: `model.layers.0.output_adapters`.
    path: String,
    /// `[units, hid]`
    down: Var,
    down_bias: Var,
    /// `[hid, units]`
    up: Var,
    up_bias: Var,
    activation: Activation,
    /// Reads the residual stream as well as the output.
    adds_stream: bool,
    is_parallel: bool,
    scaling: f64,
    dropout: f64,
}

/// The places that a configuration goes to, with the units of each.
///
/// # Errors
/// A block that does not exist or has no factor, no place that is left, or a place where
/// AdapterHub's adapter means something else.
fn places(model: &Model, config: &Bottleneck) -> Result<Vec<(Arc<Residual>, usize)>> {
    let blocks = model.num_blocks();
    let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
    if let Some(missing) = config.leave_out.iter().find(|block| **block >= blocks) {
        return refuse(
            "Bottleneck.leave_out",
            format!(
                "{:?}, of which {missing} is no block of this model's {blocks}",
                config.leave_out
            ),
            "numbers of blocks, counted from 0",
        );
    }
    let mut places = Vec::new();
    for joint in model.residuals() {
        let block = target::block_index(joint.path()).unwrap_or(0);
        if !config.sits_after(joint.sublayer()) || config.leave_out.contains(&block) {
            continue;
        }
        if config.original_ln_before && !config.is_parallel && joint.flow() == Flow::Normed {
            return refuse(
                "Bottleneck.original_ln_before",
                format!("true (seq_bn), and `{}` is normalised before it is added", joint.path()),
                "false on this model (double_seq_bn, or par_bn): AdapterHub would read the sum through the last block's norm",
            );
        }
        let units = config.units(block, model.config().hidden_size)?;
        places.push((joint, units));
    }
    match places.is_empty() {
        true => refuse(
            "Bottleneck.leave_out",
            "every block".to_owned(),
            "fewer blocks, so that one is left",
        ),
        false => Ok(places),
    }
}

/// AdapterHub's name of the adapter after a sublayer: `model.layers.0.mlp` ->
/// `model.layers.0.output_adapters`.
fn hub_path(joint: &Residual) -> String {
    let block = joint.path().rsplit_once('.').map_or("", |(block, _)| block);
    let name = match joint.sublayer() {
        Sublayer::Attention => "attention_adapters",
        Sublayer::FeedForward => "output_adapters",
    };
    format!("{block}.{name}")
}

impl BottleneckBody {
    pub(crate) fn plan(model: &Model, config: &Bottleneck) -> Result<BTreeMap<String, Vec<usize>>> {
        let hidden = model.config().hidden_size;
        let mut plan = BTreeMap::new();
        for (joint, units) in places(model, config)? {
            // AdapterHub makes it one where a factor leaves none.
            let (path, units) = (hub_path(&joint), units.max(1));
            plan.insert(format!("{path}.{DOWN}.weight"), vec![units, hidden]);
            plan.insert(format!("{path}.{DOWN}.bias"), vec![units]);
            plan.insert(format!("{path}.{UP}.weight"), vec![hidden, units]);
            plan.insert(format!("{path}.{UP}.bias"), vec![hidden]);
        }
        Ok(plan)
    }

    /// Refuses a factor that leaves no unit.
    ///
    /// # Errors
    /// It does; the error names the factor and the hidden size.
    pub(crate) fn check_units(model: &Model, config: &Bottleneck) -> Result<()> {
        for (joint, units) in places(model, config)? {
            if units == 0 {
                return Err(Error::Config {
                    field: "Bottleneck.reduction_factor",
                    value: format!(
                        "{}, which leaves no unit of the hidden size {} after `{}`",
                        config.reduction_factor,
                        model.config().hidden_size,
                        joint.path()
                    ),
                    expected: "a factor of at most the hidden size",
                });
            }
        }
        Ok(())
    }

    pub(crate) fn new(model: &Model, config: &Bottleneck) -> Result<Self> {
        let (hidden, device) = (model.config().hidden_size, model.device());
        let mut layers = Vec::new();
        for (joint, units) in places(model, config)? {
            let (path, units) = (hub_path(&joint), units.max(1));
            let zeros = |n: usize| Var::zeros(n, DType::F32, device);
            layers.push(Arc::new(BottleneckLayer {
                joint: joint.path().to_owned(),
                down: weight(config, (units, hidden), &format!("{path}.{DOWN}"), device)?,
                down_bias: zeros(units)?,
                up: weight(config, (hidden, units), &format!("{path}.{UP}"), device)?,
                up_bias: zeros(hidden)?,
                activation: Activation::from_name(&config.non_linearity)
                    .unwrap_or(Activation::Relu),
                // Beside each other, attention and feed-forward network have no stream between them
                // to read.
                adds_stream: config.original_ln_before
                    && !(joint.flow() == Flow::Parallel
                        && joint.sublayer() == Sublayer::FeedForward),
                is_parallel: config.is_parallel,
                scaling: config.scaling,
                dropout: config.dropout,
                path,
            }));
        }
        Ok(Self { config: config.clone(), layers })
    }
}

/// Initial values of one of the two maps.
fn weight(config: &Bottleneck, shape: (usize, usize), name: &str, device: &Device) -> Result<Var> {
    let mut stream = Stream::new(config.init_seed, name, 0);
    let mut normal = || stream.normal();
    let count = shape.0 * shape.1;
    let values: Vec<f32> = match config.init_weights {
        BottleneckInit::Bert => (0..count).map(|_| 0.02 * normal()).collect(),
        BottleneckInit::Houlsby => (0..count)
            .map(|_| {
                loop {
                    let value = normal();
                    if value.abs() <= 2.0 {
                        break 0.01 * value;
                    }
                }
            })
            .collect(),
        BottleneckInit::MamAdapter if name.ends_with(UP) => vec![0.0; count],
        BottleneckInit::MamAdapter => {
            let bound = 1.0 / (shape.1 as f32).sqrt();
            (0..count).map(|_| (2.0 * stream.uniform() - 1.0) * bound).collect()
        }
    };
    Ok(Var::from_tensor(&Tensor::from_vec(values, shape, device)?)?)
}

impl Branch for BottleneckLayer {
    fn forward(
        &self,
        x: &Tensor,
        y: &Tensor,
        context: &Context<'_>,
    ) -> tunebook_models::Result<Tensor> {
        let value = |var: &Var| context.value(var);
        let read = match (self.is_parallel, self.adds_stream) {
            (true, _) => x.clone(),
            (false, true) => ops::add(y, x)?,
            (false, false) => y.clone(),
        };
        // [b, t, hid] -> [b, t, units] -> [b, t, hid]
        let down = ops::linear(&read, value(&self.down), Some(&value(&self.down_bias)))?;
        let up = ops::linear(
            &self.activation.forward(&down)?.contiguous()?,
            value(&self.up),
            Some(&value(&self.up_bias)),
        )?;
        let mut added = (up * self.scaling)?;
        if let Some(mask) = dropout::mask(context.mode(), &self.path, self.dropout, &added)? {
            added = (added * mask)?;
        }
        Ok((added + y)?)
    }
}

impl Body for BottleneckBody {
    fn modules(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.joint.clone()).collect()
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        let mut tensors = Vec::with_capacity(4 * self.layers.len());
        for layer in &self.layers {
            for (name, var) in [
                (format!("{DOWN}.weight"), &layer.down),
                (format!("{DOWN}.bias"), &layer.down_bias),
                (format!("{UP}.weight"), &layer.up),
                (format!("{UP}.bias"), &layer.up_bias),
            ] {
                tensors.push(AdapterTensor::of_module(&layer.path, &name, var));
            }
        }
        tensors
    }

    fn config(&self) -> AdapterConfig {
        self.config.clone().into()
    }

    fn hooks(&self) -> Hooks {
        let branch = |layer: &Arc<BottleneckLayer>| {
            (layer.joint.clone(), Arc::clone(layer) as Arc<dyn Branch>)
        };
        Hooks { branches: self.layers.iter().map(branch).collect(), ..Hooks::default() }
    }

    fn merged(&self) -> Result<Option<Hooks>> {
        Ok(None) // no weight of the base does what a non-linear function does
    }
}
