//! The forms of the figures, as snapshots, and that no text of a figure can become markup.

use serde_json::Value;
use tunebook_charts::{
    Bar, Cell, Figure, HeatMap, Line, LineChart, LossChart, LossPoint, Panel, ParetoChart,
    ParetoPoint, Sample, Table, bar_chart, histogram, line_chart, loss_curve,
};

fn run(steps: usize) -> Vec<LossPoint> {
    (1..=steps)
        .map(|step| {
            let t = step as f64 / steps as f64;
            let wobble = 0.15 * ((step * 7919 % 101) as f64 / 101.0 - 0.5);
            LossPoint {
                step,
                train: Some(0.6 + 2.4 * (-4.0 * t).exp() + wobble),
                validation: (step % (steps / 6).max(1) == 0)
                    .then(|| 0.9 + 2.2 * (-4.0 * t).exp() + 0.5 * t * t),
            }
        })
        .collect()
}

#[test]
fn a_loss_curve_in_all_its_forms() {
    let figure = loss_curve(&run(12));
    insta::assert_snapshot!("loss-svg", figure.svg());
    insta::assert_snapshot!("loss-text", figure.text());
    insta::assert_json_snapshot!("loss-plotly", figure.plotly());
    let bundle = figure.bundle();
    let types: Vec<&String> = bundle.data.keys().collect();
    assert_eq!(
        types,
        ["text/plain", "text/html", "application/vnd.plotly.v1+json", "image/svg+xml"]
    );
    assert!(bundle.get("application/vnd.plotly.v1+json").is_some_and(Value::is_object));
}

#[test]
fn a_long_run_is_smoothed_and_its_lowest_validation_loss_noted() {
    let figure = loss_curve(&run(6000));
    insta::assert_snapshot!(figure.text());
    assert!(figure.svg().contains("best"));
    let json = figure.plotly().to_string();
    assert!(json.len() < 100_000, "{} bytes", json.len());
    assert!(figure.svg().len() < 60_000, "{} bytes", figure.svg().len());
}

#[test]
fn runs_without_values_or_with_wild_ones_are_drawn_too() {
    for points in [
        vec![],
        vec![LossPoint { step: 1, train: Some(2.0), validation: None }],
        vec![LossPoint { step: 0, train: None, validation: Some(2.0) }],
        vec![LossPoint { step: 1, train: Some(f64::NAN), validation: Some(f64::INFINITY) }],
        vec![
            LossPoint { step: 1, train: Some(2.0), validation: None },
            LossPoint { step: 2, train: Some(f64::NAN), validation: None },
            LossPoint { step: 3, train: Some(1.0), validation: None },
        ],
    ] {
        let figure = loss_curve(&points);
        assert!(!figure.svg().contains("NaN") && !figure.svg().contains("inf"), "{points:?}");
        well_formed(figure.svg());
    }
    assert!(
        loss_curve(&[LossPoint { step: 1, train: Some(f64::NAN), validation: None }])
            .text()
            .contains("not finite")
    );
}

/// A run with its verdict, its gap and small multiples under it.
fn curves(steps: usize) -> Figure {
    let over = |get: &dyn Fn(f64) -> f64| -> Vec<(f64, f64)> {
        (1..=steps).map(|step| (step as f64, get(step as f64 / steps as f64))).collect()
    };
    let panel = |name: &str, get: &dyn Fn(f64) -> f64| Panel {
        y_label: name.to_owned(),
        lines: vec![Line::smoothed(name, over(get))],
    };
    let spike = |t: f64| if (0.5..0.5 + 1.0 / steps as f64).contains(&t) { 40.0 } else { 1.0 + t };
    let panels = [panel("gradient norm", &spike), panel("learning rate", &|t| 2e-4 * (1.0 - t))];
    let hover: Vec<(usize, String)> =
        (1..=steps).map(|step| (step, format!("rows {step}, 0"))).collect();
    LossChart {
        points: run(steps),
        verdict: "overfitting since step 8: validation loss 1.270 there, 1.440 now".to_owned(),
        gap: Some(0.8),
    }
    .with_panels(&panels, &hover)
}

