//! The index: an SQLite file with one row for each run, adapter, evaluation and promotion.
//!
//! The file says whose it is, by SQLite's application id. One of another program, and one that cannot
//! be read, is put aside and never changed; in a folder that holds no registry none is made.
//!
//! It holds nothing of its own. [`Index::sync`] compares it with the lengths of the registry's files,
//! which only grow, and reads those again that have changed: so a run that another process has
//! written, or a folder that was copied here, is in the next table. A file that is damaged or lost is
//! made again, and where none can be written (a folder that is read-only, a full disk) the index
//! lives in memory.
//!
//! WAL is safe for several processes of one machine, on a file system of that machine; on others
//! SQLite refuses it, and the index takes the journal that is deleted. SQLite before 3.51.3 can lose
//! a write of two connections in WAL mode, so it is compiled in, and a test asserts its version.

mod owner;
mod schema;
mod sync;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};

use crate::disk;
use crate::error::{Error, Result};
use crate::index::owner::Owner;
use crate::registry::is_registry;

/// The name of the file.
pub(crate) const FILE: &str = "index.sqlite";
/// Its companions.
const ENDINGS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Held by the process that makes or removes the file.
const LOCK: &str = ".index.lock";
/// How long a write waits for another process's.
const PATIENCE: Duration = Duration::from_secs(30);

/// The index of a registry.
#[derive(Debug)]
pub(crate) struct Index {
    /// The registry's folder.
    root: PathBuf,
    open: Mutex<Option<Open>>,
    warnings: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// Device and number of the file; `None`: in memory.
    file: Option<(u64, u64)>,
    /// In memory because there is no registry yet.
    no_registry: bool,
}

