//! The tables of the index.

/// Another number makes the index again.
pub(super) const VERSION: i64 = 2;

/// `tnbk`, by which a database says that it is an index of a registry (`PRAGMA application_id`).
pub(super) const APPLICATION: i32 = 0x746e_626b;

/// All tables, in the order in which they are compared.
pub(super) const TABLES: [&str; 11] = [
    "runs",
    "configs",
    "metrics",
    "tags",
    "notes",
    "adapters",
    "origins",
    "answering",
    "evaluations",
    "scores",
    "promotions",
];

/// One row a run, adapter, evaluation or promotion, and the lists that belong to them.
pub(super) const CREATE: &str = "
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, started REAL, secs REAL,
    base_model TEXT, base TEXT, strategy TEXT, dataset TEXT, rows TEXT, parent TEXT, adapter TEXT,
    steps INTEGER, total_steps INTEGER, loss REAL, eval_loss REAL,
    best_metric TEXT, best REAL, best_step INTEGER, evals INTEGER, tags TEXT, notes INTEGER,
    error TEXT, damaged INTEGER, missing INTEGER, log_bytes INTEGER, notes_bytes INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS configs (run TEXT PRIMARY KEY, config TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metrics (
    run TEXT, name TEXT, higher_is_better INTEGER, last REAL, best REAL, best_step INTEGER,
    PRIMARY KEY (run, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (run TEXT, tag TEXT, PRIMARY KEY (run, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    run TEXT, number INTEGER, at REAL, text TEXT, PRIMARY KEY (run, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adapters (
    id TEXT PRIMARY KEY, config TEXT, base_model TEXT, base TEXT, bytes INTEGER, saved REAL,
    removed REAL, file_bytes INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (
    adapter TEXT, number INTEGER, run TEXT, parent TEXT, at REAL, PRIMARY KEY (adapter, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answering (
    fingerprint TEXT, adapter TEXT, PRIMARY KEY (fingerprint, adapter)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evaluations (
    id TEXT PRIMARY KEY, fingerprint TEXT, model TEXT, active TEXT, rows INTEGER,
    planned_rows INTEGER, at REAL, file_bytes INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    evaluation TEXT, name TEXT, value REAL, low REAL, high REAL, rows INTEGER, signature TEXT,
    PRIMARY KEY (evaluation, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS promotions (
    alias TEXT, generation INTEGER, adapter TEXT, kind TEXT, previous INTEGER, restores INTEGER,
    reason TEXT, comparison TEXT, at REAL, PRIMARY KEY (alias, generation)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alias_files (
    alias TEXT PRIMARY KEY, file_bytes INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_by_name ON runs (name);
CREATE INDEX IF NOT EXISTS evaluations_by_fingerprint ON evaluations (fingerprint);
CREATE INDEX IF NOT EXISTS answering_by_adapter ON answering (adapter);
";
