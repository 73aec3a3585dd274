//! What the benches' programs tell of their own process.

use std::error::Error;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Processor time that this process has used, to a hundredth of a second.
pub(crate) fn cpu_secs() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The program's name, in brackets, may hold anything; user and system time are the 12th and
    // 13th field behind it.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> {
        Ok(fields.get(index).ok_or("a short /proc/self/stat")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) / 100.)
}

/// The most memory that this process ever held, in units of 10⁶ bytes.
pub(crate) fn peak_rss_mb() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line
        .and_then(|l| l.split_whitespace().next())
        .ok_or("no VmHWM in /proc/self/status")?
        .parse()?;
    Ok(kib * 1024. / 1e6)
}