#[test]
fn a_run_with_small_multiples_in_all_its_forms() {
    let figure = curves(12);
    well_formed(figure.svg());
    insta::assert_snapshot!("curves-text", figure.text());
    insta::assert_snapshot!("curves-svg", figure.svg());
    insta::assert_json_snapshot!("curves-plotly", figure.plotly());
}

/// All panels of a long run show the same steps, spikes included, with the rows of each.
#[test]
fn small_multiples_of_a_long_run_are_thinned_alike() {
    let figure = curves(20_000);
    let (json, svg) = (figure.plotly().to_string(), figure.svg());
    assert!(json.len() < 150_000, "{} bytes", json.len());
    assert!(svg.len() < 120_000, "{} bytes", svg.len());
    let traces = figure.plotly()["data"].as_array().unwrap();
    let raw: Vec<&Value> =
        traces.iter().filter(|trace| trace["opacity"] == serde_json::json!(0.3)).collect();
    assert_eq!(raw.len(), 3, "loss, gradient norm, learning rate");
    let steps = |trace: &Value| trace["x"].as_array().unwrap().clone();
    assert!(steps(raw[0]) == steps(raw[1]) && steps(raw[0]) == steps(raw[2]));
    assert!((300..=1000).contains(&steps(raw[0]).len()), "{}", steps(raw[0]).len());
    assert!(raw[1]["y"].as_array().unwrap().contains(&serde_json::json!(40.0)));
    let rows = raw[0]["hovertext"].as_array().unwrap();
    for (step, rows) in steps(raw[0]).iter().zip(rows) {
        assert_eq!(rows.as_str().unwrap(), format!("rows {}, 0", step.as_f64().unwrap()));
    }
}

/// The HTML form has a title for each strip of some pixels, none of which overlaps another.
#[test]
fn a_pointer_is_told_the_rows_of_a_step() {
    for (steps, most) in [(12, 12), (20_000, 160)] {
        let bundle = curves(steps).bundle();
        let html = bundle.get("text/html").and_then(Value::as_str).unwrap();
        let strips: Vec<&str> = html.split("<span title=\"").skip(1).collect();
        assert!((12..=most).contains(&strips.len()), "{} strips", strips.len());
        for strip in &strips {
            let step = strip.trim_start_matches("step ").split(':').next().unwrap();
            let rows = format!(", rows {}, 0\"", step.replace(',', ""));
            assert!(strip.contains(&rows), "{rows}: {strip}");
        }
        let share = |strip: &str, of: &str| -> f64 {
            strip.split(of).nth(1).unwrap().split('%').next().unwrap().parse().unwrap()
        };
        for pair in strips.windows(2) {
            let end = share(pair[0], "left:") + share(pair[0], "width:");
            assert!(end <= share(pair[1], "left:") + 0.02, "{pair:?}");
        }
        assert!(share(strips[strips.len() - 1], "left:") < 91.0);
    }
}

/// The first, second and fourth are on the frontier; the third is beaten by the second.
#[test]
fn a_pareto_chart_in_all_its_forms() {
    let point = |name: &str, x: f64, y: f64, half: f64| ParetoPoint {
        x_interval: Some((x - half, x + half)),
        y_interval: Some((y - half, y + half)),
        ..ParetoPoint::new(name, x, y)
    };
    let figure = ParetoChart {
        title: "accuracy against forgetting".to_owned(),
        x_label: "forgetting (nats a token)".to_owned(),
        y_label: "accuracy".to_owned(),
        points: vec![
            point("LoRA 5e-5", 0.01, 0.55, 0.01),
            point("LoRA 2e-4", 0.06, 0.74, 0.02),
            point("full 2e-4", 0.31, 0.73, 0.04),
            point("replay 20 %", 0.2, 0.76, 0.02),
        ],
        ..ParetoChart::default()
    }
    .figure();
    well_formed(figure.svg());
    insta::assert_snapshot!("pareto-text", figure.text());
    insta::assert_snapshot!("pareto-svg", figure.svg());
    insta::assert_json_snapshot!("pareto-plotly", figure.plotly());
}

