//! A report of a fine-tune: one HTML file that opens offline and prints well, and one JSON file with
//! the same content for programs.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use tunebook_charts::{Cell, Figure, Table, write_whole};
use tunebook_data::{Dataset, Splits};
use tunebook_evaluate::{Comparison, Evaluation};
use tunebook_models::Model;
use tunebook_progress::{MimeBundle, escape_html};
use tunebook_tune::RunRecord;

use crate::StrategyComparison;
use crate::evaluate::{ComparisonViews as _, EvaluationViews as _};
use crate::summary::Summary as _;
use crate::train::LossCurve as _;

macro_rules! value {
    ($of:expr) => {
        serde_json::to_value($of).unwrap_or(Value::Null)
    };
}

/// Sample answers in a report.
const SAMPLES: usize = 12;

/// A report, put together part by part.
///
/// ```no_run
/// use tunebook::prelude::*;
/// # fn f(split: Splits, model: Model, run: Run, evaluation: Evaluation) -> std::io::Result<()> {
/// Report::new("Support answers")
///     .part("Data", &split)
///     .part("Model", &model)
///     .part("Training", run.record())
///     .part("Evaluation", &evaluation)
///     .write("out/report.html")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    sections: Vec<(String, String, Value)>,
}

/// Something that a report can have a part of.
pub trait ReportPart {
    /// Its HTML, with everything from data escaped.
    fn html(&self) -> String;

    /// The same for programs.
    fn json(&self) -> Value;
}

impl Report {
    /// A report with a title and no parts.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), sections: Vec::new() }
    }

    /// With another part under a heading.
    #[must_use]
    pub fn part(mut self, heading: impl Into<String>, part: &dyn ReportPart) -> Self {
        self.sections.push((heading.into(), part.html(), part.json()));
        self
    }

    /// With a figure under a heading.
    #[must_use]
    pub fn figure(mut self, heading: impl Into<String>, figure: &Figure) -> Self {
        self.sections.push((heading.into(), figure.svg().to_owned(), figure.plotly().clone()));
        self
    }

    /// With a table under a heading.
    #[must_use]
    pub fn table(mut self, heading: impl Into<String>, table: &Table) -> Self {
        self.sections.push((heading.into(), table.html(), json!(table.text())));
        self
    }

    /// What a cell shows of it: its parts by name.
    pub(crate) fn bundle(&self) -> MimeBundle {
        let mut table = Table::new(["part"]).caption(self.title.clone());
        for (heading, ..) in &self.sections {
            table.row([heading.as_str()]);
        }
        table.note("`.write(\"out/report.html\")?` writes the page and its JSON.").bundle()
    }

    /// The HTML page.
    pub fn html(&self) -> String {
        let title = escape_html(&self.title);
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        );
        for (heading, html, _) in &self.sections {
            // Writing to a String cannot fail.
            let _ = write!(page, "<section><h2>{}</h2>\n{html}</section>\n", escape_html(heading));
        }
        let _ = writeln!(page, "<footer>{}</footer></body></html>", escape_html(&environment()));
        page
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let sections: Vec<Value> = self
            .sections
            .iter()
            .map(|(heading, _, value)| json!({"heading": heading, "content": value}))
            .collect();
        json!({"title": self.title, "sections": sections, "environment": environment()})
    }

    /// Writes the page, and beside it the JSON file of the same name. Files of these names are
    /// replaced, each when the new one is whole.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        let path = path.as_ref();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_whole(path, &self.html())?;
        write_whole(&path.with_extension("json"), &format!("{:#}\n", self.json()))
    }
}

/// Colours that follow the reader's theme, and pages that break between sections.
const STYLE: &str = "\
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;\
margin:2rem auto;padding:0 1rem}h1{line-height:1.2}section{margin:2rem 0}svg,img{max-width:100%;\
height:auto}table{font-size:0.9em}td,th{border-bottom:1px solid #8884;overflow-wrap:anywhere}\
footer{color:#888;font-size:0.85em}@media print{body{margin:0;max-width:none}\
section{break-inside:avoid-page}}";

fn environment() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "tunebook {} on {} {}, {threads} threads",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

