//! LoRA: a low-rank update beside a frozen projection ([Hu et al.
//! 2021](https://arxiv.org/abs/2106.09685)).
//!
//! `y = x·Wᵀ + b + scaling · dropout(x)·Aᵀ·Bᵀ`, with A `[r, in]` and B `[out, r]` trained and W, b
//! frozen; `scaling` is `lora_alpha / r`, or `lora_alpha / √r` with rsLoRA ([Kalajdzievski
//! 2023](https://arxiv.org/abs/2312.03732)). A starts uniform in ±1/√in (Kaiming with a = √5, as in
//! PEFT) and B at zero, so that a new adapter changes nothing; [`LoraInit`] has other ways.
//!
//! With DoRA ([Liu et al. 2024](https://arxiv.org/abs/2402.09353)) the direction and the length of
//! each row are trained apart: `W' = m · (W + scaling·B·A) / ‖W + scaling·B·A‖`, with m `[out]`
//! trained too, and the norm, by rows, taken as a constant.
//!
//! ```
//! use tunebook_tune::Lora;
//! let lora = Lora { r: 16, lora_alpha: 32.0, target_modules: ["q_proj", "v_proj"].into(), ..Default::default() };
//! lora.validate()?;
//! assert!(Lora { r: 0, ..lora }.validate().unwrap_err().to_string().contains("`Lora.r` is 0"));
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

pub(crate) mod body;
pub(crate) mod linear;
pub(crate) mod svd;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;

use crate::adapters::adapter_type::{AdapterType, Bias, ChoiceMut, IN_MODEL};
use crate::adapters::body::Body;
use crate::adapters::checks;
use crate::adapters::lora::body::LoraBody;
use crate::adapters::target::{self, Choice, TargetModules};
use crate::error::{Error, Result};

/// Configuration of a LoRA adapter: the fields, names and defaults of PEFT's `LoraConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of the update. Default 8.
    pub r: usize,
    /// Numerator of the scaling. Default 8.
    pub lora_alpha: f64,
    /// Probability with which an input of the low-rank path is dropped in training, in 0..1.
    /// Default 0.
    pub lora_dropout: f64,
    /// The projections to adapt. Default `["q_proj", "v_proj"]`, PEFT's for the Llama family.
    pub target_modules: TargetModules,
    /// Scale by `lora_alpha / √r` in place of `lora_alpha / r`. Default false.
    pub use_rslora: bool,
    /// Train the length of each row apart from its direction (DoRA). Default false.
    pub use_dora: bool,
    /// Blocks to adapt among those that `target_modules` matches. Default all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What a block's number follows in a path, where the first number is not the one:
    /// `["layers"]`. Default none.
    pub layers_pattern: Vec<String>,
    /// Modules that stay as they are among those that `target_modules` matches. Default none.
    pub exclude_modules: Option<TargetModules>,
    /// Which of the model's biases are trained, too. Default none.
    pub bias: Bias,
    /// Modules whose own weights are trained whole and saved with the adapter: ends of paths,
    /// `lm_head`, `embed_tokens`. Default none.
    pub modules_to_save: Vec<String>,
    /// `modules_to_save` may name the embedding table of a model whose output head is that table;
    /// both are trained as one then. Default false.
    pub ensure_weight_tying: bool,
    /// Other ranks for some projections: name, path or regular expression to rank. Default none.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some projections: name, path or regular expression to alpha. Default none.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// B starts at zero; with false it starts random as A does, which is of use in tests only.
    /// Default true.
    pub init_lora_weights: bool,
    /// How the initial weights are made. PEFT's files have no such field, since what is saved is a
    /// plain LoRA. Default [`LoraInit::Kaiming`].
    pub lora_init: LoraInit,
    /// Seed of the initial weights (PEFT draws them from torch's global generator; this field is
    /// not in its files). Default 42.
    pub init_seed: u64,
}

/// How A and B begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// A uniform in ±1/√in, B zero.
    #[default]
    Kaiming,
    /// A normal with standard deviation 1/r, B zero.
    Gaussian,
    /// A and B are the r largest singular directions of the weight, which are taken out of the base
    /// beside them ([PiSSA, Meng et al. 2024](https://arxiv.org/abs/2404.02948)).
    Pissa,
    /// The same with the first r columns and rows of the weight's QR decomposition ([OLoRA,
    /// Büyükakyüz 2024](https://arxiv.org/abs/2406.01775)).
    Olora,
}

impl LoraInit {
    /// Whether a part of the base weight moves into A and B.
    pub(crate) fn takes_from_base(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora)
    }
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            use_rslora: false,
            use_dora: false,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            exclude_modules: None,
            bias: Bias::None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            init_lora_weights: true,
            lora_init: LoraInit::Kaiming,
            init_seed: 42,
        }
    }
}

