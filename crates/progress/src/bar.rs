//! The progress bar: how far, how fast, how long yet.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bundle::{MimeBundle, escape_html};
use crate::display::{Display, display};
use crate::interrupt;
use crate::quiet::is_quiet;
use crate::sink::{Place, sink};

/// Redraws per second would flicker, and flood a notebook: these are the shortest pauses between
/// two of them.
const CHANNEL_PAUSE: Duration = Duration::from_millis(200);
const TERMINAL_PAUSE: Duration = Duration::from_millis(100);
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// A progress bar. It redraws a few times a second, can be driven from any thread, and is drawn for
/// the last time by [`ProgressBar::finish`] or when it is dropped. Work that is over within a
/// second draws no bar in a terminal's log.
///
/// A bar that is made inside [`quiet`](crate::quiet()) is never drawn.
#[derive(Debug)]
pub struct ProgressBar {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    label: String,
    unit: String,
    total: Option<u64>,
    done: u64,
    message: String,
    started: Instant,
    drawn: Option<Instant>,
    display: Option<Display>,
    /// Whether the bar is drawn at all.
    shown: bool,
    finished: bool,
}

impl ProgressBar {
    /// A bar named `label` over `total` units of work, or of unknown length.
    pub fn new(label: impl Into<String>, total: Option<u64>) -> Self {
        Self {
            state: Mutex::new(State {
                label: label.into(),
                unit: "it".into(),
                total,
                done: 0,
                message: String::new(),
                started: Instant::now(),
                drawn: None,
                display: None,
                shown: !is_quiet(),
                finished: false,
            }),
        }
    }

    /// Names the unit of work in the singular ("step", "token", "row"; "B" for bytes shows kB, MB
    /// and GB). Default: "it".
    #[must_use]
    pub fn unit(self, unit: &str) -> Self {
        self.lock().unit = unit.to_owned();
        self
    }

    /// Counts `n` more units as done.
    pub fn advance(&self, n: u64) {
        let mut state = self.lock();
        state.done += n;
        state.draw_if_due();
    }

    /// Sets how many units are done.
    pub fn set(&self, done: u64) {
        let mut state = self.lock();
        state.done = done;
        state.draw_if_due();
    }

    /// Sets the total, when it becomes known later.
    pub fn set_total(&self, total: Option<u64>) {
        self.lock().total = total;
    }

    /// Sets the text beside the bar (the loss, the learning rate, a file name). It appears with the
    /// next redraw.
    pub fn message(&self, message: impl Into<String>) {
        self.lock().message = message.into();
    }

    /// Draws the bar for the last time.
    pub fn finish(&self) {
        self.lock().finish();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.finish();
    }
}

impl State {
    fn draw_if_due(&mut self) {
        if !self.shown {
            return;
        }
        let place = sink().place().clone();
        let pause = match place {
            Place::Channel { .. } => CHANNEL_PAUSE,
            Place::Terminal { interactive: true } => TERMINAL_PAUSE,
            Place::Stock | Place::Terminal { interactive: false } => LINE_PAUSE,
        };
        // Lines that stay are not worth it before some time has passed; a bar in place is shown at
        // once.
        let last = match self.drawn {
            Some(drawn) => drawn,
            None if pause == LINE_PAUSE => self.started,
            None => return self.draw(&place, false),
        };
        if last.elapsed() >= pause {
            self.draw(&place, false);
        }
    }

    fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.finished = true;
        if !self.shown {
            return;
        }
        let place = sink().place().clone();
        let quick = self.started.elapsed() < Duration::from_secs(1);
        let leaves_lines = matches!(place, Place::Stock | Place::Terminal { interactive: false });
        if leaves_lines && quick {
            return;
        }
        if self.done > 0 || self.drawn.is_some() {
            self.draw(&place, true);
        }
    }

    fn draw(&mut self, place: &Place, last: bool) {
        self.drawn = Some(Instant::now());
        let elapsed = self.started.elapsed();
        if matches!(place, Place::Channel { .. }) {
            let bundle = MimeBundle::text(self.line(elapsed, 20)).html(self.html(elapsed));
            match &self.display {
                Some(display) => display.update(bundle),
                None => self.display = Some(display(bundle)),
            }
        } else {
            let line = self.line(elapsed, 20);
            sink().bar_line(&line, last);
        }
    }

    fn fraction(&self) -> Option<f64> {
        match self.total {
            Some(0) => Some(1.0),
            Some(total) => Some((self.done as f64 / total as f64).min(1.0)),
            None => None,
        }
    }

    /// `Training  45%|█████▍      | 45/100 [00:12<00:14, 3.7 step/s] loss 2.31`
    fn line(&self, elapsed: Duration, width: usize) -> String {
        let mut line = self.label.clone();
        if let Some(fraction) = self.fraction() {
            line.push_str(&format!(" {:3.0}%|{}|", 100.0 * fraction, blocks(fraction, width)));
        }
        line.push(' ');
        line.push_str(&self.numbers(elapsed));
        if !self.message.is_empty() {
            line.push(' ');
            line.push_str(&self.message);
        }
        line
    }

    /// `45/100 [00:12<00:14, 3.7 step/s]`
    fn numbers(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { self.done as f64 / seconds } else { 0.0 };
        let mut text = self.quantity(self.done as f64);
        if let Some(total) = self.total {
            text.push('/');
            text.push_str(&self.quantity(total as f64));
        }
        text.push_str(&format!(" [{}", clock(elapsed)));
        if let Some(total) = self.total
            && rate > 0.0
            && !self.finished
        {
            let left =
                Duration::from_secs_f64((total.saturating_sub(self.done) as f64 / rate).min(3.6e6));
            text.push_str(&format!("<{}", clock(left)));
        }
        if rate > 0.0 {
            let rate = if self.unit == "B" {
                format!("{}/s", self.quantity(rate))
            } else if rate >= 1.0 {
                format!("{} {}/s", significant(rate), self.unit)
            } else {
                format!("{} s/{}", significant(1.0 / rate), self.unit)
            };
            text.push_str(&format!(", {rate}"));
        }
        text.push(']');
        text
    }

    fn quantity(&self, count: f64) -> String {
        if self.unit == "B" { bytes(count) } else { format!("{count:.0}") }
    }

    fn html(&self, elapsed: Duration) -> String {
        let bar = match self.fraction() {
            Some(fraction) => format!(
                "<progress value=\"{fraction:.4}\" max=\"1\" style=\"width:16em;vertical-align:middle\"></progress> \
                 {:.0}%",
                100.0 * fraction
            ),
            None => String::new(),
        };
        format!(
            "<div style=\"font-family:monospace;font-size:13px;white-space:pre-wrap\">{} {bar} {} {}</div>",
            escape_html(&self.label),
            escape_html(&self.numbers(elapsed)),
            escape_html(&self.message),
        )
    }
}

