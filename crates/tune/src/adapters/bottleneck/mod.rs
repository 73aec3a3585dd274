//! Bottleneck adapters: a small feed-forward network where a sublayer hands on its output,
//! `s·up(f(down(h)))`, added to it.
//!
//! | | after | reads | f | units | s |
//! |---|---|---|---|---|---|
//! | [`Bottleneck::double_seq_bn`] ([Houlsby et al. 2019](https://arxiv.org/abs/1902.00751)) | attention and FFN | the output | swish | hid / 16 | 1 |
//! | [`Bottleneck::seq_bn`] ([Pfeiffer et al. 2020](https://arxiv.org/abs/2005.00247)) | FFN | the output, added to the residual stream | relu | hid / 16 | 1 |
//! | [`Bottleneck::par_bn`] ([He et al. 2021](https://arxiv.org/abs/2110.04366)) | FFN | the residual stream before it | relu | hid / 2 | 4 |
//!
//! Names and defaults are those of AdapterHub's package
//! [`adapters`](https://docs.adapterhub.ml/methods.html#bottleneck-adapters) (`SeqBnConfig`,
//! `DoubleSeqBnConfig`, `ParBnConfig`), and so are the files. PEFT has no such adapter.
//!
//! ```
//! use tunebook_tune::Bottleneck;
//! let houlsby = Bottleneck { reduction_factor: 8.0.into(), ..Bottleneck::double_seq_bn() };
//! houlsby.validate()?;
//! assert!(Bottleneck { reduction_factor: 0.0.into(), ..houlsby }.validate().unwrap_err().to_string().contains("reduction_factor` is 0"));
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

pub(crate) mod body;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use tunebook_models::{Model, Sublayer};

use crate::adapters::adapter_type::AdapterType;
use crate::adapters::body::Body;
use crate::adapters::bottleneck::body::BottleneckBody;
use crate::adapters::checks;
use crate::error::{Error, Result};

/// Configuration of a bottleneck adapter: the fields and names of AdapterHub's `BnConfig`. The
/// default is [`Bottleneck::seq_bn`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bottleneck {
    /// One after the attention of each block.
    pub mh_adapter: bool,
    /// One after the feed-forward network of each block.
    pub output_adapter: bool,
    /// The hidden size divided by the number of units.
    pub reduction_factor: ReductionFactor,
    /// What is between the two maps: `relu`, `swish` (or `silu`), `gelu`, `gelu_new`, `tanh`,
    /// `sigmoid` or `leakyrelu`.
    pub non_linearity: String,
    /// Reads the sublayer's output after it was added to the residual stream; otherwise the output
    /// alone. Of no effect with `is_parallel`.
    pub original_ln_before: bool,
    /// Reads the residual stream that the sublayer itself read.
    pub is_parallel: bool,
    /// Factor on what is added.
    pub scaling: f64,
    /// Probability with which a number of what is added is dropped in training, in 0..1.
    pub dropout: f64,
    /// Blocks without an adapter.
    pub leave_out: Vec<usize>,
    /// How the weights begin.
    pub init_weights: BottleneckInit,
    /// Seed of the initial weights (AdapterHub draws them from torch's global generator; this field
    /// is not in its files). Default 42.
    #[serde(default = "init_seed")]
    pub init_seed: u64,
}

fn init_seed() -> u64 {
    42
}

/// The hidden size divided by the number of units: one number, or some for each block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or a map of blocks to numbers")]
pub enum ReductionFactor {
    /// The same in all blocks.
    All(f64),
    /// By the number of the block, counted from 0, and `default` for those that are not named.
    Blocks(BTreeMap<String, f64>),
}

impl From<f64> for ReductionFactor {
    fn from(factor: f64) -> Self {
        Self::All(factor)
    }
}

impl fmt::Display for ReductionFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(factor) => write!(f, "{factor}"),
            Self::Blocks(factors) => write!(f, "{factors:?}"),
        }
    }
}

/// How the weights of a bottleneck adapter begin. Biases are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BottleneckInit {
    /// Normal with standard deviation 0.02, as in BERT: a new adapter changes a little.
    #[default]
    Bert,
    /// The first map uniform in ±1/√in, the second zero: a new adapter changes nothing.
    MamAdapter,
    /// Normal with standard deviation 0.01, nothing beyond two of them.
    Houlsby,
}

impl Default for Bottleneck {
    fn default() -> Self {
        Self::seq_bn()
    }
}

