//! Whose a database is, by the first bytes of its file alone: opening it would change it.
//!
//! The [header](https://sqlite.org/fileformat.html#the_database_header) has the version of the user at
//! byte 60 and the application's id at byte 68, as big-endian numbers.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::index::schema;

/// Who has made a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// There is none, or it is empty.
    Nobody,
    /// It is an index of a registry.
    Registry,
    /// It is a database of another program, or a link.
    Others,
    /// It is no database, or one that is damaged from the beginning.
    Unclear,
}

const MAGIC: &[u8] = b"SQLite format 3\0";

/// # Errors
/// The file cannot be read.
pub(super) fn of(path: &Path) -> io::Result<Owner> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Owner::Nobody),
        Err(error) => return Err(error),
        Ok(found) if !found.is_file() => return Ok(Owner::Others),
        Ok(found) if found.len() == 0 => return Ok(Owner::Nobody),
        Ok(_) => {}
    }
    let mut header = Vec::new();
    File::open(path)?.take(100).read_to_end(&mut header)?;
    let number = |at: usize| {
        let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        Some(i32::from_be_bytes(bytes))
    };
    let (Some(version), Some(application)) = (number(60), number(68)) else {
        return Ok(Owner::Unclear);
    };
    Ok(match (header.starts_with(MAGIC), application) {
        (false, _) => Owner::Unclear,
        (true, schema::APPLICATION) => Owner::Registry,
        // The first indexes had no application's id.
        (true, 0) if version == 1 && has_tables(path) => Owner::Registry,
        (true, _) => Owner::Others,
    })
}

fn has_tables(path: &Path) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(connection) = Connection::open_with_flags(path, flags) else { return false };
    let there = |table: &&str| {
        let sql = "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        connection.query_row(sql, [table], |row| row.get::<_, i64>(0)).is_ok_and(|found| found == 1)
    };
    schema::TABLES.iter().all(there)
}
