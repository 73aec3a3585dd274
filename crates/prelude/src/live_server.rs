//! What a cell shows of a server: a strip with its requests, speed and adapters, which goes on while
//! other cells run, and stays as it was when the server ends.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tunebook_charts::{Cell, Table};
use tunebook_progress::sink::Place;
use tunebook_progress::{Display, MimeBundle, display, escape_html, result};
use tunebook_serve::{Server, ServerState, ServerStatus, WeakServer};

/// The pause between two redraws.
const PAUSE: Duration = Duration::from_secs(1);
/// And where nothing but the clock has changed.
const IDLE_PAUSE: Duration = Duration::from_secs(10);

/// Shows a server as the value of a cell. Our kernel replaces the output until the server ends;
/// elsewhere it stays as it is now.
pub(crate) fn show(server: &Server) {
    let now = bundle(&server.status());
    match Place::current() {
        Place::Channel { .. } => {
            let (shown, server) = (display(now), server.downgrade());
            // Without a thread the strip stays as it is.
            let _ = std::thread::Builder::new()
                .name("tunebook-strip".to_owned())
                .spawn(move || follow(&shown, &server));
        }
        Place::Stock | Place::Terminal { .. } => result(now),
    }
}

/// Replaces the output until the server has stopped or nobody holds it any more.
fn follow(shown: &Display, server: &WeakServer) {
    let mut last = server.upgrade().map(|server| server.status());
    let mut drawn = Instant::now();
    loop {
        std::thread::sleep(PAUSE);
        let now = server.upgrade().map(|server| server.status());
        match (now, last.as_mut()) {
            (Some(now), _) if now.state == ServerState::Stopped => {
                return shown.update(bundle(&now));
            }
            (Some(now), Some(last)) => {
                if !is_idle(last, &now) || drawn.elapsed() >= IDLE_PAUSE {
                    shown.update(bundle(&now));
                    (*last, drawn) = (now, Instant::now());
                }
            }
            (None, Some(last)) => {
                // What was on its way was broken off with the last handle.
                last.state = ServerState::Stopped;
                for model in &mut last.models {
                    (model.waiting, model.on_their_way) = (0, 0);
                }
                return shown.update(bundle(last));
            }
            (_, None) => return,
        }
    }
}

/// Whether two states differ in the time alone.
fn is_idle(before: &ServerStatus, now: &ServerStatus) -> bool {
    let mut before = before.clone();
    before.uptime = now.uptime;
    before == *now
}

/// The strip in both forms.
pub(crate) fn bundle(status: &ServerStatus) -> MimeBundle {
    let head = head(status);
    let (state, color) = match status.state {
        ServerState::Serving => ("serving", "#2e9e5b"),
        ServerState::Stopping => ("stopping", "#d98a1f"),
        ServerState::Stopped => ("stopped", "#888"),
    };
    // No color is set but for the dot's, so that text is read on light and dark pages.
    let mut html = format!(
        "<div style=\"border:1px solid rgba(128,128,128,.45);border-radius:6px;padding:6px 10px;max-width:60em\">\
         <div style=\"display:flex;flex-wrap:wrap;gap:2px 14px;font-variant-numeric:tabular-nums\">\
         <span><span style=\"color:{color}\">●</span> <b>{state}</b> {}</span>",
        escape_html(&status.url)
    );
    for part in &head {
        let _ = write!(html, "<span>{}</span>", escape_html(part));
    }
    let table = models(status);
    let _ = write!(html, "</div>{}</div>", table.html());
    let text = format!("{state} {} · {}\n{}", status.url, head.join(" · "), table.text());
    MimeBundle::text(text).html(html)
}

fn head(status: &ServerStatus) -> Vec<String> {
    let mut parts = Vec::new();
    let has_ended = status.state == ServerState::Stopped;
    if !has_ended {
        parts.push(format!("{} on their way", status.on_their_way));
        parts.push(format!("{} waiting", status.waiting));
        let taken = status.on_their_way + status.waiting;
        parts.push(format!("queue {taken}/{}", status.room));
        parts.push(format!("{:.1} tokens/s", status.tokens_per_s));
    }
    parts.push(format!("{} tokens", status.tokens));
    if status.refused > 0 {
        parts.push(format!("{} refused", status.refused));
    }
    let word = if has_ended { "was up" } else { "up" };
    parts.push(format!("{word} {}", clock(status.uptime)));
    parts
}

fn models(status: &ServerStatus) -> Table {
    // What changes comes first: a narrow page shows the first columns.
    let columns =
        ["model", "on their way", "waiting", "answered", "tokens", "generation", "adapter", "MB"];
    let mut table = Table::new(columns);
    for model in &status.models {
        let number = |number: u64| Cell::Right(number.to_string());
        let size = match model.size_bytes {
            0 => String::new(),
            bytes => format!("{:.1}", bytes as f64 / 1e6),
        };
        let generation = model.generation.as_deref().unwrap_or_default();
        table.row([
            Cell::from(model.name.as_str()),
            number(model.on_their_way),
            number(model.waiting),
            number(model.answered),
            number(model.tokens),
            Cell::from(generation.get(..8).unwrap_or(generation)),
            Cell::from(model.adapter.as_str()),
            Cell::Right(size),
        ]);
    }
    table
}

/// `12 s`, `3 min 05 s`, `2 h 07 min`
fn clock(time: Duration) -> String {
    let secs = time.as_secs();
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, secs) => format!("{secs} s"),
        (0, minutes, secs) => format!("{minutes} min {secs:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tunebook_models::{Device, Model};
    use tunebook_serve::Serve as _;

    use super::*;
    use crate::show::tests::shown;

    #[test]
    fn a_server_is_shown_with_its_adapters_and_as_it_ended() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let model = Model::load(golden.join("lora_tiny/model"), &Device::Cpu).expect("a model");
        let server = model.serve("127.0.0.1:0").expect("a server");
        let folder = golden.join("weighted/one");
        let generation = server.swap("support", folder.as_path()).expect("an adapter");
        let now = shown(&server);
        let html = now.get("text/html").and_then(|html| html.as_str()).unwrap_or_default();
        for text in [html, now.plain()] {
            assert!(text.contains("0.0 tokens/s") && !text.contains("-0.0"), "{text}");
            for part in [&server.url(), "serving", "support", &generation[..8], "LoRA", "waiting"] {
                assert!(text.contains(part), "{part} is not in\n{text}");
            }
        }
        server.stop();
        let after = shown(&server);
        let line = after.plain().lines().next().unwrap_or_default().to_owned();
        assert!(line.starts_with("stopped") && line.contains("was up 0 s"), "{line}");
    }

    #[test]
    fn the_clock_alone_is_no_change() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let model = Model::load(golden.join("lora_tiny/model"), &Device::Cpu).expect("a model");
        let server = model.serve("127.0.0.1:0").expect("a server");
        let before = server.status();
        assert!(is_idle(&before, &server.status()));
        server.swap("a", golden.join("weighted/one")).expect("an adapter");
        assert!(!is_idle(&before, &server.status()));
    }

    #[test]
    fn times_have_their_units() {
        let clock = |secs| clock(Duration::from_secs(secs));
        assert_eq!([clock(5), clock(185), clock(7623)], ["5 s", "3 min 05 s", "2 h 07 min"]);
    }
}