#[test]
fn a_histogram_in_all_its_forms() {
    let lengths =
        |scale: f64| (0..400).map(move |i| (scale * (1.0 + (i * 37 % 100) as f64 / 10.0)).round());
    let figure = histogram(
        "Characters",
        "characters",
        &[Sample::new("prompt", lengths(9.0)), Sample::new("completion", lengths(30.0))],
    );
    insta::assert_snapshot!("histogram-text", figure.text());
    insta::assert_snapshot!("histogram-svg", figure.svg());
    insta::assert_json_snapshot!("histogram-plotly", figure.plotly());
}

#[test]
fn bars_in_all_their_forms() {
    let bars = [Bar::new("LoRA r = 8", 460_800.0), Bar::new("full", 134_515_008.0)];
    let figure = bar_chart("Trainable parameters", "parameters", &bars);
    insta::assert_snapshot!("bars-text", figure.text());
    insta::assert_snapshot!("bars-svg", figure.svg());
    insta::assert_json_snapshot!("bars-plotly", figure.plotly());
}

#[test]
fn a_heat_map_in_all_its_forms() {
    let figure = HeatMap {
        title: "Ranks".to_owned(),
        x_label: "block".to_owned(),
        value_label: "rank".to_owned(),
        columns: ["0", "1", "2"].map(str::to_owned).to_vec(),
        rows: ["q_proj", "v_proj"].map(str::to_owned).to_vec(),
        values: vec![vec![Some(0.0), Some(4.0), Some(12.0)], vec![Some(6.5), None]],
        range: (0.0, 12.0),
    }
    .figure();
    insta::assert_snapshot!("heatmap-text", figure.text());
    insta::assert_snapshot!("heatmap-svg", figure.svg());
    insta::assert_json_snapshot!("heatmap-plotly", figure.plotly());
}

/// A learning-rate range test: a logarithmic x axis, values behind the line, a note.
#[test]
fn a_logarithmic_line_in_all_its_forms() {
    let points = |wobble: f64| -> Vec<(f64, f64)> {
        (0..9)
            .map(|i| {
                let shown = if i % 2 == 0 { wobble } else { -wobble };
                let i = f64::from(i);
                (1e-5 * 10f64.powf(i / 2.0), 2.0 + 0.04 * (i - 5.0).powi(2) + shown)
            })
            .collect()
    };
    let figure = LineChart {
        title: "Learning-rate range test".to_owned(),
        x_label: "learning rate".to_owned(),
        y_label: "loss per token (nats)".to_owned(),
        lines: vec![Line {
            name: "training (smoothed)".to_owned(),
            points: points(0.0),
            behind: points(0.1),
            note: Some(((1e-3, 2.04), "falls fastest near 0.001".to_owned())),
            ..Line::default()
        }],
        log_x: true,
        ..LineChart::default()
    }
    .figure();
    insta::assert_snapshot!("log-text", figure.text());
    insta::assert_snapshot!("log-svg", figure.svg());
    insta::assert_json_snapshot!("log-plotly", figure.plotly());
}

/// Ticks between whole numbers would be steps that nobody took.
#[test]
fn ticks_are_whole_where_all_x_are() {
    let line = |step: f64| Line::new("loss", (1..4).map(|i| (f64::from(i) * step, 2.0)));
    let svg = |lines: &[Line]| line_chart("t", "step", "loss", lines).svg().to_owned();
    assert!(!svg(&[line(1.0)]).contains(">1.5<"));
    assert!(svg(&[line(1.0), line(0.5)]).contains(">1.5<"));
    let plotly = |lines: &[Line]| line_chart("t", "step", "loss", lines).plotly().clone();
    assert_eq!(plotly(&[line(1.0)])["layout"]["xaxis"]["dtick"], 1.0);
    for lines in [&[line(1.0), line(0.5)][..], &[line(100.0)]] {
        assert!(plotly(lines)["layout"]["xaxis"]["dtick"].is_null());
    }
}

/// Plotly shows entities that it does not know, such as `&quot;`, as they are.
#[test]
fn quotes_are_quotes_in_plotly() {
    let figure = bar_chart("t", "share", &[Bar::new("\" the\" & 'a'", 1.0)]);
    assert_eq!(figure.plotly()["data"][0]["y"][0], "\" the\" &amp; 'a'");
}

