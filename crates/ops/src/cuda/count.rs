//! Which kernels were launched, and how often: a comparison that launches none, or whose backward
//! pass composes, compares the compositions with themselves.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::DType;

use super::Kernel;

/// Launches by the name of the kernel; products of cuBLAS in a kernel's stead are `add_product`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launches(pub BTreeMap<String, u64>);

static LAUNCHES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// All since the process began.
pub fn launches() -> Launches {
    Launches(LAUNCHES.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

#[cfg(feature = "cuda")]
pub(super) fn count_launch(name: &str) {
    let mut all = LAUNCHES.lock().unwrap_or_else(PoisonError::into_inner);
    match all.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(all.insert(name.to_owned(), 1)),
    }
}

impl Launches {
    /// Those that came after `before`.
    pub fn since(mut self, before: &Self) -> Self {
        for (name, count) in &before.0 {
            if let Some(all) = self.0.get_mut(name) {
                *all -= count;
            }
        }
        self.0.retain(|_, count| *count > 0);
        self
    }

    /// The launches that so many forward passes of a kernel in a type, and so many backward, would
    /// have made at least and that are not here, in words; `None` where all are.
    pub fn missing(
        &self,
        kernel: Kernel,
        dtype: DType,
        forward: u64,
        backward: u64,
    ) -> Option<String> {
        let count = |name: &str| self.0.get(name).copied().unwrap_or(0);
        // A kernel comes in kinds (activations, sizes of heads), of which one has to be whole.
        let lacks = |kind: &[(String, u64, u64)]| {
            let lacks = kind.iter().find_map(|(name, each_forward, each_backward)| {
                let (found, right) =
                    (count(name), each_forward * forward + each_backward * backward);
                (found < right)
                    .then(|| format!("{name} was launched {found} times, expected {right}"))
            });
            lacks.unwrap_or_default()
        };
        let lacking: Vec<String> = kinds(kernel, dtype).iter().map(|kind| lacks(kind)).collect();
        let whole = lacking.iter().any(String::is_empty);
        (!whole).then(|| lacking.join(", or "))
    }
}

/// The kernels of each kind, with the launches of a forward and of a backward pass.
fn kinds(kernel: Kernel, dtype: DType) -> Vec<Vec<(String, u64, u64)>> {
    let dtype = if dtype == DType::F32 { "f32" } else { "bf16" };
    let pair = |name: &str| {
        vec![(format!("{name}_{dtype}"), 1, 0), (format!("{name}_backward_{dtype}"), 0, 1)]
    };
    match kernel {
        Kernel::RmsNorm => vec![pair("rms_norm")],
        Kernel::LayerNorm => vec![pair("layer_norm")],
        Kernel::Gated => ["silu", "gelu", "gelu_tanh"].map(pair).into(),
        Kernel::Rope => vec![vec![(format!("rope_{dtype}"), 1, 1)]],
        // The gradient is made with the loss.
        Kernel::CrossEntropy => vec![vec![(format!("cross_entropy_{dtype}"), 1, 0)]],
        Kernel::LowRank => vec![vec![("add_product".to_owned(), 1, 1)]],
        Kernel::Attention => [64, 128]
            .map(|d| {
                let backward = ["dots", "queries", "keys"];
                std::iter::once((format!("attention_{d}"), 1, 0))
                    .chain(backward.map(|of| (format!("attention_{of}_{d}"), 0, 1)))
                    .collect()
            })
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(list: &[(&str, u64)]) -> Launches {
        Launches(list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect())
    }

    #[test]
    fn a_backward_pass_that_composes_is_missed() {
        let missing = |list: &[(&str, u64)], kernel, forward, backward| {
            made(list).missing(kernel, DType::BF16, forward, backward)
        };
        let both = [("rms_norm_bf16", 1), ("rms_norm_backward_bf16", 1)];
        assert_eq!(missing(&both, Kernel::RmsNorm, 1, 1), None);
        assert_eq!(
            missing(&both[..1], Kernel::RmsNorm, 1, 1).as_deref(),
            Some("rms_norm_backward_bf16 was launched 0 times, expected 1")
        );
        assert_eq!(missing(&both[..1], Kernel::RmsNorm, 1, 0), None);
        assert!(missing(&both, Kernel::RmsNorm, 2, 2).is_some(), "as many as passes");
        assert!(missing(&both, Kernel::LayerNorm, 1, 1).is_some(), "another kernel's");
        assert!(missing(&[("rope_bf16", 1)], Kernel::Rope, 1, 1).is_some());
        assert!(missing(&[("rope_f32", 2)], Kernel::Rope, 1, 1).is_some(), "another type");
        assert!(missing(&[("add_product", 1)], Kernel::LowRank, 1, 1).is_some());
        // No kind is whole.
        let halves = [("silu_bf16", 1), ("gelu_backward_bf16", 1)];
        assert!(missing(&halves, Kernel::Gated, 1, 1).is_some());
        let keys = [("attention_64", 1), ("attention_dots_64", 1), ("attention_queries_64", 1)];
        assert!(missing(&keys, Kernel::Attention, 1, 1).is_some());
    }

    #[test]
    fn only_later_launches_count() {
        let before = made(&[("a", 2), ("b", 1)]);
        let after = made(&[("a", 3), ("b", 1), ("c", 1)]);
        assert_eq!(after.since(&before), made(&[("a", 1), ("c", 1)]));
    }

    /// A launch of another name than the one that is looked for would never be found.
    #[test]
    fn every_name_is_asked_for_by_the_launches() {
        let source = include_str!("launch.rs");
        for kernel in Kernel::ALL {
            for (name, ..) in kinds(kernel, DType::BF16).into_iter().flatten() {
                let stem = name.trim_end_matches("_bf16").trim_end_matches("_64");
                let stem = stem.trim_end_matches("_128");
                let stem = ["silu", "gelu_tanh", "gelu"]
                    .iter()
                    .find_map(|gate| stem.strip_prefix(gate))
                    .unwrap_or(stem);
                assert!(source.contains(stem), "{name}: {stem}");
            }
        }
    }
}