impl Bottleneck {
    /// After the feed-forward network (Pfeiffer et al.): AdapterHub's `SeqBnConfig`.
    pub fn seq_bn() -> Self {
        Self {
            mh_adapter: false,
            output_adapter: true,
            reduction_factor: ReductionFactor::All(16.0),
            non_linearity: "relu".to_owned(),
            original_ln_before: true,
            is_parallel: false,
            scaling: 1.0,
            dropout: 0.0,
            leave_out: Vec::new(),
            init_weights: BottleneckInit::Bert,
            init_seed: init_seed(),
        }
    }

    /// After attention and feed-forward network (Houlsby et al.): AdapterHub's `DoubleSeqBnConfig`.
    pub fn double_seq_bn() -> Self {
        Self {
            mh_adapter: true,
            non_linearity: "swish".to_owned(),
            original_ln_before: false,
            ..Self::seq_bn()
        }
    }

    /// Beside the feed-forward network (He et al.): AdapterHub's `ParBnConfig`.
    pub fn par_bn() -> Self {
        Self {
            reduction_factor: ReductionFactor::All(2.0),
            original_ln_before: false,
            is_parallel: true,
            scaling: 4.0,
            init_weights: BottleneckInit::MamAdapter,
            ..Self::seq_bn()
        }
    }

    /// AdapterHub's name of the kind that is nearest.
    pub(crate) fn kind(&self) -> &'static str {
        match (self.is_parallel, self.mh_adapter) {
            (true, _) => "par_bn",
            (false, true) => "double_seq_bn",
            (false, false) => "seq_bn",
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// No place to be in, a factor or scaling that is not above 0, a dropout outside 0..1 or an
    /// unknown non-linearity: the field, the value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if !self.mh_adapter && !self.output_adapter {
            return refuse(
                "Bottleneck.mh_adapter",
                "false, and `output_adapter` as well".to_owned(),
                "true for one of the two",
            );
        }
        // A thousand times the hidden size is beyond all that was ever of use.
        let above = |factor: f64| factor.is_finite() && factor >= 1e-3;
        const FACTOR: &str = "Bottleneck.reduction_factor";
        match &self.reduction_factor {
            ReductionFactor::All(factor) if above(*factor) => {}
            ReductionFactor::Blocks(factors) if factors.values().all(|factor| above(*factor)) => {
                if let Some(name) =
                    factors.keys().find(|name| *name != "default" && name.parse::<usize>().is_err())
                {
                    return refuse(
                        FACTOR,
                        format!("for `{name}`"),
                        "numbers of blocks, and `default`",
                    );
                }
            }
            other => {
                return refuse(
                    FACTOR,
                    other.to_string(),
                    "finite numbers of at least 0.001 (2 to 64 are usual)",
                );
            }
        }
        if Activation::from_name(&self.non_linearity).is_none() {
            return refuse(
                "Bottleneck.non_linearity",
                format!("`{}`", self.non_linearity),
                "relu, swish, silu, gelu, gelu_new, tanh, sigmoid or leakyrelu",
            );
        }
        if !self.scaling.is_finite() || self.scaling == 0.0 {
            return refuse(
                "Bottleneck.scaling",
                self.scaling.to_string(),
                "a finite number other than 0",
            );
        }
        checks::dropout("Bottleneck.dropout", self.dropout)
    }

    /// Whether there is one after this sublayer of each block.
    pub(crate) fn sits_after(&self, sublayer: Sublayer) -> bool {
        match sublayer {
            Sublayer::Attention => self.mh_adapter,
            Sublayer::FeedForward => self.output_adapter,
        }
    }

    /// Units of the adapters of a block; 0 where the factor leaves none.
    ///
    /// # Errors
    /// No factor for this block.
    pub(crate) fn units(&self, block: usize, hidden_size: usize) -> Result<usize> {
        let factor = match &self.reduction_factor {
            ReductionFactor::All(factor) => *factor,
            ReductionFactor::Blocks(factors) => {
                let found = factors.get(&block.to_string()).or_else(|| factors.get("default"));
                let Some(factor) = found else {
                    return Err(Error::Config {
                        field: "Bottleneck.reduction_factor",
                        value: format!("{}, and block {block} is not named", self.reduction_factor),
                        expected: "a factor for every block, or one named `default`",
                    });
                };
                *factor
            }
        };
        Ok((hidden_size as f64 / factor).floor() as usize)
    }
}

