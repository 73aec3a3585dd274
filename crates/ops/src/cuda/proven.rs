//! Which kernels GPUs use: those that have been held against the compositions on a card.
//!
//! `cargo xtask gpu-kit --read result.json` says which kernels passed a run and prints their lines
//! for [`PROVEN`]; adding them is what makes a kernel the default.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::DType;

/// A kernel with its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// [`crate::rms_norm`].
    RmsNorm,
    /// [`crate::layer_norm`].
    LayerNorm,
    /// [`crate::gated`], all activations.
    Gated,
    /// [`crate::rope`].
    Rope,
    /// [`crate::cross_entropy`].
    CrossEntropy,
    /// [`crate::attention`].
    Attention,
    /// The low-rank products of [`crate::lora_linear`], added by cuBLAS.
    LowRank,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::RmsNorm,
        Self::LayerNorm,
        Self::Gated,
        Self::Rope,
        Self::CrossEntropy,
        Self::Attention,
        Self::LowRank,
    ];

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::RmsNorm => "RmsNorm",
            Self::LayerNorm => "LayerNorm",
            Self::Gated => "Gated",
            Self::Rope => "Rope",
            Self::CrossEntropy => "CrossEntropy",
            Self::Attention => "Attention",
            Self::LowRank => "LowRank",
        }
    }

    /// Whether there is a kernel for this number type.
    pub fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Attention => dtype == DType::BF16,
            _ => matches!(dtype, DType::F32 | DType::BF16),
        }
    }
}

/// A run on a GPU in which a kernel agreed with the compositions.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    /// The kernel.
    pub kernel: Kernel,
    /// The number type that it was run in.
    pub dtype: DType,
    /// The card, as the driver names it.
    pub card: &'static str,
    /// The day, as 2026-11-30.
    pub date: &'static str,
    /// The command that measured it.
    pub command: &'static str,
}

/// The kernels that GPUs use by default. None has run on a GPU yet.
pub const PROVEN: &[Proof] = &[];

/// Which kernels are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Those of [`PROVEN`]: the default.
    Proven,
    /// None: the compositions of [`crate::device`] alone.
    None,
    /// All, for those who want to find out.
    All,
}

static ALLOWED: AtomicU8 = AtomicU8::new(0);

/// Says which kernels are used from now on, in the whole process. Before the first call the
/// environment does: `TUNEBOOK_CUDA_KERNELS` may be `unproven` (all) or `none`.
pub fn allow(which: Allowed) {
    let code = match which {
        Allowed::Proven => 1,
        Allowed::None => 2,
        Allowed::All => 3,
    };
    ALLOWED.store(code, Ordering::Relaxed);
}

/// What [`allow`] was told last, or the environment.
pub fn allowed() -> Allowed {
    static ASKED: OnceLock<Allowed> = OnceLock::new();
    match ALLOWED.load(Ordering::Relaxed) {
        1 => Allowed::Proven,
        2 => Allowed::None,
        3 => Allowed::All,
        _ => *ASKED.get_or_init(|| {
            asked_for(std::env::var("TUNEBOOK_CUDA_KERNELS").as_deref().unwrap_or_default())
        }),
    }
}

fn asked_for(value: &str) -> Allowed {
    match value {
        "unproven" => Allowed::All,
        "none" => Allowed::None,
        _ => Allowed::Proven,
    }
}

/// Whether a kernel is used for tensors of this type.
pub fn is_used(kernel: Kernel, dtype: DType) -> bool {
    chosen(allowed(), PROVEN, kernel, dtype)
}

fn chosen(allowed: Allowed, proven: &[Proof], kernel: Kernel, dtype: DType) -> bool {
    kernel.takes(dtype)
        && match allowed {
            Allowed::None => false,
            Allowed::All => true,
            Allowed::Proven => {
                proven.iter().any(|proof| proof.kernel == kernel && proof.dtype == dtype)
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_used_in_the_types_that_it_was_proven_in() {
        let proven = [Proof {
            kernel: Kernel::Rope,
            dtype: DType::BF16,
            card: "a card",
            date: "2026-11-30",
            command: "run.sh b",
        }];
        let used = |allowed, kernel, dtype| chosen(allowed, &proven, kernel, dtype);
        assert!(used(Allowed::Proven, Kernel::Rope, DType::BF16));
        assert!(!used(Allowed::Proven, Kernel::Rope, DType::F32));
        assert!(!used(Allowed::Proven, Kernel::Gated, DType::BF16));
        assert!(!used(Allowed::None, Kernel::Rope, DType::BF16));
        assert!(used(Allowed::All, Kernel::Gated, DType::F32));
        assert!(!used(Allowed::All, Kernel::Attention, DType::F32), "no such kernel");
        assert!(!used(Allowed::All, Kernel::Gated, DType::F16), "no such kernel");
    }

    #[test]
    fn the_environment_says_which_kernels_are_used() {
        assert_eq!(asked_for(""), Allowed::Proven);
        assert_eq!(asked_for("unproven"), Allowed::All);
        assert_eq!(asked_for("none"), Allowed::None);
    }

    /// What a proof says must be enough to repeat it.
    #[test]
    fn every_proof_names_card_day_and_command() {
        for (index, proof) in PROVEN.iter().enumerate() {
            assert!(proof.kernel.takes(proof.dtype), "{proof:?}");
            assert!(!proof.card.is_empty() && !proof.command.is_empty(), "{proof:?}");
            let digits: Vec<usize> = proof.date.split('-').map(str::len).collect();
            assert_eq!(digits, [4, 2, 2], "{proof:?}");
            let twice = PROVEN[..index]
                .iter()
                .any(|other| (other.kernel, other.dtype) == (proof.kernel, proof.dtype));
            assert!(!twice, "{proof:?} stands twice");
        }
    }
}