impl Lora {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// Rank 0, an alpha that is zero, negative or not finite, or a dropout outside 0..1: the field,
    /// the value and the range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if self.r == 0 {
            return refuse(
                "Lora.r",
                self.r.to_string(),
                "a rank of at least 1 (8 and 16 are usual)",
            );
        }
        checks::alpha("Lora.lora_alpha", self.lora_alpha)?;
        checks::dropout("Lora.lora_dropout", self.lora_dropout)?;
        if let Some((name, r)) = self.rank_pattern.iter().find(|(_, r)| **r == 0) {
            return refuse("Lora.rank_pattern", format!("{r} for `{name}`"), "ranks of at least 1");
        }
        if let Some((name, alpha)) =
            self.alpha_pattern.iter().find(|(_, alpha)| !(alpha.is_finite() && **alpha > 0.0))
        {
            return refuse(
                "Lora.alpha_pattern",
                format!("{alpha} for `{name}`"),
                "finite numbers above 0",
            );
        }
        if self.use_dora && self.lora_init.takes_from_base() {
            return refuse(
                "Lora.use_dora",
                format!("true with the initial weights {:?}", self.lora_init),
                "Kaiming or Gaussian initial weights with DoRA",
            );
        }
        checks::blocks("Lora.layers_to_transform", self.layers_to_transform.as_ref())
    }

    /// The indices of the projections to adapt among `paths`.
    ///
    /// # Errors
    /// As [`TargetModules::resolve`]; a block in `layers_to_transform` that does not exist.
    pub fn resolve(&self, paths: &[impl AsRef<str>]) -> Result<Vec<usize>> {
        self.choice().resolve(paths)
    }

    pub(crate) fn choice(&self) -> Choice<'_> {
        Choice {
            target_modules: &self.target_modules,
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    /// Rank and scaling of the projection at `path`, patterns applied.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn rank_and_scaling(&self, path: &str) -> Result<(usize, f64)> {
        let mut r = self.r;
        for (key, rank) in &self.rank_pattern {
            if target::pattern_matches(key, path)? {
                r = *rank;
                break;
            }
        }
        let mut alpha = self.lora_alpha;
        for (key, other) in &self.alpha_pattern {
            if target::pattern_matches(key, path)? {
                alpha = *other;
                break;
            }
        }
        let divisor = if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
        Ok((r, alpha / divisor))
    }
}

impl AdapterType for Lora {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn description(&self) -> String {
        format!("LoRA r={}, lora_alpha={}", self.r, self.lora_alpha)
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("type", if self.use_dora { "DoRA" } else { "LoRA" }.to_owned()),
            ("r", self.r.to_string()),
            ("lora_alpha", self.lora_alpha.to_string()),
            ("lora_dropout", self.lora_dropout.to_string()),
        ]
    }

    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>> {
        LoraBody::plan(model, self)
    }

    fn build(&self, model: &Model) -> Result<Arc<dyn Body>> {
        Ok(Arc::new(LoraBody::new(model, self)?))
    }

    fn check_new(&self, model: &Model) -> Result<()> {
        LoraBody::check_ranks(model, self)
    }

    fn own_weights(&self) -> (Bias, &[String], bool) {
        (self.bias, &self.modules_to_save, self.ensure_weight_tying)
    }

    fn key_prefix(&self) -> &'static str {
        IN_MODEL
    }

    fn choice(&self) -> Option<Choice<'_>> {
        Some(Self::choice(self))
    }

    fn choice_mut(&mut self) -> Option<ChoiceMut<'_>> {
        Some((&mut self.target_modules, Some(&mut self.layers_to_transform)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_pefts() {
        let lora = Lora::default();
        assert_eq!(
            (lora.r, lora.lora_alpha, lora.lora_dropout, lora.use_rslora),
            (8, 8.0, 0.0, false)
        );
        lora.validate().unwrap();
    }

    #[test]
    fn wrong_values_are_refused_with_field_value_and_range() {
        let base = Lora::default();
        for (lora, field) in [
            (Lora { r: 0, ..base.clone() }, "`Lora.r` is 0"),
            (Lora { lora_alpha: f64::NAN, ..base.clone() }, "`Lora.lora_alpha` is NaN"),
            (Lora { lora_alpha: 0.0, ..base.clone() }, "`Lora.lora_alpha` is 0"),
            (Lora { lora_dropout: 1.0, ..base.clone() }, "`Lora.lora_dropout` is 1"),
            (Lora { lora_dropout: -0.1, ..base.clone() }, "`Lora.lora_dropout` is -0.1"),
            (
                Lora { rank_pattern: [("q_proj".to_owned(), 0)].into(), ..base.clone() },
                "`Lora.rank_pattern` is 0 for `q_proj`",
            ),
            (
                Lora { layers_to_transform: Some(vec![]), ..base.clone() },
                "`Lora.layers_to_transform` is empty",
            ),
        ] {
            let error = lora.validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn patterns_and_rslora_set_rank_and_scaling() {
        let lora = Lora {
            r: 4,
            lora_alpha: 8.0,
            rank_pattern: [("v_proj".to_owned(), 16)].into(),
            alpha_pattern: [(r"model\.layers\.1\..*".to_owned(), 32.0)].into(),
            ..Default::default()
        };
        assert_eq!(lora.rank_and_scaling("model.layers.0.self_attn.q_proj").unwrap(), (4, 2.0));
        assert_eq!(lora.rank_and_scaling("model.layers.0.self_attn.v_proj").unwrap(), (16, 0.5));
        assert_eq!(lora.rank_and_scaling("model.layers.1.self_attn.q_proj").unwrap(), (4, 8.0));
        let rslora = Lora { use_rslora: true, ..lora };
        assert_eq!(rslora.rank_and_scaling("model.layers.0.self_attn.q_proj").unwrap(), (4, 4.0));
    }

    #[test]
    fn blocks_can_be_chosen() {
        let paths = ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.up_proj"];
        let lora = |blocks| Lora {
            target_modules: ["q_proj"].into(),
            layers_to_transform: Some(blocks),
            ..Default::default()
        };
        assert_eq!(lora(vec![1]).resolve(&paths).unwrap(), [1]);
        assert!(
            lora(vec![2])
                .resolve(&paths)
                .unwrap_err()
                .to_string()
                .contains("2 has no target module")
        );
    }
}