impl Index {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), open: Mutex::default(), warnings: Mutex::default() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(FILE)
    }

    /// What was odd so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says something once, in [`Registry::warnings`](crate::Registry::warnings).
    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Brings the index up to date with the files, and asks it.
    ///
    /// # Errors
    /// Files of the registry that cannot be read, or a question that fails.
    pub(crate) fn ask<T>(
        &self,
        question: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.with(&mut open, &|connection| {
            let unread = sync::sync(&self.root, connection, false)?;
            unread.into_iter().for_each(|problem| self.warn(problem));
            question(connection).map_err(Failure::Sql)
        })
    }

    /// Asks the index as it is: for what belongs to one question that has begun with
    /// [`Index::ask`].
    pub(crate) fn look<T>(
        &self,
        question: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.with(&mut open, &|connection| question(connection).map_err(Failure::Sql))
    }

    /// Makes the index again, from the files alone. Gives what could not be read.
    pub(crate) fn rebuild(&self) -> Result<Vec<String>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let unread =
            self.with(&mut open, &|connection| sync::sync(&self.root, connection, true))?;
        unread.iter().for_each(|problem| self.warn(problem.clone()));
        Ok(unread)
    }

    /// All that it holds, as text, without the lengths of files.
    pub(crate) fn dump(&self) -> Result<String> {
        self.ask(|connection| {
            let mut text = String::new();
            for table in schema::TABLES {
                text.push_str(&format!("{table}\n"));
                let mut rows =
                    connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2"))?;
                let columns = rows.column_count();
                let mut rows = rows.query([])?;
                while let Some(row) = rows.next()? {
                    for column in 0..columns {
                        text.push_str(&match row.get_ref(column)? {
                            ValueRef::Null => "\t-".to_owned(),
                            ValueRef::Integer(number) => format!("\t{number}"),
                            ValueRef::Real(number) => format!("\t{number:?}"),
                            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                                format!("\t{:?}", String::from_utf8_lossy(bytes))
                            }
                        });
                    }
                    text.push('\n');
                }
            }
            Ok(text)
        })
    }

    /// Does `work`, once more on a new file if this one is damaged, and in memory if none can be
    /// written.
    fn with<T>(
        &self,
        open: &mut MutexGuard<'_, Option<Open>>,
        work: &dyn Fn(&mut Connection) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let sql = |error: rusqlite::Error| Error::Index { path: self.path(), source: error.into() };
        let failed = match self.connect(open).and_then(|open| work(&mut open.connection)) {
            Ok(done) => return Ok(done),
            Err(Failure::Other(error)) => return Err(error),
            Err(Failure::Sql(error)) => error,
        };
        **open = None;
        let failed = if is_damaged(&failed) {
            let aside = self.discard()?;
            let aside = aside.map(|aside| format!("; what was there is `{aside}`"));
            self.warn(format!(
                "the index `{}` was damaged ({failed}); it was made again from the files{}",
                self.path().display(),
                aside.unwrap_or_default()
            ));
            match self.connect(open).and_then(|open| work(&mut open.connection)) {
                Ok(done) => return Ok(done),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Sql(error)) => error,
            }
        } else {
            failed
        };
        if !cannot_write(&failed) {
            return Err(sql(failed));
        }
        self.warn(format!(
            "the index `{}` cannot be written ({failed}): it is kept in memory, and made from the \
             files by each process",
            self.path().display()
        ));
        let open = open.insert(in_memory(false).map_err(sql)?);
        match work(&mut open.connection) {
            Ok(done) => Ok(done),
            Err(Failure::Other(error)) => Err(error),
            Err(Failure::Sql(error)) => Err(sql(error)),
        }
    }

    /// The connection, a new one where the file is another one now.
    fn connect<'a>(
        &self,
        open: &'a mut MutexGuard<'_, Option<Open>>,
    ) -> std::result::Result<&'a mut Open, Failure> {
        let path = self.path();
        let found = file_id(&path);
        if open.as_ref().is_some_and(|open| open.file.is_some() && open.file != found) {
            **open = None;
        }
        // A question makes nothing in a folder that somebody has mistyped.
        let no_registry = !is_registry(&self.root);
        if open.as_ref().is_some_and(|open| open.no_registry && !no_registry) {
            **open = None;
        }
        if open.is_none() && no_registry {
            **open = Some(in_memory(true)?);
        }
        if open.is_none() {
            if let Err(error) = self.put_others_aside() {
                // It is not opened: the index is one in memory.
                let cannot = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
                let error = rusqlite::Error::SqliteFailure(cannot, Some(error.to_string()));
                return Err(Failure::Sql(error));
            }
            let found = file_id(&path);
            // Of several processes that make it at once, one does; on a disk without room none.
            let _one_process = match found {
                Some(_) => None,
                None => disk::Lock::take(&self.root.join(LOCK)).ok(),
            };
            let connection = Connection::open(&path)?;
            connection.busy_timeout(PATIENCE)?;
            // Before WAL, whose file is not the one that says whose it is.
            if owner::of(&path).is_ok_and(|owner| owner == Owner::Nobody) {
                connection.pragma_update(None, "application_id", schema::APPLICATION)?;
            }
            choose_journal(&connection, &self.root)?;
            connection.execute_batch("PRAGMA synchronous = FULL")?;
            prepare(&connection)?;
            let file = file_id(&path);
            **open = Some(Open { connection, file, no_registry: false });
        }
        open.as_mut().ok_or(Failure::Sql(rusqlite::Error::InvalidQuery))
    }

    /// Puts a file of another program, or a link to one, aside.
    fn put_others_aside(&self) -> Result<()> {
        let path = self.path();
        let is_others = || owner::of(&path).is_ok_and(|owner| owner == Owner::Others);
        if !is_others() {
            return Ok(());
        }
        let _one_process = disk::Lock::take(&self.root.join(LOCK))?;
        if is_others() {
            let aside = self.put_aside()?;
            self.warn(format!(
                "`{}` was a file of another program: it is `{aside}` now, as it was, and the index \
                 was made from the registry's files",
                path.display()
            ));
        }
        Ok(())
    }

    /// Renames the file and its companions. Gives the file's new name.
    fn put_aside(&self) -> Result<String> {
        let name = format!("{FILE}.aside-{}", disk::new_id()?);
        for ending in [""].iter().chain(&ENDINGS) {
            let (old, new) = (format!("{FILE}{ending}"), format!("{name}{ending}"));
            match std::fs::rename(self.root.join(&old), self.root.join(new)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(disk::io("put aside", &self.root.join(old))(error));
                }
                _ => {}
            }
        }
        Ok(name)
    }

    /// Removes an index that is damaged, unless another process has just done so. What does not say
    /// that it is an index is put aside: its new name.
    fn discard(&self) -> Result<Option<String>> {
        let _one_process = disk::Lock::take(&self.root.join(LOCK))?;
        let path = self.path();
        let fine = Connection::open(&path).and_then(|connection| {
            connection.busy_timeout(PATIENCE)?;
            connection.query_row("PRAGMA quick_check", [], |row| row.get::<_, String>(0))
        });
        if fine.is_ok_and(|found| found == "ok") {
            return Ok(None);
        }
        if owner::of(&path).is_ok_and(|owner| owner != Owner::Registry) {
            return self.put_aside().map(Some);
        }
        let companions = ENDINGS.map(|ending| self.root.join(format!("{FILE}{ending}")));
        for file in companions.into_iter().chain([path]) {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(disk::io("remove", &file)(error));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// An index without a file.
fn in_memory(no_registry: bool) -> rusqlite::Result<Open> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(schema::CREATE)?;
    Ok(Open { connection, file: None, no_registry })
}

/// WAL, where it is safe and SQLite takes it; else the journal that is deleted.
fn choose_journal(connection: &Connection, root: &Path) -> rusqlite::Result<()> {
    let mode = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0));
    let wanted = if is_network(root) { "delete" } else { "wal" };
    if mode("PRAGMA journal_mode")?.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    // SQLite answers with the mode that it has taken.
    let taken = mode(&format!("PRAGMA journal_mode = {wanted}"))?;
    if !taken.eq_ignore_ascii_case(wanted) {
        mode("PRAGMA journal_mode = DELETE")?;
    }
    Ok(())
}

