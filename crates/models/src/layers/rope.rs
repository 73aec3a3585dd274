//! Rotary position embedding (<https://arxiv.org/abs/2104.09864>) and the ways in which it is
//! stretched to longer contexts, as `transformers` names and computes them (`rope_parameters`,
//! formerly `rope_scaling`).

use std::f64::consts::PI;
use std::sync::{PoisonError, RwLock};

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::config::fields::JsonFields;
use crate::error::{Error, Result};
use crate::pass::positions::Positions;
use crate::weights::gguf::{Gguf, Value};
use tunebook_ops as ops;

/// The names of the scalings that [`RopeScaling`] has.
const KNOWN: &str = "default, linear, dynamic (within the context), llama3, yarn, longrope";

/// How positions become angles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeParameters {
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// The share of a head that turns; the rest passes as it is.
    pub partial_rotary_factor: f64,
    /// How the frequencies are stretched.
    #[serde(flatten)]
    pub scaling: RopeScaling,
}

/// A way to stretch the frequencies, by its name in `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// As they are. `dynamic` is this as well: it changes frequencies beyond the context only,
    /// where this crate refuses to go.
    #[default]
    Default,
    /// All divided by one factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, between them a ramp (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths longer than the original context divided by this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original context divided by this are high frequencies.
        high_freq_factor: f64,
        /// The context before it was stretched.
        original_max_position_embeddings: usize,
    },
    /// YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// The context before it was stretched.
        original_max_position_embeddings: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// Turns within the original context from which on a frequency is high.
        beta_fast: f64,
        /// Turns within the original context up to which a frequency is low.
        beta_slow: f64,
    },
    /// A divisor for each frequency (<https://arxiv.org/abs/2402.13753>), other ones for texts
    /// longer than the original context.
    LongRope {
        /// Divisors up to the original context.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// The context before it was stretched.
        original_max_position_embeddings: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// A divisor for each frequency, as GGUF files hold Llama 3's (`rope_freqs.weight`).
    Factors {
        /// The divisors.
        factors: Vec<f64>,
    },
}

impl RopeParameters {
    /// Plain rotary embedding of the whole head.
    pub fn new(rope_theta: f64) -> Self {
        Self { rope_theta, partial_rotary_factor: 1.0, scaling: RopeScaling::Default }
    }

    /// From `config.json`: `rope_parameters`, or `rope_theta` beside `rope_scaling` as
    /// `transformers` 4 wrote it.
    pub(crate) fn from_json(
        json: &JsonFields<'_>,
        default_theta: f64,
        max_positions: usize,
    ) -> Result<Self> {
        // transformers 5 writes rope_theta inside rope_parameters, earlier versions beside
        // rope_scaling.
        let rope = json.object("rope_parameters")?;
        let rope = if rope.is_some() { rope } else { json.object("rope_scaling")? };
        let theta = match &rope {
            Some(rope) => rope.number("rope_theta")?,
            None => None,
        };
        let theta = if theta.is_some() { theta } else { json.number("rope_theta")? };
        let partial = match &rope {
            Some(rope) => rope.number("partial_rotary_factor")?,
            None => None,
        };
        let partial =
            if partial.is_some() { partial } else { json.number("partial_rotary_factor")? };
        let mut parameters = Self::new(theta.unwrap_or(default_theta));
        parameters.partial_rotary_factor = partial.unwrap_or(1.0);
        if let Some(rope) = &rope {
            parameters.scaling = RopeScaling::from_json(rope, json, max_positions)?;
        }
        Ok(parameters)
    }

