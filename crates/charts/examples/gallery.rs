//! Writes every kind of figure into one HTML page, to be looked at: `cargo run -p tunebook-charts
//! --example gallery -- FILE [PLOTLY_JS]`. With a file of plotly.js the figures are drawn by it, else
//! their HTML forms are shown. The page is dark in a browser that asks for dark pages.

use tunebook_charts::{
    Bar, Cell, Figure, HeatMap, Line, LineChart, LossChart, LossPoint, Panel, ParetoChart,
    ParetoPoint, Sample, Table, bar_chart, histogram, line_chart, loss_curve,
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

/// A long run that overfits, with small multiples.
fn curves() -> Figure {
    let points = run(2000, 0.9);
    let over = |get: &dyn Fn(f64) -> f64| -> Vec<(f64, f64)> {
        (1..=2000).map(|step| (f64::from(step), get(f64::from(step) / 2000.0))).collect()
    };
    let panel = |name: &str, line: Line| Panel { y_label: name.into(), lines: vec![line] };
    let noise = |t: f64| ((t * 2000.0 * 7919.0) as i64 % 101) as f64 / 101.0;
    let panels = [
        panel("gradient norm", Line::smoothed("", over(&|t| 0.4 + (-6.0 * t).exp() + noise(t)))),
        panel("learning rate", Line::new("", over(&|t| 2e-4 * (1.0 - t).min(20.0 * t)))),
        panel("tokens/s", Line::smoothed("", over(&|t| 2200.0 + 300.0 * noise(t)))),
        panel("memory (GB)", Line::new("", over(&|t| 1.21 + 0.02 * (40.0 * t).min(1.0)))),
    ];
    let rows =
        |step: usize| format!("learning rate 2.0e-4, rows {}, {}, 17, 230", step % 97, step % 89);
    let hover: Vec<(usize, String)> = (1..=2000).map(|step| (step, rows(step))).collect();
    let verdict = "overfitting since step 1000: validation loss 1.340 there, 2.010 now; early stopping would have \
                   kept step 1000";
    LossChart { points, verdict: verdict.into(), gap: Some(1.05) }.with_panels(&panels, &hover)
}

/// Four runs over each other.
fn overlay() -> Figure {
    let line = |(i, name): (usize, &str)| {
        let points = run(400, 0.3 * i as f64);
        let shift = 0.12 * i as f64;
        let of = |get: &dyn Fn(&LossPoint) -> Option<f64>| -> Vec<(f64, f64)> {
            points.iter().filter_map(|p| Some((p.step as f64, get(p)? + shift))).collect()
        };
        let validation = of(&|point| point.validation);
        let best = validation.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        Line {
            dashed: Line::smoothed("", of(&|point| point.train)).points,
            note: best.map(|best| (best, String::new())),
            ..Line::new(format!("{name} (best 1.34 at step 264)"), validation).marked()
        }
    };
    let names = ["LoRA r = 8, 2e-4", "LoRA r = 8, 5e-5", "IA3 5e-3", "full fine-tuning 2e-5"];
    LineChart {
        title: "Loss of several runs".into(),
        subtitle: "marks: validation, the best step ringed; dashed: training (smoothed)".into(),
        x_label: "step".into(),
        y_label: "loss per token (nats)".into(),
        lines: names.into_iter().enumerate().map(line).collect(),
        whole_x: true,
        ..LineChart::default()
    }
    .figure()
}

fn pareto() -> Figure {
    let point = |(i, name): (usize, &str)| {
        let t = i as f64 / 7.0;
        let (x, y) = (0.01 + 0.4 * t * t, 0.5 + 0.3 * (t * 1.4).sin());
        ParetoPoint {
            x_interval: Some((x - 0.015, x + 0.02)),
            y_interval: Some((y - 0.03, y + 0.03)),
            ..ParetoPoint::new(name, x, y)
        }
    };
    let names = [
        "LoRA 5e-5, step 100",
        "LoRA 5e-5, step 200",
        "LoRA 5e-5, step 300",
        "LoRA 2e-4, step 100",
        "LoRA 2e-4, step 200",
        "replay of 20 %",
        "full 2e-5",
        "full 2e-4",
    ];
    ParetoChart {
        title: "accuracy against forgetting".into(),
        x_label: "forgetting (nats a token)".into(),
        y_label: "accuracy".into(),
        points: names.into_iter().enumerate().map(point).collect(),
        ..ParetoChart::default()
    }
    .figure()
}

fn main() -> std::io::Result<()> {
    let script = std::env::args().nth(2);
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
        curves(),
        LossChart {
            points: run(120, 0.0),
            verdict: "learning; lowest validation loss 1.115 at step 120".into(),
            gap: Some(0.21),
        }
        .figure(),
        overlay(),
        pareto(),
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
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'><style>\
         body{font-family:sans-serif;background:#fff;color:#222}\
         @media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}</style><body>\n",
    );
    if let Some(script) = &script {
        page.push_str(&format!("<script src='{script}'></script>\n"));
    }
    for (at, figure) in figures.iter().enumerate() {
        if script.is_some() {
            let json = figure.plotly().to_string().replace("</", "<\\/");
            page.push_str(&format!(
                "<div id=f{at}></div><script>{{const f={json};\
                 Plotly.newPlot('f{at}',f.data,f.layout,{{...f.config,responsive:true}})}}</script>\n"
            ));
            continue;
        }
        let bundle = figure.bundle();
        page.push_str(bundle.get("text/html").and_then(|html| html.as_str()).unwrap_or_default());
        page.push_str("<br><br>\n");
    }
    page.push_str(&table.html());
    std::fs::write(path, page)
}
