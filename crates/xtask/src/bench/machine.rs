//! The machine, for whoever reads the figures later.

use serde_json::{Value, json};

/// Processor, cores, instruction sets, memory, system.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let cpu = read("/proc/cpuinfo");
    let flags = field(&cpu, "flags");
    let sets: Vec<&str> = ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]
        .into_iter()
        .filter(|set| flags.split_whitespace().any(|flag| flag == *set))
        .collect();
    json!({
        "processor": field(&cpu, "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "instruction_sets": sets,
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "system": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// Why a case that needs CUDA cannot run here; `None` where there is a device.
pub(crate) fn no_cuda_device() -> Option<String> {
    let found = (0..16).any(|index| std::path::Path::new(&format!("/dev/nvidia{index}")).exists());
    (!found).then(|| "no CUDA device on this machine (no /dev/nvidia0)".to_owned())
}
