//! The configuration of an adapter, of whatever type.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::adapters::adalora::AdaLora;
use crate::adapters::adapter_type::AdapterType;
use crate::adapters::bottleneck::Bottleneck;
use crate::adapters::ia3::Ia3;
use crate::adapters::lora::Lora;
use crate::adapters::prefix_tuning::PrefixTuning;
use crate::adapters::prompt_tuning::PromptTuning;
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

/// The variants, one for each type.
macro_rules! types {
    ($($variant:ident),*) => {
        impl AdapterConfig {
            /// The type, with the fields of this configuration.
            pub(crate) fn as_type(&self) -> &dyn AdapterType {
                match self {
                    $(Self::$variant(config) => config,)*
                }
            }

            /// The type as a program writes it: `Lora`.
            pub(crate) fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($variant),)*
                }
            }

            pub(crate) fn as_type_mut(&mut self) -> &mut dyn AdapterType {
                match self {
                    $(Self::$variant(config) => config,)*
                }
            }
        }

        $(
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
        )*
    };
}
types!(Lora, AdaLora, Ia3, PromptTuning, PrefixTuning, Bottleneck);

impl AdapterConfig {
    /// PEFT's name of the type; `BOTTLENECK` for AdapterHub's.
    pub fn peft_type(&self) -> &'static str {
        self.as_type().peft_type()
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// A field out of its range: the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        self.as_type().validate()
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
        self.as_type().fields()
    }
}

/// `LoRA r=8, lora_alpha=16`
impl fmt::Display for AdapterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_type().description())
    }
}

impl From<&AdapterConfig> for AdapterConfig {
    fn from(config: &AdapterConfig) -> Self {
        config.clone()
    }
}
