//! Charts and tables: plain records in, a [`MimeBundle`](tunebook_progress::MimeBundle) out that
//! shows everywhere.
//!
//! Each [`Figure`] carries four forms of the same picture: plotly's JSON for JupyterLab and VS Code
//! (hover, zoom), an HTML form and an SVG drawn here, which need no network and no script, and a
//! line of text for a terminal. Every string that comes from data is escaped.
//!
//! ```
//! use tunebook_charts::{LossPoint, loss_curve};
//!
//! let points: Vec<LossPoint> = (1..=100)
//!     .map(|step| LossPoint {
//!         step,
//!         train: Some(3.0 / (step as f64).sqrt()),
//!         validation: (step % 25 == 0).then(|| 3.2 / (step as f64).sqrt()),
//!     })
//!     .collect();
//! let figure = loss_curve(&points);
//! assert!(figure.svg().starts_with("<svg"));
//! assert!(figure.bundle().get("application/vnd.plotly.v1+json").is_some());
//! ```

mod axis;
mod bars;
mod diff;
mod figure;
mod heatmap;
mod histogram;
mod lines;
mod loss;
mod palette;
mod panels;
mod pareto;
mod svg;
mod table;

pub use axis::number as format_number;
pub use bars::{Bar, bar_chart};
pub use diff::{diff_html, diff_text};
pub use figure::{Figure, write_whole};
pub use heatmap::HeatMap;
pub use histogram::{Sample, histogram};
pub use lines::{Gap, Line, LineChart, line_chart};
pub use loss::{LossChart, LossPoint, loss_curve};
pub use panels::{Panel, Panels};
pub use pareto::{ParetoChart, ParetoPoint};
pub use table::{Cell, Table};
