//! A run's records as TensorBoard's event files.
//!
//! An event file is a sequence of TFRecords (length, its checksum, a protobuf message `Event`, its
//! checksum), written by hand here: five fields are all there is to it. The names of the curves are
//! those that `transformers` writes.
//!
//! ```no_run
//! # use tunebook_tune::{TensorBoard, Trainer, TrainingArgs};
//! # fn f(model: tunebook_models::Model) -> Result<(), tunebook_tune::Error> {
//! let trainer = Trainer::new(&model, &TrainingArgs::default()).with_callback(TensorBoard::create("out/tb")?);
//! // … and beside it: tensorboard --logdir out/tb
//! # Ok(())
//! # }
//! ```

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::record::callback::Callback;
use crate::record::{EvalRecord, StepRecord};

/// Writes a run's records where TensorBoard finds them.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Makes a new event file in `dir`, which is made if need be. TensorBoard shows all event files
    /// of a folder as one run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self> {
        Self::create_in(dir.as_ref())
    }

    fn create_in(dir: &Path) -> Result<Self> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action, path, source }
        };
        std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        let now = now();
        // The nanoseconds keep two runs of one process apart; TensorBoard asks for `tfevents` in
        // the name alone.
        let name = format!(
            "events.out.tfevents.{}.tunebook.{}.{}",
            now as u64,
            std::process::id(),
            (now.fract() * 1e9) as u64
        );
        let path = dir.join(name);
        let file = File::create(&path).map_err(io("create", &path))?;
        let mut log = Self { path, file };
        let mut event = Message::default();
        event.double(1, now);
        event.bytes(3, b"brain.Event:2");
        log.write(&event)?;
        Ok(log)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn scalars(&mut self, step: usize, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in scalars {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, *value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Message::default();
        event.double(1, now());
        event.varint(2, step as u64);
        event.bytes(5, &summary.0);
        self.write(&event)
    }

    fn write(&mut self, event: &Message) -> Result<()> {
        let length = (event.0.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.0.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
        record.extend_from_slice(&event.0);
        record.extend_from_slice(&masked_crc32c(&event.0).to_le_bytes());
        // One write: a reader never sees half a record.
        let written = self.file.write_all(&record);
        written.map_err(|source| Error::Io { action: "write", path: self.path.clone(), source })
    }
}

impl Callback for TensorBoard {
    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        let mut scalars = vec![
            ("train/loss", record.loss),
            ("train/learning_rate", record.learning_rate),
            ("train/grad_norm", record.grad_norm),
            ("train/epoch", record.epoch),
            ("train/tokens_per_second", record.tokens as f64 / record.secs.max(1e-9)),
        ];
        scalars.extend(record.kl.map(|kl| ("train/kl", kl)));
        self.scalars(record.step, &scalars)
    }

    fn on_eval(&mut self, record: &EvalRecord) -> Result<()> {
        let named: Vec<(String, f64)> =
            record.metrics.iter().map(|(name, value)| (format!("eval/{name}"), *value)).collect();
        let mut scalars = vec![("eval/loss", record.loss), ("eval/runtime", record.secs)];
        scalars.extend(named.iter().map(|(name, value)| (name.as_str(), *value)));
        self.scalars(record.step, &scalars)
    }
}

/// A protobuf message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw(field << 3);
        self.raw(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.raw(field << 3 | 2);
        self.raw(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// TFRecord's checksum: CRC-32C, turned and shifted so that a checksum of data with checksums in it
/// is no trouble.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720's check value of CRC-32C.
        let masked = |crc: u32| crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc32c(b"123456789"), masked(0xe306_9283));
        assert_eq!(masked_crc32c(&[0; 32]), masked(0x8a91_36aa));
    }

    #[test]
    fn records_have_lengths_and_checksums() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = TensorBoard::create(dir.path()).unwrap();
        log.scalars(300, &[("train/loss", 1.5)]).unwrap();
        let bytes = std::fs::read(log.path()).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let check = |bytes: &[u8], at: usize| {
                assert_eq!(masked_crc32c(bytes).to_le_bytes(), rest[at..at + 4]);
            };
            check(&rest[..8], 8);
            check(&rest[12..12 + length], 12 + length);
            events.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 2);
        assert!(events[0].ends_with(b"brain.Event:2"));
        // step 300 as a varint, then the summary: tag and value
        assert_eq!(events[1][9..12], [0x10, 0xac, 0x02]);
        assert!(events[1].windows(10).any(|w| w == b"train/loss"));
        assert!(events[1].ends_with(&1.5f32.to_le_bytes()));
    }
}