/// The value at a line's end stands to the right of it.
#[test]
fn a_note_at_the_end_of_a_line_stands_to_its_left() {
    for (x, side) in [(1.0, "left"), (9.0, "right")] {
        let mut line = Line::new("loss", (0..10).map(|i| (f64::from(i), 2.0)));
        line.note = Some(((x, 2.0), "best".to_owned()));
        let figure = line_chart("t", "step", "loss", &[line]);
        let notes = figure.plotly()["layout"]["annotations"].as_array().unwrap().clone();
        let note = notes.iter().find(|note| note["text"] == "best").unwrap();
        assert_eq!(note["xanchor"], side);
    }
}

const EVIL: &str = "<script>alert(\"1\")</script><img src=x onerror='alert(2)'>&\u{0}";

/// Every `<` of a document starts one of the elements that we write.
fn well_formed(svg: &str) {
    for (at, _) in svg.match_indices('<') {
        let rest = &svg[at + 1..];
        let ours = [
            "svg ",
            "/svg>",
            "title>",
            "/title>",
            "style>",
            "/style>",
            "rect ",
            "line ",
            "polyline ",
            "circle ",
            "text ",
            "/text>",
        ];
        assert!(ours.iter().any(|tag| rest.starts_with(tag)), "…<{}", &rest[..rest.len().min(40)]);
    }
    assert!(!svg.contains('\u{0}'));
}

#[test]
fn names_from_data_stay_text_in_every_form() {
    let figures: Vec<Figure> = vec![
        histogram(EVIL, EVIL, &[Sample::new(EVIL, [1.0, 2.0, 3.0])]),
        bar_chart(EVIL, EVIL, &[Bar::new(EVIL, 1.0)]),
        line_chart(EVIL, EVIL, EVIL, &[Line::over_steps(EVIL, [1.0, 2.0])]),
        ParetoChart {
            title: EVIL.to_owned(),
            x_label: EVIL.to_owned(),
            y_label: EVIL.to_owned(),
            points: vec![ParetoPoint::new(EVIL, 1.0, 2.0)],
            ..ParetoChart::default()
        }
        .figure(),
        LossChart { points: run(30), verdict: EVIL.to_owned(), gap: Some(0.1) }.with_panels(
            &[Panel { y_label: EVIL.to_owned(), lines: vec![Line::over_steps(EVIL, [1.0, 2.0])] }],
            &(1..=30).map(|step| (step, EVIL.to_owned())).collect::<Vec<_>>(),
        ),
    ];
    for figure in figures {
        well_formed(figure.svg());
        let bundle = figure.bundle();
        let html = bundle.get("text/html").and_then(Value::as_str).unwrap_or_default();
        let ours = ["<img ", "<div ", "</div>", "<span ", "</span>"];
        let tags = ours.iter().map(|tag| html.matches(tag).count()).sum::<usize>();
        assert_eq!(html.matches('<').count(), tags, "{html}");
        assert_eq!(html.matches("<img ").count(), 1, "{html}");
        assert!(!figure.plotly().to_string().contains("<script"));
    }
    let mut table = Table::new([EVIL]).caption(EVIL).note(EVIL);
    table.row([Cell::from(EVIL)]);
    table.row([Cell::Right(EVIL.into())]);
    table.row([Cell::Diff(EVIL.into(), "x".into())]);
    let html = table.html();
    assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
}

#[test]
fn a_table_and_its_twin() {
    let mut table = Table::new(["step", "changed", "example"])
        .caption("What was cleaned")
        .note("2 rows in all");
    table.row([
        Cell::from("strip_html"),
        Cell::from(1234usize),
        Cell::Diff("<b>Hi</b>".into(), "Hi".into()),
    ]);
    table.row([Cell::from("drop_empty"), Cell::from(0.25), Cell::from("a long text ".repeat(12))]);
    table.row([Cell::from("short row")]);
    insta::assert_snapshot!("table-text", table.text());
    insta::assert_snapshot!("table-html", table.html());
}