impl AdapterType for Bottleneck {
    fn peft_type(&self) -> &'static str {
        "BOTTLENECK"
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn description(&self) -> String {
        format!("{} adapter, reduction_factor={}", self.kind(), self.reduction_factor)
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("type", self.kind().to_owned()),
            ("reduction_factor", self.reduction_factor.to_string()),
            ("non_linearity", self.non_linearity.clone()),
            ("dropout", self.dropout.to_string()),
        ]
    }

    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>> {
        BottleneckBody::plan(model, self)
    }

    fn build(&self, model: &Model) -> Result<Arc<dyn Body>> {
        Ok(Arc::new(BottleneckBody::new(model, self)?))
    }

    fn check_new(&self, model: &Model) -> Result<()> {
        BottleneckBody::check_units(model, self)
    }
}

/// What is between the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Relu,
    Silu,
    Gelu,
    GeluTanh,
    Tanh,
    Sigmoid,
    LeakyRelu,
}

impl Activation {
    /// By AdapterHub's name, in letters of either case.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_lowercase().as_str() {
            "relu" => Self::Relu,
            "swish" | "silu" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "leakyrelu" => Self::LeakyRelu,
            _ => return None,
        })
    }

    /// # Shapes
    /// Any, which is the result's.
    pub(crate) fn forward(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Relu => x.relu(),
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Tanh => x.tanh(),
            // 1 / (1 + e⁻ˣ), of operations that candle differentiates
            Self::Sigmoid => (x.neg()?.exp()? + 1.0)?.recip(),
            // torch's slope
            Self::LeakyRelu => x.relu()? - (x.neg()?.relu()? * 0.01)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_refused_with_field_value_and_what_is_accepted() {
        let base = Bottleneck::double_seq_bn();
        for (config, says) in [
            (
                Bottleneck { mh_adapter: false, output_adapter: false, ..base.clone() },
                "`Bottleneck.mh_adapter` is false",
            ),
            (
                Bottleneck { reduction_factor: 0.0.into(), ..base.clone() },
                "`Bottleneck.reduction_factor` is 0",
            ),
            (
                Bottleneck { reduction_factor: 1e-12.into(), ..base.clone() },
                "`Bottleneck.reduction_factor` is 0.000000000001",
            ),
            (
                Bottleneck { reduction_factor: f64::NAN.into(), ..base.clone() },
                "`Bottleneck.reduction_factor` is NaN",
            ),
            (
                Bottleneck {
                    reduction_factor: ReductionFactor::Blocks([("first".to_owned(), 4.0)].into()),
                    ..base.clone()
                },
                "`Bottleneck.reduction_factor` is for `first`",
            ),
            (
                Bottleneck { non_linearity: "mish".to_owned(), ..base.clone() },
                "`Bottleneck.non_linearity` is `mish`",
            ),
            (Bottleneck { scaling: 0.0, ..base.clone() }, "`Bottleneck.scaling` is 0"),
            (Bottleneck { dropout: 1.0, ..base.clone() }, "`Bottleneck.dropout` is 1"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        for config in [Bottleneck::seq_bn(), base, Bottleneck::par_bn()] {
            config.validate().unwrap();
        }
    }

    #[test]
    fn units_follow_the_factor_of_the_block() {
        let factors = [("default".to_owned(), 16.0), ("1".to_owned(), 0.5)];
        let config = Bottleneck {
            reduction_factor: ReductionFactor::Blocks(factors.into()),
            ..Bottleneck::seq_bn()
        };
        assert_eq!([0, 1].map(|block| config.units(block, 100).unwrap()), [6, 200]);
        let config = Bottleneck {
            reduction_factor: ReductionFactor::Blocks(BTreeMap::new()),
            ..Bottleneck::seq_bn()
        };
        assert!(config.units(3, 100).unwrap_err().to_string().contains("block 3 is not named"));
    }

    #[test]
    fn activations_are_torchs() {
        let x = Tensor::new(&[-1.5f32, 0.7], &candle_core::Device::Cpu).unwrap();
        for (name, expected) in [
            ("relu", [0.0, 0.7]),
            ("swish", [-0.273_638_3, 0.467_731_4]),
            ("gelu", [-0.100_210_9, 0.530_625_3]),
            ("gelu_new", [-0.100_428_4, 0.530_570_1]),
            ("tanh", [-0.905_148_3, 0.604_367_8]),
            ("sigmoid", [0.182_425_5, 0.668_187_8]),
            ("leakyrelu", [-0.015, 0.7]),
        ] {
            let found =
                Activation::from_name(name).unwrap().forward(&x).unwrap().to_vec1::<f32>().unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{name}: {found} {expected}");
            }
        }
    }
}
