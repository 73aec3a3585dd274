//! The rich forms of values: HTML with a plain-text twin. Every string that comes from data is
//! escaped by the tables that hold it.

mod data;
mod evaluation;
mod frame;
mod model;
mod tensor;

use polars::prelude::{DataFrame, Series};
use tunebook_charts::{Figure, Table};
use tunebook_data::{Audit, CleanReport, Dataset, Profile, Splits, WithoutOverlap};
use tunebook_evaluate::{Comparison, Diagnosis, Evaluation, Extraction, Forgetting};
use tunebook_models::{Model, Tensor};
use tunebook_progress::MimeBundle;
use tunebook_serve::Server;
use tunebook_tune::{AdapterInfo, FullInfo, LrRange, Preflight, Run, TrainingSummary};

use crate::history::LrCurve as _;
use crate::show::{Value, without_lifetimes};
use crate::summary::{self, Summary as _};

without_lifetimes!(
    MimeBundle,
    Figure,
    Table,
    DataFrame,
    Series,
    Tensor,
    Dataset,
    CleanReport,
    Splits,
    crate::Seen,
    Profile,
    Audit,
    WithoutOverlap,
    Model,
    AdapterInfo,
    Vec<AdapterInfo>,
    LrRange,
    Preflight,
    TrainingSummary,
    FullInfo,
    Run,
    Evaluation,
    Comparison,
    Diagnosis,
    Server,
    Forgetting,
    Extraction,
    crate::StrategyComparison,
    crate::Report,
);

