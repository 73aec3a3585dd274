//! The NVIDIA card of a case: what it is, and how much of its memory is taken.
//!
//! Memory is the card's own count while a side runs, less what was taken before it started, so that
//! it is the same thing for all sides: contexts, libraries' workspaces and what an allocator holds
//! in reserve included. Nothing else may run on the card.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::machine;
use crate::error::{Error, Result};
use crate::process;

/// How often memory is looked at, in milliseconds.
const EVERY_MS: u32 = 20;

/// How long `nvidia-smi` may take to name the card.
const LONGEST: Duration = Duration::from_secs(20);

/// Arithmetic in bf16 with f32 sums, without sparsity, in operations a second: NVIDIA's data
/// sheets. The first name that fits.
const PEAKS: [(&str, f64); 8] = [
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("RTX 3090", 71e12),
];

/// One card.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    /// As `nvidia-smi` names it: the first of `CUDA_VISIBLE_DEVICES`, else 0.
    id: String,
    name: String,
    driver: String,
    /// Compute capability, as 9.0.
    capability: String,
}

impl Card {
    /// The card that programs see first.
    ///
    /// # Errors
    /// Why there is none, in words for a row.
    pub(crate) fn find() -> std::result::Result<Self, String> {
        if let Some(reason) = machine::no_cuda_device() {
            return Err(reason);
        }
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
        let id = match visible.split(',').next().map(str::trim) {
            None | Some("") => "0".to_owned(),
            Some(first) => first.to_owned(),
        };
        let mut query = query(&id, "name,driver_version,compute_cap");
        let text = process::capture_within(&mut query, "nvidia-smi", LONGEST)
            .map_err(|error| format!("the CUDA device cannot be asked for its name: {error}"))?;
        let mut fields = text.trim().split(',').map(|field| field.trim().to_owned());
        let name = fields.next().unwrap_or_default();
        let driver = fields.next().unwrap_or_default();
        Ok(Self { id, name, driver, capability: fields.next().unwrap_or_default() })
    }

    /// As the driver has it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability, as 9.0.
    pub(crate) fn capability(&self) -> &str {
        &self.capability
    }

    /// For whoever reads the figures later.
    pub(crate) fn about(&self) -> Value {
        json!({
            "card": self.name,
            "driver": self.driver,
            "compute_capability": self.capability,
            "peak_bf16_flops": self.peak_flops(),
        })
    }

    /// Its peak speed, where its data sheet is known.
    pub(crate) fn peak_flops(&self) -> Option<f64> {
        peak_of(&self.name)
    }

    /// Begins to watch its memory.
    ///
    /// # Errors
    /// When `nvidia-smi` cannot be started or says nothing.
    pub(crate) fn watch(&self) -> Result<Watch> {
        let mut child = query(&self.id, "memory.used")
            .arg(format!("--loop-ms={EVERY_MS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program: "nvidia-smi".to_owned(), source })?;
        let Some(output) = child.stdout.take() else {
            return Err(Error::Other("nvidia-smi was started without its pipe".to_owned()));
        };
        Watch::read(BufReader::new(output), Some(child))
    }
}

fn query(id: &str, fields: &str) -> Command {
    let mut command = process::command("nvidia-smi");
    command.arg(format!("--id={id}")).arg(format!("--query-gpu={fields}"));
    command.arg("--format=csv,noheader,nounits");
    command
}

fn peak_of(name: &str) -> Option<f64> {
    PEAKS.iter().find(|(part, _)| name.contains(part)).map(|(_, peak)| *peak)
}

/// The most of a card's memory that was taken since the watch began.
pub(crate) struct Watch {
    child: Option<Child>,
    /// In MiB.
    before: u64,
    most: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Of lines that each hold a number of MiB.
    fn read(mut lines: impl BufRead + Send + 'static, child: Option<Child>) -> Result<Self> {
        let mut first = String::new();
        let read = lines.read_line(&mut first);
        let mut watch = Self { child, before: 0, most: Arc::default(), reader: None };
        watch.before = first.trim().parse().map_err(|_| {
            Error::Other(match read {
                Ok(_) => {
                    format!("nvidia-smi answered `{}`, expected a number of MiB", first.trim())
                }
                Err(error) => format!("nvidia-smi cannot be read: {error}"),
            })
        })?;
        let most = Arc::clone(&watch.most);
        watch.reader = Some(std::thread::spawn(move || {
            for line in lines.lines().map_while(std::result::Result::ok) {
                if let Ok(mib) = line.trim().parse() {
                    most.fetch_max(mib, Ordering::Relaxed);
                }
            }
        }));
        Ok(watch)
    }

    /// In 10⁶ bytes.
    ///
    /// # Errors
    /// When nothing was seen: a peak of nothing would be a figure.
    pub(crate) fn end(mut self) -> Result<f64> {
        self.stop();
        match self.most.load(Ordering::Relaxed) {
            0 => Err(Error::Other(
                "nvidia-smi said nothing of the card's memory while a side ran".to_owned(),
            )),
            most => Ok(most.saturating_sub(self.before) as f64 * 1.048_576),
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Ends with the pipe.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_above_what_was_there_counts() {
        let watch = |text: &'static str| Watch::read(text.as_bytes(), None);
        let most = watch("1000\n1500\n4000\nx\n2000\n").and_then(Watch::end).ok();
        assert!(most.is_some_and(|mb| (mb - 3000.0 * 1.048_576).abs() < 1e-6), "{most:?}");
        assert!(watch("1000\n").and_then(Watch::end).is_err(), "nothing seen");
        let error = watch("No devices were found\n")
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(error.contains("No devices were found"), "{error}");
    }

    #[test]
    fn a_card_s_peak_is_that_of_its_kind() {
        assert_eq!(peak_of("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(peak_of("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(peak_of("NVIDIA A100-SXM4-80GB"), Some(312e12));
        assert_eq!(peak_of("Tesla T4"), None);
    }
}