/// Whether a folder lies on a file system whose locks or memory maps are not those of one machine:
/// WAL loses writes there, and SQLite does not always see it.
fn is_network(folder: &Path) -> bool {
    // NFS, 9p, SMB 1 to 3, FUSE, Lustre, GPFS, BeeGFS, Ceph, AFS: `f_type` of statfs(2).
    const KINDS: [u32; 11] = [
        0x6969,
        0x0102_1997,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x6573_5546,
        0x0bd0_0bd0,
        0x4750_4653,
        0x1983_0326,
        0x00c3_6400,
        0x5346_414f,
    ];
    let Ok(path) = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()) else {
        return false;
    };
    // SAFETY: all bytes of `statfs` may be zero; the call reads `path` up to its zero byte and writes
    // one `statfs`.
    let found = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &mut found) == 0).then_some(found)
    };
    found.is_some_and(|found| KINDS.contains(&(found.f_type as u32)))
}

/// Makes the tables; those of another version go.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    let version = || connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    if version()? == schema::VERSION {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    if version()? != schema::VERSION {
        for table in schema::TABLES.iter().chain(&["alias_files"]) {
            connection.execute_batch(&format!("DROP TABLE IF EXISTS {table}"))?;
        }
        connection.execute_batch(schema::CREATE)?;
        connection.execute_batch(&format!("PRAGMA user_version = {}", schema::VERSION))?;
        connection.pragma_update(None, "application_id", schema::APPLICATION)?;
    }
    connection.execute_batch("COMMIT")
}

/// Why work on the index failed.
pub(crate) enum Failure {
    Sql(rusqlite::Error),
    Other(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(found, message) => match found.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => true,
            // A table or column that is not there.
            ErrorCode::Unknown => message.as_ref().is_some_and(|text| text.starts_with("no such")),
            _ => false,
        },
        rusqlite::Error::SqlInputError { msg, .. } => msg.starts_with("no such"),
        rusqlite::Error::InvalidColumnType(..) => true,
        _ => false,
    }
}

fn cannot_write(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::PermissionDenied
        )
    )
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn sqlite_is_one_without_the_race_of_its_wal() {
        // Two connections could lose a write: 3.7.0 to 3.51.2, https://sqlite.org/wal.html.
        assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
    }
}
