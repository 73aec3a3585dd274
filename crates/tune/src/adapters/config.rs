//! The configuration of an adapter, of whatever type.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::adapters::adalora::AdaLora;
use crate::adapters::bottleneck::Bottleneck;
use crate::adapters::ia3::Ia3;
use crate::adapters::lora::Lora;
use crate::adapters::modules_to_save::Bias;
use crate::adapters::prefix_tuning::PrefixTuning;
use crate::adapters::prompt_tuning::PromptTuning;
use crate::adapters::target::{Choice, TargetModules};
use crate::error::Result;

/// The configuration of an adapter. `model.add_adapter("name", &Lora { .. })` makes it of any of
/// the types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "peft_type")]
#[non_exhaustive]
pub enum AdapterConfig {
    /// A low-rank update beside each projection.
    #[serde(rename = "LORA")]
    Lora(Lora),
    /// A low-rank update whose rank moves between the projections.
    #[serde(rename = "ADALORA")]
    AdaLora(AdaLora),
    /// Vectors that scale what projections take or give.
    #[serde(rename = "IA3")]
    Ia3(Ia3),
    /// Vectors before the tokens.
    #[serde(rename = "PROMPT_TUNING")]
    PromptTuning(PromptTuning),
    /// Keys and values before those of the tokens.
    #[serde(rename = "PREFIX_TUNING")]
    PrefixTuning(PrefixTuning),
    /// Small networks after the sublayers: AdapterHub's, which PEFT has not.
    #[serde(rename = "BOTTLENECK")]
    Bottleneck(Bottleneck),
}

impl AdapterConfig {
    /// PEFT's name of the type; `BOTTLENECK` for AdapterHub's.
    pub fn peft_type(&self) -> &'static str {
        match self {
            Self::Lora(_) => "LORA",
            Self::AdaLora(_) => "ADALORA",
            Self::Ia3(_) => "IA3",
            Self::PromptTuning(_) => "PROMPT_TUNING",
            Self::PrefixTuning(_) => "PREFIX_TUNING",
            Self::Bottleneck(_) => "BOTTLENECK",
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// A field out of its range: the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Lora(lora) => lora.validate(),
            Self::AdaLora(adalora) => adalora.validate(),
            Self::Ia3(ia3) => ia3.validate(),
            Self::PromptTuning(prompt) => prompt.validate(),
            Self::PrefixTuning(prefix) => prefix.validate(),
            Self::Bottleneck(bottleneck) => bottleneck.validate(),
        }
    }

    /// The fields, if it is a LoRA.
    pub fn as_lora(&self) -> Option<&Lora> {
        match self {
            Self::Lora(lora) => Some(lora),
            _ => None,
        }
    }

    /// What there is to say about it in a table: names and values.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Lora(lora) => vec![
                ("type", if lora.use_dora { "DoRA" } else { "LoRA" }.to_owned()),
                ("r", lora.r.to_string()),
                ("lora_alpha", lora.lora_alpha.to_string()),
                ("lora_dropout", lora.lora_dropout.to_string()),
            ],
            Self::AdaLora(adalora) => vec![
                ("type", "AdaLoRA".to_owned()),
                ("init_r", adalora.init_r.to_string()),
                ("target_r", adalora.target_r.to_string()),
                ("lora_alpha", adalora.lora_alpha.to_string()),
                ("lora_dropout", adalora.lora_dropout.to_string()),
            ],
            Self::Ia3(_) => vec![("type", "IA3".to_owned())],
            Self::PromptTuning(prompt) => vec![
                ("type", "prompt tuning".to_owned()),
                ("num_virtual_tokens", prompt.num_virtual_tokens.to_string()),
            ],
            Self::PrefixTuning(prefix) => vec![
                ("type", "prefix tuning".to_owned()),
                ("num_virtual_tokens", prefix.num_virtual_tokens.to_string()),
                ("prefix_projection", prefix.prefix_projection.to_string()),
            ],
            Self::Bottleneck(bottleneck) => vec![
                ("type", bottleneck.kind().to_owned()),
                ("reduction_factor", bottleneck.reduction_factor.to_string()),
                ("non_linearity", bottleneck.non_linearity.clone()),
                ("dropout", bottleneck.dropout.to_string()),
            ],
        }
    }

    /// Which of the model's own tensors are trained with it: biases, modules, and whether a tied
    /// table may be among them.
    pub(crate) fn own_weights(&self) -> (Bias, &[String], bool) {
        match self {
            Self::Lora(lora) => (lora.bias, &lora.modules_to_save, lora.ensure_weight_tying),
            Self::AdaLora(adalora) => {
                (adalora.bias, &adalora.modules_to_save, adalora.ensure_weight_tying)
            }
            Self::Ia3(ia3) => (Bias::None, &ia3.modules_to_save, false),
            Self::PromptTuning(_) | Self::PrefixTuning(_) | Self::Bottleneck(_) => {
                (Bias::None, &[], false)
            }
        }
    }

    /// Before each tensor's name in PEFT's file.
    pub(crate) fn key_prefix(&self) -> &'static str {
        match self {
            Self::Lora(_) | Self::AdaLora(_) | Self::Ia3(_) => "base_model.model.",
            Self::PromptTuning(_) | Self::PrefixTuning(_) | Self::Bottleneck(_) => "",
        }
    }

    /// Which modules it goes to; `None` for a type that goes to none by name.
    pub(crate) fn choice(&self) -> Option<Choice<'_>> {
        match self {
            Self::Lora(lora) => Some(lora.choice()),
            Self::AdaLora(adalora) => Some(adalora.choice()),
            Self::Ia3(ia3) => Some(ia3.choice()),
            Self::PromptTuning(_) | Self::PrefixTuning(_) | Self::Bottleneck(_) => None,
        }
    }

    /// Its names of modules, and its numbers of blocks where it has such.
    pub(crate) fn choice_mut(
        &mut self,
    ) -> Option<(&mut TargetModules, Option<&mut Option<Vec<usize>>>)> {
        match self {
            Self::Lora(lora) => {
                Some((&mut lora.target_modules, Some(&mut lora.layers_to_transform)))
            }
            Self::AdaLora(adalora) => {
                Some((&mut adalora.target_modules, Some(&mut adalora.layers_to_transform)))
            }
            Self::Ia3(ia3) => Some((&mut ia3.target_modules, None)),
            Self::PromptTuning(_) | Self::PrefixTuning(_) | Self::Bottleneck(_) => None,
        }
    }
}

