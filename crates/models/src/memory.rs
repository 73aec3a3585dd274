//! What a model takes in memory, said and compared with what there is before it is taken.

use candle_core::Device;
use tunebook_progress::ProgressBar;

use crate::error::{Error, Result};

/// Shows how much memory the weights will take.
///
/// # Errors
/// When this computer does not have as much.
pub(crate) fn announce(
    name: &str,
    parameters: usize,
    bytes: u64,
    form: &str,
    device: &Device,
) -> Result<()> {
    if let Some(available) = available(device)
        && bytes > available
    {
        return Err(Error::Memory {
            name: name.to_owned(),
            parameters,
            bytes,
            form: form.to_owned(),
            available,
        });
    }
    // Small ones are there at once.
    const WORTH_A_LINE: u64 = 64 << 20;
    if bytes >= WORTH_A_LINE {
        let label = format!(
            "Loading {name}: {:.1} M parameters, {:.0} MB as {form}",
            parameters as f64 / 1e6,
            bytes as f64 / 1e6
        );
        ProgressBar::new(label, None).finish();
    }
    Ok(())
}

/// Memory that can be had without pushing other programs out, swap included; `None` where the
/// system does not say.
fn available(device: &Device) -> Option<u64> {
    if !device.is_cpu() {
        return None;
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(field(&text, "MemAvailable:")? + field(&text, "SwapFree:").unwrap_or(0))
}

/// A field of `/proc/meminfo`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_in_bytes() {
        let text = "MemTotal:       16384 kB\nMemAvailable:    8192 kB\nSwapFree: x kB\n";
        assert_eq!((field(text, "MemAvailable:"), field(text, "SwapFree:")), (Some(8 << 20), None));
    }

    #[test]
    fn more_than_there_is_is_refused_with_both_numbers() {
        let Some(available) = available(&Device::Cpu) else { return };
        let error = announce("m", 7, available * 2 + (1 << 40), "F32", &Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`m`") && error.contains("GB"), "{error}");
        announce("m", 7, 28, "F32", &Device::Cpu).unwrap();
    }
}
