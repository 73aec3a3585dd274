//! Writes every kind of figure into one HTML page, to be looked at: `cargo run -p tunebook-charts
//! --example gallery -- FILE`.

use tunebook_charts::{
    Bar, Cell, HeatMap, Line, LineChart, LossPoint, Sample, Table, bar_chart, histogram,
    line_chart, loss_curve,
};

fn run(steps: usize, overfit: f64) -> Vec<LossPoint> {
    (1..=steps)
        .map(|step| {
            let t = step as f64 / steps as f64;
            let wobble = 0.5 * ((step * 7919 % 101) as f64 / 101.0 - 0.5);
            LossPoint {
                step,
                train: Some(0.9 + 2.4 * (-5.0 * t).exp() + wobble),
                validation: (step % (steps / 6).max(1) == 0 || step == 1)
                    .then(|| 1.1 + 2.2 * (-5.0 * t).exp() + overfit * t * t),
            }
        })
        .collect()
}

/// The loss at the i-th learning rate of a range test.
fn range_test(i: i32) -> (f64, f64) {
    (1e-5 * 10f64.powf(f64::from(i) / 2.0), 2.0 + 0.04 * (f64::from(i) - 5.0).powi(2))
}

/// What single batches are off their mean.
fn wobble(i: i32) -> f64 {
    if i % 2 == 0 { 0.1 } else { -0.1 }
}

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "gallery.html".into());
    let lengths = |scale: f64| {
        (0..600).map(move |i| (scale * (0.3 + ((i * 37 % 100) as f64 / 40.0).powi(2))).round())
    };
    let mut table = Table::new(["step", "changed", "dropped", "example"])
        .caption("430 rows before, 391 after")
        .note("see dropped()");
    table.row([
        Cell::from("strip_html"),
        38usize.into(),
        0usize.into(),
        Cell::Diff("<p>Where is my <b>parcel</b>?</p>".into(), "Where is my parcel?".into()),
    ]);
    table.row([
        Cell::from("normalize_whitespace"),
        12usize.into(),
        0usize.into(),
        Cell::Diff("on  its way ".into(), "on its way".into()),
    ]);
    table.row([
        Cell::from("drop_duplicates"),
        0usize.into(),
        39usize.into(),
        Cell::from("the same words as row 17"),
    ]);
    let figures = [
        loss_curve(&run(120, 0.0)),
        loss_curve(&run(2000, 0.9)),
        loss_curve(&run(12, 0.0)),
        histogram(
            "Characters",
            "characters",
            &[Sample::new("prompt", lengths(40.0)), Sample::new("completion", lengths(110.0))],
        ),
        line_chart(
            "Three learning rates",
            "step",
            "loss per token (nats)",
            &[1e-5, 1e-3, 1e-1].map(|rate: f64| {
                let loss =
                    move |step: i32| 3.0 - 0.4 * (rate * 1e4).ln_1p() * f64::from(step) / 8.0;
                Line::over_steps(format!("learning rate {rate:e}"), (0..8).map(loss)).marked()
            }),
        ),
        LineChart {
            title: "Learning-rate range test".into(),
            x_label: "learning rate".into(),
            y_label: "loss per token (nats)".into(),
            lines: vec![Line {
                note: Some((range_test(5), "lowest near 0.003".into())),
                behind: (0..9).map(|i| (range_test(i).0, range_test(i).1 + wobble(i))).collect(),
                ..Line::new("training (smoothed)", (0..9).map(range_test))
            }],
            log_x: true,
            ..LineChart::default()
        }
        .figure(),
        HeatMap {
            title: "Ranks after step 60".into(),
            x_label: "block".into(),
            value_label: "rank".into(),
            columns: (0..12).map(|block| block.to_string()).collect(),
            rows: ["q_proj", "v_proj", "o_proj", "down_proj"].map(String::from).to_vec(),
            values: (0..4)
                .map(|row| {
                    (0..12).map(|block| Some(f64::from((row * 5 + block * 7) % 9))).collect()
                })
                .collect(),
            range: (0.0, 8.0),
        }
        .figure(),
        bar_chart(
            "Trainable parameters",
            "parameters",
            &[
                Bar::new("LoRA r = 8", 460_800.0),
                Bar::new("bottleneck adapter", 2_654_208.0),
                Bar::new("full", 134_515_008.0),
            ],
        ),
    ];
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><body style='font-family:sans-serif;background:#ddd'>\n",
    );
    for figure in &figures {
        let bundle = figure.bundle();
        page.push_str(bundle.get("text/html").and_then(|html| html.as_str()).unwrap_or_default());
        page.push_str("<br><br>\n");
    }
    page.push_str(&format!("<div style='background:#fff'>{}</div>", table.html()));
    std::fs::write(path, page)
}