/// `LoRA r=8, lora_alpha=16`
impl fmt::Display for AdapterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lora(lora) => write!(f, "LoRA r={}, lora_alpha={}", lora.r, lora.lora_alpha),
            Self::AdaLora(adalora) => write!(
                f,
                "AdaLoRA init_r={}, target_r={}, lora_alpha={}",
                adalora.init_r, adalora.target_r, adalora.lora_alpha
            ),
            Self::Ia3(_) => write!(f, "IA3"),
            Self::PromptTuning(prompt) => {
                write!(f, "prompt tuning, {} virtual tokens", prompt.num_virtual_tokens)
            }
            Self::PrefixTuning(prefix) => {
                let projection = if prefix.prefix_projection { ", with a projection" } else { "" };
                write!(f, "prefix tuning, {} virtual tokens{projection}", prefix.num_virtual_tokens)
            }
            Self::Bottleneck(bottleneck) => {
                write!(
                    f,
                    "{} adapter, reduction_factor={}",
                    bottleneck.kind(),
                    bottleneck.reduction_factor
                )
            }
        }
    }
}

impl From<&AdapterConfig> for AdapterConfig {
    fn from(config: &AdapterConfig) -> Self {
        config.clone()
    }
}

/// A configuration of one type, given or lent, is one of any type.
macro_rules! of {
    ($($variant:ident),*) => {$(
        impl From<&$variant> for AdapterConfig {
            fn from(config: &$variant) -> Self {
                Self::$variant(config.clone())
            }
        }

        impl From<$variant> for AdapterConfig {
            fn from(config: $variant) -> Self {
                Self::$variant(config)
            }
        }
    )*};
}
of!(Lora, AdaLora, Ia3, PromptTuning, PrefixTuning, Bottleneck);