/// A bar of `width` characters, drawn in eighths.
fn blocks(fraction: f64, width: usize) -> String {
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (fraction * width as f64 * 8.0).round() as usize;
    let mut bar: String = std::iter::repeat_n('█', eighths / 8).collect();
    if eighths / 8 < width {
        bar.push(PARTS[eighths % 8]);
        bar.extend(std::iter::repeat_n(' ', width - eighths / 8 - 1));
    }
    bar
}

/// `mm:ss`, with hours when there are any.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// Three significant digits for small numbers, none after the point for large ones.
fn significant(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn bytes(count: f64) -> String {
    match count {
        c if c >= 1e9 => format!("{:.2} GB", c / 1e9),
        c if c >= 1e6 => format!("{:.1} MB", c / 1e6),
        c if c >= 1e3 => format!("{:.0} kB", c / 1e3),
        c => format!("{c:.0} B"),
    }
}

/// The iterator of [`progress`].
#[derive(Debug)]
pub struct Progress<I> {
    inner: I,
    bar: ProgressBar,
    /// Whether an item is out whose work is not counted yet.
    handed_out: bool,
}

/// Draws a bar named `label` over an iterator. The iteration ends when the user presses Stop, so a
/// loop of one's own stops like a training run does; [`interrupt::requested`] tells whether it was
/// so. For the code of cells: work in the background has a [`Stop`](crate::Stop) of its own.
pub fn progress<I: IntoIterator>(items: I, label: &str) -> Progress<I::IntoIter> {
    let inner = items.into_iter();
    let total = inner.size_hint().1.map(|total| total as u64);
    Progress { inner, bar: ProgressBar::new(label, total), handed_out: false }
}

impl<I: Iterator> Iterator for Progress<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        if std::mem::take(&mut self.handed_out) {
            self.bar.advance(1);
        }
        let item = if interrupt::requested() { None } else { self.inner.next() };
        self.handed_out = item.is_some();
        if item.is_none() {
            self.bar.finish();
        }
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(total: Option<u64>, done: u64, unit: &str) -> State {
        let bar = ProgressBar::new("Training", total).unit(unit);
        let mut state = bar.lock();
        state.done = done;
        state.finished = true; // keeps the drop of the emptied bar silent
        State {
            label: state.label.clone(),
            unit: state.unit.clone(),
            total,
            done,
            message: "loss 2.31".into(),
            started: state.started,
            drawn: None,
            display: None,
            shown: true,
            finished: false,
        }
    }

    #[test]
    fn the_line_tells_share_count_time_left_and_rate() {
        let line = state(Some(100), 40, "step").line(Duration::from_secs(10), 10);
        assert_eq!(line, "Training  40%|████      | 40/100 [00:10<00:15, 4.00 step/s] loss 2.31");
    }

    #[test]
    fn slow_work_shows_seconds_per_unit() {
        let line = state(Some(4), 1, "epoch").line(Duration::from_secs(30), 4);
        assert_eq!(line, "Training  25%|█   | 1/4 [00:30<01:30, 30.0 s/epoch] loss 2.31");
    }

    #[test]
    fn bytes_and_unknown_totals() {
        let line = state(None, 1_500_000, "B").line(Duration::from_secs(1), 4);
        assert_eq!(line, "Training 1.5 MB [00:01, 1.5 MB/s] loss 2.31");
    }

    #[test]
    fn blocks_fill_in_eighths() {
        assert_eq!(blocks(0.0, 4), "    ");
        assert_eq!(blocks(0.5, 4), "██  ");
        assert_eq!(blocks(0.53125, 4), "██▏ ");
        assert_eq!(blocks(1.0, 4), "████");
    }

    #[test]
    fn html_escapes_what_the_caller_says() {
        let mut state = state(Some(2), 1, "step");
        state.message = "<script>".into();
        let html = state.html(Duration::from_secs(1));
        assert!(html.contains("&lt;script&gt;") && !html.contains("<script>"), "{html}");
    }

    #[test]
    fn the_iterator_hands_out_everything() {
        assert_eq!(progress(vec![1, 2, 3], "x").collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn totals_of_nothing_are_whole() {
        assert_eq!(state(Some(0), 0, "step").fraction(), Some(1.0));
    }
}
