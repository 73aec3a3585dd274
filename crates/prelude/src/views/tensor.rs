//! A tensor: shape, type and device, what its values are like, and a few of them.

use candle_core::{DType, Device, Result, Tensor};
use tunebook_charts::{Cell, Sample, Table, format_number, histogram};
use tunebook_progress::MimeBundle;

/// Of a larger tensor this many values, evenly spread, are looked at.
const VALUES: usize = 100_000;
/// From this many values on, their histogram is drawn.
const HISTOGRAM_FROM: usize = 64;
/// Values written out in the preview.
const PREVIEW: usize = 8;

pub(super) fn bundle(tensor: &Tensor) -> MimeBundle {
    let text = text(tensor);
    match values(tensor) {
        Ok(values) => MimeBundle::text(text).html(html(tensor, &values)),
        // Not readable as numbers: the text says what there is to say.
        Err(_) => MimeBundle::text(text),
    }
}

fn head(tensor: &Tensor) -> String {
    format!("Tensor {:?}, {:?} on {:?}", tensor.dims(), tensor.dtype(), tensor.device().location())
}

fn text(tensor: &Tensor) -> String {
    // candle's own form abbreviates large tensors; it computes on the tensor's device, so small
    // ones only.
    match tensor.elem_count() {
        0..=10_000 => format!("{tensor}"),
        _ => head(tensor),
    }
}

/// Evenly spread values as f64.
fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let count = tensor.elem_count();
    let flat = tensor.detach().flatten_all()?;
    let flat = if count > VALUES {
        let stride = count.div_ceil(VALUES);
        let rows = count / stride;
        // [count] -> [rows, stride] -> the first of each row
        flat.narrow(0, 0, rows * stride)?.reshape((rows, stride))?.narrow(1, 0, 1)?.flatten_all()?
    } else {
        flat
    };
    flat.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()
}

fn html(tensor: &Tensor, values: &[f64]) -> String {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let n = finite.len().max(1) as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let deviation = (finite.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
    let mut table = Table::new(["", "value"]).caption(head(tensor));
    let mut line = |name: &str, value: String| table.row([Cell::from(name), Cell::Right(value)]);
    line("elements", format_number(tensor.elem_count() as f64));
    line(
        "memory",
        format!(
            "{} bytes",
            format_number((tensor.elem_count() * tensor.dtype().size_in_bytes()) as f64)
        ),
    );
    if !finite.is_empty() {
        let min = finite.iter().copied().fold(f64::INFINITY, f64::min);
        let max = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        line("min … max", format!("{} … {}", format_number(min), format_number(max)));
        line("mean ± deviation", format!("{} ± {}", format_number(mean), format_number(deviation)));
    }
    if finite.len() < values.len() {
        line("not finite", format_number((values.len() - finite.len()) as f64));
    }
    let preview: Vec<String> =
        values.iter().take(PREVIEW).map(|value| format_number(*value)).collect();
    let more = if values.len() > PREVIEW { ", …" } else { "" };
    line("first values", format!("{}{more}", preview.join(", ")));
    if tensor.elem_count() > values.len() {
        table = table.note(format!(
            "statistics of {} evenly spread values",
            format_number(values.len() as f64)
        ));
    }
    let mut html = table.html();
    if finite.len() >= HISTOGRAM_FROM {
        let figure = histogram("Values", "value", &[Sample::new("values", finite)]);
        html.push_str(
            figure.bundle().get("text/html").and_then(|image| image.as_str()).unwrap_or_default(),
        );
    }
    html
}
