//! Dynamic loss scaling for f16 ([Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740)), by
//! the rule of torch's `GradScaler`.
//!
//! Gradients smaller than 6e-8 are zero in f16. So the loss is multiplied by a scale before the
//! backward pass and the gradients of what is trained, which are f32, divided by it. A scale that
//! is too large shows as a gradient that is not finite: that step changes nothing, and the scale is
//! halved. After 2000 good steps in a row it is doubled. Scales are powers of two times the first,
//! so that where nothing over- or underflows they change no bit.

use serde::{Deserialize, Serialize};

/// torch's `growth_interval`.
const GROWTH_INTERVAL: u32 = 2000;
/// A gradient that is not finite at this scale is not so because of it.
const SMALLEST: f64 = 1.0;

/// The scale of a run between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    /// The scale's bits: a decimal number might lose the last ones.
    bits: u64,
    /// Steps in a row since the scale last changed.
    good: u32,
    /// Steps that changed nothing.
    skipped: usize,
}

impl LossScale {
    pub(crate) fn new(scale: f64) -> Self {
        Self { bits: scale.to_bits(), good: 0, skipped: 0 }
    }

    /// The factor on the loss.
    pub(crate) fn scale(&self) -> f64 {
        f64::from_bits(self.bits)
    }

    /// Steps that were skipped so far.
    pub(crate) fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether a smaller scale may help against a gradient that is not finite.
    pub(crate) fn can_shrink(&self) -> bool {
        self.scale() > SMALLEST
    }

    /// After a step whose gradients were finite.
    pub(crate) fn took(&mut self) {
        self.good += 1;
        if self.good == GROWTH_INTERVAL {
            self.good = 0;
            self.bits = (self.scale() * 2.0).to_bits();
        }
    }

    /// After a step that was skipped.
    pub(crate) fn skip(&mut self) {
        self.good = 0;
        self.skipped += 1;
        self.bits = (self.scale() * 0.5).to_bits();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_moves_as_torchs() {
        let mut scale = LossScale::new(65536.0);
        for _ in 0..1999 {
            scale.took();
        }
        assert_eq!(scale.scale(), 65536.0);
        scale.took();
        assert_eq!(scale.scale(), 131_072.0);
        // An overflow begins the count anew.
        for _ in 0..1500 {
            scale.took();
        }
        scale.skip();
        assert_eq!((scale.scale(), scale.skipped()), (65536.0, 1));
        for _ in 0..1999 {
            scale.took();
        }
        assert_eq!(scale.scale(), 65536.0);
        scale.took();
        assert_eq!(scale.scale(), 131_072.0);
    }

    #[test]
    fn it_shrinks_down_to_one() {
        let mut scale = LossScale::new(4.0);
        scale.skip();
        assert!(scale.can_shrink());
        scale.skip();
        assert!(!scale.can_shrink());
    }

    #[test]
    fn every_bit_survives_json() {
        let mut scale = LossScale::new(0.1 * 2f64.powi(90));
        scale.skip();
        let json = serde_json::to_string(&scale).unwrap();
        assert_eq!(serde_json::from_str::<LossScale>(&json).unwrap(), scale);
    }
}
