//! Part a: every operation, composed of candle's own, against the plain form on the CPU.

use serde_json::{Value, json};
use tunebook_models::{DType, Device};
use tunebook_ops::cuda::checks::{CHECKS, Check, Difference, TYPES};
use tunebook_ops::cuda::{Allowed, allow};

use crate::report::{Result, judged};

pub(crate) fn run(device: &Device) -> Result<()> {
    allow(Allowed::None);
    for check in CHECKS {
        for dtype in TYPES {
            judged(&format!("{}, {dtype:?}", check.name), compared(check, device, dtype))?;
        }
    }
    Ok(())
}

/// Whether all differences are small, and what they are.
pub(crate) fn compared(check: &Check, device: &Device, dtype: DType) -> Result<(bool, Value)> {
    let differences = check.run(device, dtype)?;
    let good = differences.iter().all(Difference::is_small);
    let list: Vec<Value> = differences
        .iter()
        // JSON has no NaN: null is one.
        .map(|d| json!({"of": d.of, "difference": d.found, "allowed": d.allowed}))
        .collect();
    Ok((good, json!({"differences": list})))
}
