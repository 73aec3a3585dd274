//! Brings the index up to date with the registry's files: those that are new or longer are read again
//! as a whole, and those that are gone go. A file that cannot be read costs itself alone.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::adapters::{self, Kept};
use crate::aliases::{self, AliasGeneration};
use crate::disk;
use crate::error::Result;
use crate::evaluations::{self, EvaluationRecord};
use crate::ids;
use crate::index::Failure;
use crate::summary::{LOG, NOTES, Summary};

/// Files by name, with the lengths that they were read at.
type Lengths = BTreeMap<String, (u64, u64)>;

/// One kind of files, and the tables made of them.
struct Area {
    /// Where they are.
    on_disk: fn(&Path, &mut Vec<String>) -> Result<Lengths>,
    /// Name and lengths of all that are in the index.
    known: &'static str,
    /// Puts one in, in place of what was there.
    put: fn(&Transaction<'_>, &Path, &str) -> std::result::Result<(), Failure>,
    /// The tables, with the column that has the name.
    tables: &'static [(&'static str, &'static str)],
}

const AREAS: [Area; 4] = [
    Area {
        on_disk: runs,
        known: "SELECT id, log_bytes, notes_bytes FROM runs",
        put: put_run,
        tables: &[
            ("runs", "id"),
            ("configs", "run"),
            ("metrics", "run"),
            ("tags", "run"),
            ("notes", "run"),
        ],
    },
    Area {
        on_disk: |root, unread| {
            let mut found = files(&root.join(adapters::FOLDER), ".jsonl", unread)?;
            found.retain(|id, _| ids::is_adapter(id));
            Ok(found)
        },
        known: "SELECT id, file_bytes, 0 FROM adapters",
        put: put_adapter,
        tables: &[("adapters", "id"), ("origins", "adapter"), ("answering", "adapter")],
    },
    Area {
        on_disk: |root, unread| files(&root.join(evaluations::FOLDER), ".json", unread),
        known: "SELECT id, file_bytes, 0 FROM evaluations",
        put: put_evaluation,
        tables: &[("evaluations", "id"), ("scores", "evaluation")],
    },
    Area {
        on_disk: |root, unread| {
            let names = aliases::names(root)?;
            let mut found = files(&root.join(aliases::FOLDER), ".jsonl", unread)?;
            found.retain(|name, _| names.contains(name));
            Ok(found)
        },
        known: "SELECT alias, file_bytes, 0 FROM alias_files",
        put: put_alias,
        tables: &[("alias_files", "alias"), ("promotions", "alias")],
    },
];

/// Brings the index up to date; makes all of it again with `anew`. Gives what could not be read.
pub(super) fn sync(
    root: &Path,
    connection: &mut Connection,
    anew: bool,
) -> std::result::Result<Vec<String>, Failure> {
    let mut unread = Vec::new();
    for area in &AREAS {
        let found = (area.on_disk)(root, &mut unread)?;
        let known = if anew { Lengths::new() } else { known(connection, area.known)? };
        let changed: Vec<&String> =
            found.iter().filter(|(name, at)| known.get(*name) != Some(at)).map(|f| f.0).collect();
        let gone: Vec<&String> = known.keys().filter(|name| !found.contains_key(*name)).collect();
        if changed.is_empty() && gone.is_empty() && !anew {
            continue;
        }
        // Who writes takes its turn at the beginning: in the middle it could only be refused.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if anew {
            for (table, _) in area.tables {
                transaction.execute(&format!("DELETE FROM {table}"), [])?;
            }
        }
        for name in gone.into_iter().chain(changed.iter().copied()) {
            for (table, column) in area.tables {
                transaction.execute(&format!("DELETE FROM {table} WHERE {column} = ?1"), [name])?;
            }
        }
        for name in changed {
            match (area.put)(&transaction, root, name) {
                Err(Failure::Other(error)) => unread.push(error.to_string()),
                put => put?,
            }
        }
        transaction.commit()?;
    }
    Ok(unread)
}