/// The rich form of a value, if it has one.
pub(crate) fn view(value: &Value<'_>) -> Option<MimeBundle> {
    if let Some(bundle) = value.as_ref::<MimeBundle>() {
        Some(bundle.clone())
    } else if let Some(figure) = value.as_ref::<Figure>() {
        Some(figure.bundle())
    } else if let Some(table) = value.as_ref::<Table>() {
        Some(table.bundle())
    } else if let Some(frame) = value.as_ref::<DataFrame>() {
        Some(frame::bundle(frame))
    } else if let Some(series) = value.as_ref::<Series>() {
        Some(frame::bundle(&series.clone().into_frame()))
    } else if let Some(tensor) = value.as_ref::<Tensor>() {
        Some(tensor::bundle(tensor))
    } else if let Some(dataset) = value.as_ref::<Dataset>() {
        Some(data::dataset(dataset))
    } else if let Some(report) = value.as_ref::<CleanReport>() {
        Some(data::report(report))
    } else if let Some(splits) = value.as_ref::<Splits>() {
        Some(data::splits(splits))
    } else if let Some(seen) = value.as_ref::<crate::Seen>() {
        Some(MimeBundle::text(seen.to_string()).html(seen.html()))
    } else if let Some(profile) = value.as_ref::<Profile>() {
        Some(data::profile(profile))
    } else if let Some(audit) = value.as_ref::<Audit>() {
        Some(data::audit(audit))
    } else if let Some(found) = value.as_ref::<WithoutOverlap>() {
        Some(data::without_overlap(found))
    } else if let Some(model) = value.as_ref::<Model>() {
        Some(MimeBundle::text(format!("{model:?}")).html(model.summary().html()))
    } else if let Some(diagnosis) = value.as_ref::<Diagnosis>() {
        Some(MimeBundle::text(diagnosis.to_string()))
    } else if let Some(forgetting) = value.as_ref::<Forgetting>() {
        Some(MimeBundle::text(forgetting.to_string()))
    } else if let Some(extraction) = value.as_ref::<Extraction>() {
        Some(MimeBundle::text(extraction.to_string()))
    } else if let Some(info) = value.as_ref::<AdapterInfo>() {
        Some(MimeBundle::text(info.to_string()).html(summary::adapter(info).html()))
    } else if let Some(adapters) = value.as_ref::<Vec<AdapterInfo>>() {
        Some(model::adapters(adapters))
    } else if let Some(found) = value.as_ref::<Evaluation>() {
        Some(evaluation::evaluation(found))
    } else if let Some(found) = value.as_ref::<Comparison>() {
        Some(evaluation::comparison(found))
    } else if let Some(found) = value.as_ref::<crate::StrategyComparison>() {
        Some(evaluation::strategies(found))
    } else if let Some(report) = value.as_ref::<crate::Report>() {
        Some(report.bundle())
    } else if let Some(range) = value.as_ref::<LrRange>() {
        Some(range.curve().bundle())
    } else if let Some(preflight) = value.as_ref::<Preflight>() {
        Some(MimeBundle::text(preflight.to_string()).html(model::preflight(preflight).html()))
    } else if let Some(summary) = value.as_ref::<TrainingSummary>() {
        Some(MimeBundle::text(summary.to_string()).html(model::training(summary).html()))
    } else if let Some(server) = value.as_ref::<Server>() {
        Some(crate::live_server::bundle(&server.status()))
    } else if let Some(info) = value.as_ref::<FullInfo>() {
        Some(MimeBundle::text(info.to_string()))
    } else {
        value.as_ref::<Run>().map(model::run)
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::*;
    use serde_json::Value as Json;
    use tunebook_charts::{LossPoint, loss_curve};
    use tunebook_data::{Cleaning, Dataset, Splits};
    use tunebook_models::{Device, Tensor};

    use crate::show::tests::shown;

    const EVIL: &str = "<script>alert(\"1\")</script><img src=x onerror=alert(2)>";

    fn html(bundle: &tunebook_progress::MimeBundle) -> &str {
        bundle.get("text/html").and_then(Json::as_str).unwrap_or_default()
    }

    /// Rows of a data set reach the page as text, whichever way they are shown.
    #[test]
    fn markup_in_the_data_stays_text() {
        let dataset = Dataset::from_rows(&[(EVIL, EVIL), (EVIL, "x"), ("x", EVIL), ("", EVIL)]);
        let clean = dataset
            .clean(&Cleaning::default().strip_backticks().drop_empty().drop_duplicates())
            .expect("cleaned");
        let splits = Splits::new(dataset.clone(), dataset.clone());
        let audit = splits.audit().expect("audited");
        let bundles = [
            shown(&dataset),
            shown(&dataset.frame()),
            shown(&Series::new(EVIL.into(), [EVIL])),
            shown(&clean.report()),
            shown(&clean.dropped()),
            shown(&splits),
            shown(&audit),
            shown(&dataset.without_overlap(&dataset).expect("searched")),
            shown(&dataset.profile()),
        ];
        for bundle in &bundles {
            let html = html(bundle);
            assert!(html.contains("<table"), "{html}");
            assert!(!html.contains("<script") && !html.contains("<img src=x"), "{html}");
            assert!(!bundle.plain().is_empty());
        }
        assert!(html(&bundles[0]).contains("&lt;script&gt;"));
    }

    #[test]
    fn a_data_set_shows_which_rows_and_columns_are_used() {
        let frame = df!["text" => ["a", "b"], "label" => ["x", "y"]].expect("a frame");
        let dataset = Dataset::from_frame_with(frame, &Default::default()).expect("texts");
        let bundle = shown(&dataset);
        for said in ["2 used as text", "not used: column label", "to train it as the answer"] {
            assert!(html(&bundle).contains(said), "{said}: {}", html(&bundle));
        }
    }

    #[test]
    fn a_cleaning_shows_its_changes() {
        let raw = Dataset::from_rows(&[("<b>Hi</b>", "Hello"), ("Hi", "Hello"), ("Bye", "")]);
        let report = raw.clean(&Cleaning::standard()).expect("cleaned").report();
        let bundle = shown(&report);
        assert!(html(&bundle).contains("&lt;b&gt;</del>Hi<del"), "{}", html(&bundle));
        assert!(html(&bundle).contains("the same as row 0"));
    }

    #[test]
    fn long_and_wide_frames_are_cut() {
        let long = df!["n" => (0..1000).collect::<Vec<i32>>()].expect("a frame");
        let bundle = shown(&long);
        let shown_html = html(&bundle);
        assert!(
            shown_html.contains("1000 rows × 1 columns")
                && shown_html.contains(">999<")
                && !shown_html.contains(">500<")
        );
        let columns = (0..100).map(|i| Column::new(format!("c{i}").into(), [i])).collect();
        let wide = shown(&DataFrame::new(1, columns).expect("a frame"));
        assert!(html(&wide).contains("76 more columns"));
        assert!(html(&shown(&DataFrame::empty())).contains("0 rows"));
    }

    #[test]
    fn tensors_show_shape_statistics_and_a_histogram() {
        let tensor = Tensor::arange(0f32, 1000., &Device::Cpu)
            .and_then(|t| t.reshape((10, 100)))
            .expect("a tensor");
        let bundle = shown(&tensor);
        let page = html(&bundle);
        assert!(
            page.contains("[10, 100], F32") && page.contains("0 … 999") && page.contains("<img"),
            "{page}"
        );
        for tensor in [
            Tensor::new(&[1u32, 2], &Device::Cpu),
            Tensor::new(1f64, &Device::Cpu),
            Tensor::zeros((0, 3), tunebook_models::DType::F32, &Device::Cpu),
            Tensor::new(&[f32::NAN, f32::INFINITY], &Device::Cpu),
            Tensor::zeros((500, 500), tunebook_models::DType::BF16, &Device::Cpu),
        ] {
            let bundle = shown(&tensor.expect("a tensor"));
            assert!(html(&bundle).contains("elements"), "{bundle:?}");
        }
    }

    #[test]
    fn figures_keep_all_their_forms() {
        let figure = loss_curve(&[LossPoint { step: 1, train: Some(1.0), validation: None }]);
        let bundle = shown(&figure);
        assert!(bundle.get("application/vnd.plotly.v1+json").is_some_and(Json::is_object));
        assert!(bundle.get("image/svg+xml").is_some());
    }
}