    /// Refuses numbers that make no angles.
    pub(crate) fn validate(&self, head_dim: usize, origin: &str) -> Result<()> {
        let refuse = |field: &str, found: String, expected: &str| {
            Err(Error::Config {
                origin: origin.to_owned(),
                field: field.to_owned(),
                found,
                expected: expected.to_owned(),
            })
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(self.rope_theta) {
            return refuse("rope_theta", self.rope_theta.to_string(), "a finite number above 0");
        }
        if !(self.partial_rotary_factor > 0.0 && self.partial_rotary_factor <= 1.0) {
            return refuse(
                "partial_rotary_factor",
                self.partial_rotary_factor.to_string(),
                "above 0 and at most 1",
            );
        }
        let rotary = self.rotary_dim(head_dim);
        if rotary == 0 || !rotary.is_multiple_of(2) {
            return refuse(
                "head_dim",
                head_dim.to_string(),
                "an even number above 0, as rotary embedding turns pairs",
            );
        }
        let numbers: Vec<(&str, f64)> = match &self.scaling {
            RopeScaling::Default => Vec::new(),
            RopeScaling::Linear { factor } => vec![("factor", *factor)],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                if high_freq_factor <= low_freq_factor {
                    return refuse(
                        "high_freq_factor",
                        high_freq_factor.to_string(),
                        &format!("more than low_freq_factor, which is {low_freq_factor}"),
                    );
                }
                vec![("factor", *factor), ("low_freq_factor", *low_freq_factor)]
            }
            RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, .. } => vec![
                ("factor", *factor),
                ("attention_factor", *attention_factor),
                ("beta_fast", *beta_fast),
                ("beta_slow", *beta_slow),
            ],
            RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => {
                for (field, list) in [("short_factor", short_factor), ("long_factor", long_factor)]
                {
                    if list.len() != rotary / 2 || !list.iter().all(|x| positive(*x)) {
                        return refuse(
                            field,
                            format!("a list of {}", list.len()),
                            &format!(
                                "{} numbers above 0, one for each pair that turns",
                                rotary / 2
                            ),
                        );
                    }
                }
                vec![("attention_factor", *attention_factor)]
            }
            RopeScaling::Factors { factors } => {
                if factors.len() != rotary / 2 || !factors.iter().all(|x| positive(*x)) {
                    return refuse(
                        "rope_freqs.weight",
                        format!("a list of {}", factors.len()),
                        &format!("{} numbers above 0, one for each pair that turns", rotary / 2),
                    );
                }
                Vec::new()
            }
        };
        match numbers.iter().find(|(_, x)| !positive(*x)) {
            Some((field, x)) => refuse(field, x.to_string(), "a finite number above 0"),
            None => Ok(()),
        }
    }

    /// The number of values of a head that turn.
    pub(crate) fn rotary_dim(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// The rotary embedding of a GGUF file.
    pub(crate) fn from_gguf(file: &Gguf, architecture: &str, max_positions: usize) -> Result<Self> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let number = |name: &str, default: f64| match file.get(&key(name)) {
            Some(_) => file.written_number(&key(name)),
            None => Ok(default),
        };
        let mut rope = Self::new(number("freq_base", 10_000.0)?);
        if let Some(factors) = file.numbers("rope_freqs.weight")? {
            rope.scaling = RopeScaling::Factors { factors };
            return Ok(rope);
        }
        match file.get(&key("scaling.type")).and_then(Value::as_str) {
            None | Some("none" | "longrope") => {}
            Some("linear") => {
                rope.scaling = RopeScaling::Linear { factor: number("scaling.factor", 1.0)? }
            }
            Some("yarn") => {
                let factor = number("scaling.factor", 1.0)?;
                rope.scaling = RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings: file
                        .optional_count(&key("scaling.original_context_length"))?
                        .unwrap_or(max_positions),
                    attention_factor: number("scaling.attn_factor", 1.0)?
                        * if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 },
                    beta_fast: number("scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: number("scaling.yarn_beta_slow", 1.0)?,
                };
            }
            Some(other) => {
                return Err(Error::Unsupported {
                    origin: file.origin(),
                    what: "the rope scaling",
                    found: other.to_owned(),
                    known: "none, linear, yarn".to_owned(),
                });
            }
        }
        Ok(rope)
    }

    /// The keys that [`RopeParameters::from_gguf`] reads.
    pub(crate) fn to_gguf(&self, put: &mut dyn FnMut(&str, Value)) {
        put("rope.freq_base", Value::Float(self.rope_theta));
        match &self.scaling {
            RopeScaling::Linear { factor } => {
                put("rope.scaling.type", Value::String("linear".to_owned()));
                put("rope.scaling.factor", Value::Float(*factor));
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                ..
            } => {
                put("rope.scaling.type", Value::String("yarn".to_owned()));
                put("rope.scaling.factor", Value::Float(*factor));
                let original = *original_max_position_embeddings as u64;
                put("rope.scaling.original_context_length", Value::Unsigned(original));
                // llama.cpp multiplies its own factor in.
                let own = if *factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                put("rope.scaling.attn_factor", Value::Float(attention_factor / own));
            }
            _ => {}
        }
    }

    /// As `rope_parameters` of a `config.json`.
    pub(crate) fn to_json(&self) -> Json {
        let mut json = match &self.scaling {
            RopeScaling::Default => json!({"rope_type": "default"}),
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_position_embeddings,
            }),
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
            } => json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original_max_position_embeddings,
                "attention_factor": attention_factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
            }),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
            } => json!({
                "rope_type": "longrope", "short_factor": short_factor, "long_factor": long_factor,
                "original_max_position_embeddings": original_max_position_embeddings, "attention_factor": attention_factor,
            }),
            // transformers has no name for a free list; the same divisors below and beyond the
            // context are one.
            RopeScaling::Factors { factors } => json!({
                "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
                "original_max_position_embeddings": 8192, "attention_factor": 1.0,
            }),
        };
        json["rope_theta"] = self.rope_theta.into();
        if self.partial_rotary_factor != 1.0 {
            json["partial_rotary_factor"] = self.partial_rotary_factor.into();
        }
        json
    }

    /// Frequencies up to the original context and, where they differ, beyond it; and the factor on
    /// cosine and sine. In f32 as in transformers.
    fn frequencies(&self, head_dim: usize) -> (Vec<f32>, Option<Vec<f32>>, f64) {
        let dim = self.rotary_dim(head_dim);
        let half = dim / 2;
        let base = self.rope_theta as f32;
        let powers: Vec<f32> = (0..half).map(|i| base.powf((2 * i) as f32 / dim as f32)).collect();
        let plain: Vec<f32> = powers.iter().map(|power| 1.0 / power).collect();
        let divided = |factors: &[f64]| -> Vec<f32> {
            powers
                .iter()
                .zip(factors)
                .map(|(power, factor)| 1.0 / (*factor as f32 * power))
                .collect()
        };
        match &self.scaling {
            RopeScaling::Default => (plain, None, 1.0),
            RopeScaling::Linear { factor } => {
                (plain.iter().map(|f| f / *factor as f32).collect(), None, 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let (factor, low, high) =
                    (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
                let context = *original_max_position_embeddings as f32;
                let stretched = plain.iter().map(|f| {
                    let wavelength = 2.0 * PI as f32 / f;
                    if wavelength < context / high {
                        *f
                    } else if wavelength > context / low {
                        f / factor
                    } else {
                        let smooth = (context / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                });
                (stretched.collect(), None, 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
            } => {
                // The pair that makes so many turns within the original context.
                let pair = |turns: f64| {
                    let context = *original_max_position_embeddings as f64;
                    dim as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * self.rope_theta.ln())
                };
                let low = pair(*beta_fast).floor().max(0.0) as f32;
                let mut high = pair(*beta_slow).ceil().min(dim as f64 - 1.0) as f32;
                if low == high {
                    high += 0.001;
                }
                let stretched = powers.iter().enumerate().map(|(i, power)| {
                    let kept = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    1.0 / (*factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
                });
                (stretched.collect(), None, *attention_factor)
            }
            RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => {
                (divided(short_factor), Some(divided(long_factor)), *attention_factor)
            }
            RopeScaling::Factors { factors } => (
                plain.iter().zip(factors).map(|(f, factor)| f / *factor as f32).collect(),
                None,
                1.0,
            ),
        }
    }

    /// LongRoPE's divisors up to the original context and beyond it.
    pub(crate) fn long_rope(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let RopeScaling::LongRope { short_factor, long_factor, .. } = &self.scaling else {
            return None;
        };
        let narrow = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
        Some((narrow(short_factor), narrow(long_factor)))
    }

    /// What the frequencies were divided by, where that is more than nothing: `rope_freqs.weight`
    /// of a GGUF file.
    pub(crate) fn divisors(&self, head_dim: usize) -> Option<Vec<f32>> {
        let plain = Self { scaling: RopeScaling::Default, ..self.clone() }.frequencies(head_dim).0;
        match self.scaling {
            RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. } => {
                let stretched = self.frequencies(head_dim).0;
                Some(
                    plain
                        .iter()
                        .zip(stretched)
                        .map(|(plain, stretched)| plain / stretched)
                        .collect(),
                )
            }
            _ => None,
        }
    }
}

impl RopeScaling {
    pub(crate) fn from_json(
        rope: &JsonFields<'_>,
        config: &JsonFields<'_>,
        max_positions: usize,
    ) -> Result<Self> {
        let kind = match rope.text("rope_type")? {
            Some(kind) => kind,
            None => rope.text("type")?.unwrap_or_else(|| "default".to_owned()),
        };
        let need = |field: &str| match rope.number(field)? {
            Some(number) => Ok(number),
            None => rope.refuse(field, "missing", &format!("a number, as rope_type is `{kind}`")),
        };
        let original = || -> Result<usize> {
            let field = "original_max_position_embeddings";
            match rope.optional_count(field)? {
                Some(count) => Ok(count),
                None => Ok(config.optional_count(field)?.unwrap_or(max_positions)),
            }
        };
        let factor_or_ratio = |original: usize| -> Result<f64> {
            Ok(rope.number("factor")?.unwrap_or(max_positions as f64 / original as f64))
        };
        Ok(match kind.as_str() {
            "default" | "dynamic" => Self::Default,
            "linear" => Self::Linear { factor: need("factor")? },
            "llama3" => Self::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: original()?,
            },
            "yarn" if rope.number("mscale")?.is_none() && config.model_type()? != "phi3" => {
                let original = original()?;
                let factor = factor_or_ratio(original)?;
                let attention_factor = match rope.number("attention_factor")? {
                    Some(factor) => factor,
                    None if factor <= 1.0 => 1.0,
                    None => 0.1 * factor.ln() + 1.0,
                };
                Self::Yarn {
                    factor,
                    original_max_position_embeddings: original,
                    attention_factor,
                    beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
                }
            }
            // Phi-3's first releases called it `su`, and some `yarn`.
            "longrope" | "su" | "yarn" if rope.number("mscale")?.is_none() => {
                let original = original()?;
                let factor = factor_or_ratio(original)?;
                let attention_factor = match rope.number("attention_factor")? {
                    Some(factor) => factor,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                };
                Self::LongRope {
                    short_factor: rope.numbers("short_factor")?,
                    long_factor: rope.numbers("long_factor")?,
                    original_max_position_embeddings: original,
                    attention_factor,
                }
            }
            _ => {
                return Err(Error::Unsupported {
                    origin: config.origin().to_owned(),
                    what: "the rope scaling",
                    found: kind,
                    known: KNOWN.to_owned(),
                });
            }
        })
    }
}

/// The angles of the rotary embedding. The tables grow with the texts: a config may name a context
/// that nobody uses, or an absurd one.
#[derive(Debug)]
pub(crate) struct Rope {
    short: Vec<f32>,
    /// Other frequencies for longer texts than so many positions.
    long: Option<(usize, Vec<f32>)>,
    /// On cosine and sine.
    factor: f64,
    head_dim: usize,
    rotary_dim: usize,
    max: usize,
    device: Device,
    tables: RwLock<Tables>,
}

/// Cosine and sine, `[len, rotary/2]` each; where there are long frequencies, their rows follow.
#[derive(Clone, Debug)]
struct Tables {
    len: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(crate) fn new(
        parameters: &RopeParameters,
        head_dim: usize,
        max: usize,
        device: &Device,
    ) -> Result<Self> {
        let (short, long, factor) = parameters.frequencies(head_dim);
        let original = match &parameters.scaling {
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                *original_max_position_embeddings
            }
            _ => max,
        };
        let empty = Tensor::zeros(0, DType::F32, device)?;
        Ok(Self {
            short,
            long: long.filter(|_| original < max).map(|long| (original, long)),
            factor,
            head_dim,
            rotary_dim: parameters.rotary_dim(head_dim),
            max,
            device: device.clone(),
            tables: RwLock::new(Tables { len: 0, cos: empty.clone(), sin: empty }),
        })
    }

    /// Tables of at least so many positions, but for those beyond the context.
    fn tables(&self, positions: usize) -> Result<Tables> {
        const FIRST: usize = 512;
        let needed = positions.min(self.max);
        {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            if tables.len >= needed && tables.len > 0 {
                return Ok(tables.clone());
            }
        }
        let len = needed.max(FIRST).next_power_of_two().min(self.max);
        let angles = |frequencies: &[f32]| -> Vec<f32> {
            (0..len)
                .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
                .collect()
        };
        let mut table = angles(&self.short);
        if let Some((_, long)) = &self.long {
            table.extend(angles(long));
        }
        let rows = if self.long.is_some() { 2 * len } else { len };
        let table = Tensor::from_vec(table, (rows, self.short.len()), &self.device)?;
        let tables =
            Tables { len, cos: (table.cos()? * self.factor)?, sin: (table.sin()? * self.factor)? };
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = tables.clone();
        Ok(tables)
    }

    /// Up to how many positions a text takes the angles that it begins with.
    pub(crate) fn switches_at(&self) -> Option<usize> {
        self.long.as_ref().map(|(original, _)| *original)
    }

    /// # Shapes
    /// `x` `[b, t, h·d]` or `[b, t, h, d]` -> `[b, t, h, d]`
    pub(crate) fn forward(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        let mut ids = positions.ids().clone();
        let tables = self.tables(positions.ends().iter().copied().max().unwrap_or(0))?;
        if let Some((original, _)) = &self.long {
            // [b, 1]
            let offsets: Vec<u32> = positions
                .ends()
                .iter()
                .map(|end| if end > original { tables.len as u32 } else { 0 })
                .collect();
            let offsets = Tensor::from_vec(offsets, (positions.ends().len(), 1), ids.device())?;
            ids = ids.broadcast_add(&offsets)?;
        }
        if self.rotary_dim == self.head_dim {
            return Ok(ops::rope(x, &tables.cos, &tables.sin, &ids)?);
        }
        let (b, t) = (x.dim(0)?, x.dim(1)?);
        // [b, t, h·d] -> [b, t, h, d]
        let x = x.reshape((b, t, (), self.head_dim))?;
        let turned = ops::rope(&x.narrow(3, 0, self.rotary_dim)?, &tables.cos, &tables.sin, &ids)?;
        let rest = x.narrow(3, self.rotary_dim, self.head_dim - self.rotary_dim)?;
        Ok(Tensor::cat(&[turned, rest], 3)?)
    }
}
