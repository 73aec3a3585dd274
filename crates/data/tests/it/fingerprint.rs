//! The fingerprint of a data set.

use polars::prelude::*;
use tunebook_data::{Cleaning, Dataset, ReadOptions};

fn set(columns: Vec<Column>) -> Dataset {
    Dataset::from_frame(DataFrame::new(columns[0].len(), columns).unwrap()).unwrap()
}

fn pairs() -> Vec<Column> {
    vec![
        Column::new("prompt".into(), ["Where is my parcel?", "Ünïcödé", ""]),
        Column::new("completion".into(), ["On its way.", "", "x"]),
    ]
}

/// The values are part of the interface. They were computed by another program (Python's hashlib
/// over the bytes that the module documents).
#[test]
fn the_fingerprint_is_fixed_for_all_time() {
    let dataset = set(pairs());
    assert_eq!(
        dataset.fingerprint(),
        "1fe45eafc6e9ee967c7791141f45f88acf58c65d59bbb07b9e6884d4084ff87c"
    );
    let mut columns = pairs();
    columns.push(Column::new("score".into(), [Some(1i64), None, Some(-3)]));
    columns.push(Column::new("share".into(), [0.5f64, f64::NAN, -0.0]));
    columns.push(Column::new("kept".into(), [Some(true), Some(false), None]));
    let lists = [Series::new("".into(), ["a"]), Series::new("".into(), ["b", "c"])];
    let lists = [Some(lists[0].clone()), None, Some(lists[1].clone())];
    columns.push(Column::new("tags".into(), lists));
    let day = Column::new("day".into(), [0i32, 1, 20_000]).cast(&DataType::Date).unwrap();
    columns.push(day);
    let fields = [
        Series::new("n".into(), [Some(1i32), None, Some(3)]),
        Series::new("s".into(), ["u", "v", "w"]),
    ];
    let structs = StructChunked::from_series("of".into(), 3, fields.iter()).unwrap();
    columns.push(structs.into_column());
    assert_eq!(
        set(columns).fingerprint(),
        "525d3ab74fa51330d2d93709a68fa7c7838bc62b9d8284219ea78895f35019cd"
    );
}

#[test]
fn every_change_changes_it() {
    let whole = set(pairs());
    let mut seen = vec![whole.fingerprint(), Dataset::from_rows(&[]).fingerprint()];
    let mut add = |dataset: Dataset| {
        let fingerprint = dataset.fingerprint();
        assert_eq!(fingerprint.len(), 64);
        assert!(!seen.contains(&fingerprint), "{dataset}");
        seen.push(fingerprint);
    };
    let with = |column: Column| {
        let mut columns = pairs();
        columns.push(column);
        set(columns)
    };
    let row = |prompt: &'static str, completion: &'static str| (prompt, completion);
    // Rows: fewer, in another order, another text, a border that moves.
    add(whole.head(2));
    add(Dataset::from_rows(&[
        row("Ünïcödé", ""),
        row("Where is my parcel?", "On its way."),
        row("", "x"),
    ]));
    add(Dataset::from_rows(&[
        row("Where is my parcel?", "On its way"),
        row("Ünïcödé", "."),
        row("", "x"),
    ]));
    // Columns: one more, another name, another type, nulls, another order.
    add(with(Column::new("n".into(), [1i64, 2, 3])));
    add(with(Column::new("m".into(), [1i64, 2, 3])));
    add(with(Column::new("n".into(), [1i32, 2, 3])));
    add(with(Column::new("n".into(), [1f64, 2.0, 3.0])));
    add(with(Column::new("n".into(), [Some(1i64), Some(2), None])));
    add(with(Column::new("n".into(), ["1", "2", "3"])));
    let [prompt, completion] = pairs().try_into().unwrap();
    add(set(vec![completion, prompt]));
}

#[test]
fn chunks_files_and_reports_do_not_count() {
    let whole = set(pairs());
    let parts =
        whole.head(1).concat(&set(pairs().iter().map(|c| c.slice(1, 2)).collect())).unwrap();
    assert!(parts.frame().columns()[0].as_materialized_series().n_chunks() > 1);
    assert_eq!(parts.fingerprint(), whole.fingerprint());
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "a.parquet"] {
        let path = folder.path().join(name);
        match name {
            "a.jsonl" => whole.write_jsonl(&path).unwrap(),
            _ => whole.write_parquet(&path).unwrap(),
        };
        let read = Dataset::read_with(&path, &ReadOptions::default()).unwrap();
        assert_eq!(read.fingerprint(), whole.fingerprint(), "{name}");
    }
    let clean = whole.clean(&Cleaning::default().strip_html()).unwrap();
    assert_eq!(clean.fingerprint(), whole.fingerprint());
}
