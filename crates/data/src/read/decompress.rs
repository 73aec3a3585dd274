//! Files as plain bytes: gzip and Zstandard are undone by their first bytes, whatever the file is
//! called.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{DataError, Result};

/// From this size on, a compressed file that grew more than [`BOMB_RATIO`] times is taken for a
/// bomb.
const BOMB_BYTES: u64 = 256 << 20;
/// Text compresses 3 to 20 times, the most repetitive logs about 100 times.
const BOMB_RATIO: u64 = 200;

/// A file's plain bytes.
pub(crate) struct PlainBytes {
    reader: Box<dyn Read + Send>,
    /// The error of the decompression: the bytes before it are good.
    damage: Arc<Mutex<Option<String>>>,
    compression: Option<&'static str>,
}

impl PlainBytes {
    /// The compression of the file.
    pub(crate) fn compression(&self) -> Option<&'static str> {
        self.compression
    }

    /// The error that ended the bytes early, if there was one.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The damage as the reason why something is kept aside.
    pub(crate) fn damage_reason(&self, damage: &str) -> String {
        let compression = self.compression().unwrap_or("compressed");
        format!("expected more {compression} data, found it damaged or cut off: {damage}")
    }
}

impl Read for PlainBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            // Also one that the limit below raised.
            Err(error) if error.kind() == io::ErrorKind::Interrupted || is_bomb(&error) => {
                Err(error)
            }
            Err(error) if self.compression.is_some() => {
                *self.damage.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(error.to_string());
                Ok(0)
            }
            other => other,
        }
    }
}

/// Opens a file; `read` counts the bytes taken off the disk.
pub(crate) fn open(path: &Path, read: Arc<AtomicU64>) -> Result<PlainBytes> {
    let failed = |source| DataError::Io { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    plain(file, read).map_err(failed)
}

/// The plain bytes of any source.
pub(crate) fn plain(
    source: impl Read + Send + 'static,
    read: Arc<AtomicU64>,
) -> io::Result<PlainBytes> {
    let mut counted = Counted { inner: source, read: read.clone() };
    let mut start = Vec::with_capacity(4);
    (&mut counted).take(4).read_to_end(&mut start)?;
    let compression = match start.as_slice() {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
        _ => None,
    };
    let whole = io::Cursor::new(start).chain(counted);
    let reader: Box<dyn Read + Send> = match compression {
        Some("gzip") => Box::new(Limited::new(
            flate2::read::MultiGzDecoder::new(BufReader::with_capacity(1 << 16, whole)),
            read,
        )),
        Some(_) => Box::new(Limited::new(zstd::stream::read::Decoder::new(whole)?, read)),
        None => Box::new(whole),
    };
    Ok(PlainBytes { reader, damage: Arc::default(), compression })
}

struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Ends with an error when far more comes out than went in.
struct Limited<R> {
    inner: R,
    read: Arc<AtomicU64>,
    read_before: u64,
    written: u64,
}

impl<R> Limited<R> {
    fn new(inner: R, read: Arc<AtomicU64>) -> Self {
        let read_before = read.load(Ordering::Relaxed).saturating_sub(4);
        Self { inner, read, read_before, written: 0 }
    }
}

const BOMB: &str = "a decompression bomb";

fn is_bomb(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData && error.to_string().starts_with(BOMB)
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.written += count as u64;
        let read = self.read.load(Ordering::Relaxed).saturating_sub(self.read_before).max(1);
        if self.written > BOMB_BYTES && self.written / read > BOMB_RATIO {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{BOMB}: {read} bytes have become more than {} MiB, {BOMB_RATIO} times as many. Decompress it by hand if \
                     that is meant",
                    self.written >> 20
                ),
            ));
        }
        Ok(count)
    }
}
