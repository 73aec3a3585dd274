//! Keys of more rows than fit in memory: beyond a limit they go to temporary files, apart by their
//! first word.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a key.
pub(crate) const WORDS: usize = 3;
/// Keys of one row.
pub(crate) type RowKeys = [u64; WORDS];
/// Keys in memory, 24 bytes each.
const IN_MEMORY: usize = 4 << 20;
/// Temporary files; equal first words are in one file.
const PARTS: usize = 64;

/// Keys of rows; they come back sorted, in groups that share their first word.
#[derive(Default)]
pub(crate) struct Spill {
    keys: Vec<RowKeys>,
    files: Option<SpillFiles>,
}

struct SpillFiles {
    folder: PathBuf,
    writers: Vec<BufWriter<File>>,
}

impl Drop for SpillFiles {
    fn drop(&mut self) {
        // Best effort: the folder is a temporary one.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Spill {
    pub(crate) fn push(&mut self, keys: RowKeys) -> io::Result<()> {
        self.keys.push(keys);
        if self.keys.len() >= IN_MEMORY { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let files = match &mut self.files {
            Some(files) => files,
            None => self.files.insert(SpillFiles::create()?),
        };
        for keys in self.keys.drain(..) {
            let part = (keys[0] >> 32) as usize % PARTS;
            for word in keys {
                files.writers[part].write_all(&word.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Hands over all keys, sorted within groups; keys with equal first words come together.
    pub(crate) fn finish(mut self, each: &mut dyn FnMut(&[RowKeys])) -> io::Result<()> {
        let mut sort_and_hand_over = |keys: &mut Vec<RowKeys>| {
            use rayon::slice::ParallelSliceMut;
            keys.par_sort_unstable();
            each(keys);
        };
        if self.files.is_none() {
            sort_and_hand_over(&mut self.keys);
            return Ok(());
        }
        self.flush()?;
        let Some(files) = &mut self.files else { return Ok(()) };
        for part in 0..PARTS {
            files.writers[part].flush()?;
            let mut bytes = Vec::new();
            BufReader::new(File::open(files.folder.join(part.to_string()))?)
                .read_to_end(&mut bytes)?;
            let mut keys: Vec<RowKeys> = bytes
                .chunks_exact(8 * WORDS)
                .map(|chunk| {
                    std::array::from_fn(|word| {
                        let mut bytes = [0u8; 8];
                        bytes.copy_from_slice(&chunk[8 * word..8 * word + 8]);
                        u64::from_le_bytes(bytes)
                    })
                })
                .collect();
            drop(bytes);
            sort_and_hand_over(&mut keys);
        }
        Ok(())
    }
}

impl SpillFiles {
    fn create() -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("tunebook-keys-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let writers = (0..PARTS)
            .map(|part| {
                Ok(BufWriter::with_capacity(1 << 16, File::create(folder.join(part.to_string()))?))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { folder, writers })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_sorted_from_memory_and_from_files() {
        for flushes in [0, 1, 2] {
            let mut spill = Spill::default();
            let keys: Vec<RowKeys> = (0..1000u64).map(|i| [(i % 50) << 32, i % 7, i]).collect();
            for (at, key) in keys.iter().enumerate() {
                spill.push(*key).unwrap();
                if flushes > 0 && at % (600 / flushes) == 599 / flushes {
                    spill.flush().unwrap();
                }
            }
            let folder = spill.files.as_ref().map(|files| files.folder.clone());
            assert_eq!(folder.is_some(), flushes > 0);
            let mut found = Vec::new();
            spill
                .finish(&mut |group| {
                    assert!(group.is_sorted());
                    found.extend_from_slice(group);
                })
                .unwrap();
            found.sort_unstable();
            let mut expected = keys.clone();
            expected.sort_unstable();
            assert_eq!(found, expected);
            assert!(folder.is_none_or(|folder| !folder.exists()));
        }
    }
}
