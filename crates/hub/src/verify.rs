//! Whether what arrived is what the hub announced.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};
use tunebook_progress::interrupt;

use crate::explain::Failure;
use crate::git_oid::Sha1;

/// The hub names a large file by its sha256, and a small one as git does; the name is the file's in the
/// cache. A file that has another hash is taken out of the cache, so that the next call fetches it again.
/// By another name its size alone is known.
pub(crate) fn verify(file: &Path, etag: &str, size: u64) -> Result<(), Failure> {
    let found = file.metadata()?.len();
    let problem = match found == size {
        true => wrong_checksum(file, &etag.to_ascii_lowercase(), size)?,
        false => Some(format!("wrong size: expected {size} bytes, found {found}")),
    };
    let Some(problem) = problem else { return Ok(()) };
    // It is damaged anyway; the error that is returned says so.
    let _ = std::fs::remove_file(file);
    Err(Failure::Wrong(format!("{problem}. It was removed: try again to fetch it anew")))
}

fn wrong_checksum(file: &Path, name: &str, size: u64) -> Result<Option<String>, Failure> {
    let is_hash = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (expected, found) = match name.len() {
        64 if is_hash => {
            let mut hash = Sha256::new();
            read(file, |bytes| hash.update(bytes))?;
            let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            ("sha256", vec![found])
        }
        40 if is_hash => {
            // Some mirrors name a file by the hash of its bytes alone.
            let (mut git, mut plain) = (Sha1::of_blob(size), Sha1::new());
            read(file, |bytes| {
                git.update(bytes);
                plain.update(bytes);
            })?;
            ("git's sha1", vec![git.finish(), plain.finish()])
        }
        _ => return Ok(None),
    };
    let wrong =
        |found: &String| format!("wrong checksum: expected {expected} {name}, found {found}");
    Ok(match found.iter().any(|found| found == name) {
        true => None,
        false => found.first().map(wrong),
    })
}

fn read(file: &Path, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
    let mut file = File::open(file)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        // It is not known to be whole then, and looked at again by the next call.
        interrupt::check().map_err(|_| Failure::Stopped)?;
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => each(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_held_against_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let check = |bytes: &[u8], etag: &str| {
            std::fs::write(&file, bytes).unwrap();
            verify(&file, etag, bytes.len() as u64)
        };
        check(b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        check(b"hello\n", "f572d396fae9206628714fb2ce00f72e94f2258f").unwrap(); // without git's header
        check(b"hello\n", "any-other-name").unwrap();
        assert!(file.exists());
        let Err(Failure::Wrong(error)) =
            check(b"hellO\n", "ce013625030ba8dba906f756967f9e9ca394464a")
        else {
            panic!("it is not that file");
        };
        assert!(error.contains("wrong checksum: expected git's sha1 ce01"), "{error}");
        assert!(!file.exists());
    }
}