fn known(connection: &Connection, sql: &str) -> rusqlite::Result<Lengths> {
    let mut rows = connection.prepare(sql)?;
    let rows = rows.query_map([], |row| {
        let lengths: (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok((row.get(0)?, (lengths.0 as u64, lengths.1 as u64)))
    })?;
    rows.collect()
}

fn runs(root: &Path, unread: &mut Vec<String>) -> Result<Lengths> {
    let folder = root.join(crate::registry::RUNS);
    let mut found = Lengths::new();
    for id in disk::names(&folder)? {
        let run = folder.join(&id);
        let lengths = || Ok((disk::length(&run.join(LOG))?, disk::length(&run.join(NOTES))?));
        match lengths() {
            Ok((0, 0)) => {}
            Ok(lengths) => drop(found.insert(id, lengths)),
            Err(error) => unread.push(crate::Error::to_string(&error)),
        }
    }
    Ok(found)
}

fn files(folder: &Path, ending: &str, unread: &mut Vec<String>) -> Result<Lengths> {
    let mut found = Lengths::new();
    for file in disk::names(folder)? {
        if let Some(name) = file.strip_suffix(ending) {
            match disk::length(&folder.join(&file)) {
                Ok(length) => drop(found.insert(name.to_owned(), (length, 0))),
                Err(error) => unread.push(error.to_string()),
            }
        }
    }
    Ok(found)
}

fn put_run(
    transaction: &Transaction<'_>,
    root: &Path,
    id: &str,
) -> std::result::Result<(), Failure> {
    let run = Summary::read(&root.join(crate::registry::RUNS).join(id))?;
    let metrics = run.metrics();
    let best = metrics.get(&run.judged_by);
    let tags = run.tags.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut row = transaction.prepare(
        "INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, \
         ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27)",
    )?;
    row.execute(params![
        run.id,
        run.name,
        run.state,
        run.started,
        run.secs,
        run.base_model,
        run.base,
        run.strategy,
        run.dataset,
        run.data.as_ref().map(|data| &data.rows),
        run.parent,
        run.adapter,
        run.steps as i64,
        run.total_steps as i64,
        run.loss,
        metrics.get("loss").map(|loss| loss.last),
        best.map(|_| &run.judged_by),
        best.map(|values| values.best),
        best.map(|values| values.best_step as i64),
        run.evals.len() as i64,
        tags,
        run.notes.len() as i64,
        run.error,
        run.damaged as i64,
        run.missing as i64,
        run.log_bytes as i64,
        run.notes_bytes as i64,
    ])?;
    if let Some(begin) = &run.begin {
        let config = serde_json::to_string(begin).map_err(crate::Error::from)?;
        transaction.execute("INSERT INTO configs VALUES (?1, ?2)", params![id, config])?;
    }
    for (name, values) in &metrics {
        transaction.execute(
            "INSERT INTO metrics VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                id,
                name,
                values.higher_is_better,
                values.last,
                values.best,
                values.best_step as i64
            ],
        )?;
    }
    for tag in &run.tags {
        transaction.execute("INSERT INTO tags VALUES (?1, ?2)", params![id, tag])?;
    }
    for (number, note) in run.notes.iter().enumerate() {
        transaction.execute(
            "INSERT INTO notes VALUES (?1, ?2, ?3, ?4)",
            params![id, number as i64, note.at, note.text],
        )?;
    }
    Ok(())
}

fn put_adapter(
    transaction: &Transaction<'_>,
    root: &Path,
    id: &str,
) -> std::result::Result<(), Failure> {
    let Kept {
        config,
        base_model,
        base,
        bytes,
        saved,
        removed,
        origins,
        answering,
        file_bytes,
        ..
    } = Kept::read(root, id)?;
    transaction.execute(
        "INSERT INTO adapters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![id, config, base_model, base, bytes as i64, saved, removed, file_bytes as i64],
    )?;
    for (number, origin) in origins.iter().enumerate() {
        transaction.execute(
            "INSERT INTO origins VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, number as i64, origin.run, origin.parent, origin.at],
        )?;
    }
    for fingerprint in &answering {
        transaction.execute("INSERT INTO answering VALUES (?1, ?2)", params![fingerprint, id])?;
    }
    Ok(())
}

fn put_evaluation(
    transaction: &Transaction<'_>,
    root: &Path,
    id: &str,
) -> std::result::Result<(), Failure> {
    // One that cannot be read says nothing; it stays where it is.
    let Some((evaluation, file_bytes)) = EvaluationRecord::read(root, id)? else {
        return Ok(());
    };
    transaction.execute(
        "INSERT INTO evaluations VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            id,
            evaluation.fingerprint,
            evaluation.model,
            evaluation.active,
            evaluation.rows as i64,
            evaluation.planned_rows as i64,
            evaluation.at,
            file_bytes as i64
        ],
    )?;
    for score in &evaluation.scores {
        transaction.execute(
            "INSERT OR REPLACE INTO scores VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id,
                score.metric.name,
                score.value,
                score.interval.map(|interval| interval.low),
                score.interval.map(|interval| interval.high),
                score.rows as i64,
                score.signature
            ],
        )?;
    }
    Ok(())
}

fn put_alias(
    transaction: &Transaction<'_>,
    root: &Path,
    alias: &str,
) -> std::result::Result<(), Failure> {
    let history = aliases::history(root, alias)?;
    for generation in &history.generations {
        let AliasGeneration { adapter, kind, previous, restores, reason, comparison, at, .. } =
            generation;
        let comparison = comparison
            .as_ref()
            .map(serde_json::to_string)
            .transpose()
            .map_err(crate::Error::from)?;
        transaction.execute(
            "INSERT OR REPLACE INTO promotions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                alias,
                generation.generation as i64,
                adapter,
                kind.as_str(),
                previous.map(|previous| previous as i64),
                restores.map(|restored| restored as i64),
                reason,
                comparison,
                at
            ],
        )?;
    }
    transaction
        .execute("INSERT INTO alias_files VALUES (?1, ?2)", params![alias, history.bytes as i64])?;
    Ok(())
}
