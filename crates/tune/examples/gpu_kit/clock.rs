//! Times of work on a device.

use std::time::Instant;

use tunebook_models::Device;

use crate::report::Result;

const BATCHES: usize = 5;

/// How often [`seconds`] does its work.
pub(crate) fn runs(times: usize) -> u64 {
    (1 + BATCHES * times) as u64
}

/// The median seconds of a piece of work, after a first time that loads kernels and fills the
/// allocator. Work is handed over in batches of `times`, and the device waited for after each: one
/// wait for each launch would be what is measured.
pub(crate) fn seconds(
    device: &Device,
    times: usize,
    mut work: impl FnMut() -> Result<()>,
) -> Result<f64> {
    work()?;
    device.synchronize()?;
    let mut found = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let start = Instant::now();
        for _ in 0..times {
            work()?;
        }
        device.synchronize()?;
        found.push(start.elapsed().as_secs_f64() / times as f64);
    }
    found.sort_by(f64::total_cmp);
    Ok(found[BATCHES / 2])
}