impl ReportPart for Splits {
    fn html(&self) -> String {
        let mut table = Table::new(["set", "rows"]);
        for (name, set) in [("train", &self.train), ("validation", &self.validation)] {
            table.row([Cell::from(name), set.len().into()]);
        }
        format!("{}{}", table.html(), card(&self.train))
    }

    fn json(&self) -> Value {
        json!({"train": self.train.json(), "validation": self.validation.json()})
    }
}

impl ReportPart for Dataset {
    fn html(&self) -> String {
        card(self)
    }

    fn json(&self) -> Value {
        json!({"rows": self.len(), "columns": names(self), "fingerprint": self.fingerprint()})
    }
}

fn names(data: &Dataset) -> Vec<String> {
    data.frame().columns().iter().map(|column| column.name().to_string()).collect()
}

/// A data card: how many rows, which columns, how long the texts are, and the first of them.
fn card(data: &Dataset) -> String {
    let mut table = Table::new(["prompt", "completion"]);
    for row in data.head(3).rows() {
        table.row([row.prompt, row.completion]);
    }
    let table = table.caption(format!(
        "{} rows; columns {}; fingerprint {}",
        data.len(),
        names(data).join(", "),
        data.fingerprint()
    ));
    table.html()
}

impl ReportPart for Model {
    fn html(&self) -> String {
        self.summary().html()
    }

    fn json(&self) -> Value {
        json!({"name": self.name(), "parameters": self.parameter_count(), "config": value!(self.config())})
    }
}

impl ReportPart for RunRecord {
    fn html(&self) -> String {
        let mut table = Table::new(["setting", "value"]);
        if let Value::Object(args) = value!(&self.args) {
            for (name, value) in args.into_iter().filter(|(_, value)| !value.is_null()) {
                table.row([name, value.to_string()]);
            }
        }
        format!(
            "<p>{}</p>{}{}",
            escape_html(&self.to_string()),
            self.loss_curve().svg(),
            table.html()
        )
    }

    fn json(&self) -> Value {
        value!(self)
    }
}

impl ReportPart for Evaluation {
    fn html(&self) -> String {
        let mut html = self.score_table().html();
        if !self.slices.is_empty() {
            html.push_str(&self.slice_table().html());
        }
        for figure in [self.confusion_chart(), self.reliability_chart()].into_iter().flatten() {
            html.push_str(figure.svg());
        }
        if let Some(classes) = self.class_table() {
            html.push_str(&classes.html());
        }
        let mut samples = Table::new(["question", "reference", "answer"]).caption("Answers");
        let step = (self.rows.len() / SAMPLES).max(1);
        for row in self.rows.iter().step_by(step).take(SAMPLES) {
            let reference = row.references.first().cloned().unwrap_or_default();
            samples.row([row.question.clone(), reference, row.answer.clone().unwrap_or_default()]);
        }
        html.push_str(&samples.html());
        html
    }

    fn json(&self) -> Value {
        value!(self)
    }
}

impl ReportPart for Comparison {
    fn html(&self) -> String {
        let mut html = self.table().html();
        for (name, rows) in [("right", &self.newly_right), ("wrong", &self.newly_wrong)] {
            for metric in rows.keys() {
                let table = match name {
                    "right" => self.newly_right_table(metric),
                    _ => self.newly_wrong_table(metric),
                };
                if !table.is_empty() {
                    html.push_str(&table.caption(format!("Newly {name} ({metric})")).html());
                }
            }
        }
        html
    }

    fn json(&self) -> Value {
        value!(self)
    }
}

impl ReportPart for StrategyComparison {
    fn html(&self) -> String {
        let charts = self.charts();
        self.table().html() + &charts.iter().map(Figure::svg).collect::<String>()
    }

    fn json(&self) -> Value {
        let result = |result: &crate::StrategyResult| {
            json!({
                "name": result.name,
                "costs": value!(&result.costs),
                "run": value!(&result.run),
                "evaluation": value!(&result.evaluation),
                "file_bytes": result.file_bytes,
            })
        };
        json!({
            "strategies": self.results.iter().map(result).collect::<Vec<_>>(),
            "stopped": self.stopped,
        })
    }
}
