//! The card, as this library sees it.

use serde_json::json;
use tunebook_models::{Device, default_dtype, gpu_memory};

use crate::report::{self, Result};

pub(crate) fn tell(device: &Device) -> Result<()> {
    let memory = gpu_memory(device);
    let figures = json!({
        "device": format!("{:?}", device.location()),
        "free_bytes": memory.map(|(free, _)| free),
        "total_bytes": memory.map(|(_, total)| total),
        "default_dtype": format!("{:?}", default_dtype(device)),
    });
    report::tell("the card", None, figures)
}
