//! Whether what arrived is what the hub announced.

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};
use tunebook_progress::interrupt;

/// The hub names a large file by its sha256, and the cache keeps it under that name. A file that
/// has another sha256 or another size is taken out of the cache, so that the next call fetches it
/// again.
pub(crate) fn verify(path: &Path, size: Option<u64>) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let blob = path.canonicalize().map_err(io)?;
    let found = blob.metadata().map_err(io)?.len();
    let problem = match size.filter(|size| *size != found) {
        Some(size) => Some(format!("wrong size: expected {size} bytes, found {found}")),
        None => match wrong_checksum(&blob) {
            Ok(problem) => problem,
            Err(stopped) => {
                let _ = std::fs::remove_file(path);
                let _ = std::fs::rename(&blob, blob.with_extension("part"));
                return Err(stopped);
            }
        },
    };
    let Some(problem) = problem else { return Ok(()) };
    for file in [path, &blob] {
        // It is damaged anyway; the error that is returned says so.
        let _ = std::fs::remove_file(file);
    }
    Err(format!("{problem}. It was removed: try again to fetch it anew"))
}

fn wrong_checksum(blob: &Path) -> Result<Option<String>, String> {
    let name = blob.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(blob).map_err(|error| error.to_string())?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        // It is not known to be whole then, and looked at again by the next call.
        interrupt::check().map_err(|stopped| stopped.to_string())?;
        match file.read(&mut buffer).map_err(|error| error.to_string())? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((found != name).then(|| format!("wrong checksum: expected sha256 {name}, found {found}")))
}
