//! What a server has done, as Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats>). Names mean what vLLM's of the same
//! name mean; `model` is the base's or adapter's name, `adapter mix`, or `removed adapters`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tunebook_models::{Finish, FinishReason};

/// Upper bounds of histograms, in seconds.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Debug, Default)]
struct Histogram {
    /// For each bound, and for what is above all of them.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let secs = time.as_secs_f64();
        self.counts[BOUNDS.partition_point(|bound| *bound < secs)] += 1;
        self.sum += secs;
    }

    fn join(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut count = 0;
        let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, here) in bounds.zip(self.counts) {
            count += here;
            let comma = if labels.is_empty() { "" } else { "," };
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

/// Of one base or adapter.
#[derive(Debug, Default)]
struct OfModel {
    waiting: u64,
    running: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    generation_tokens: u64,
    ended: BTreeMap<&'static str, u64>,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
}

impl OfModel {
    /// Adds the counts of a name that is gone, of which nothing waits or runs.
    fn join(&mut self, gone: &Self) {
        self.prompt_tokens += gone.prompt_tokens;
        self.cached_tokens += gone.cached_tokens;
        self.generation_tokens += gone.generation_tokens;
        for (reason, count) in &gone.ended {
            *self.ended.entry(reason).or_default() += count;
        }
        self.first_token.join(&gone.first_token);
        self.between_tokens.join(&gone.between_tokens);
        self.whole.join(&gone.whole);
    }
}

/// The name that removed adapters are counted under: those who name them may do so without end.
const REMOVED: &str = "removed adapters";

/// The seconds before the running one over which the speed is taken.
const RECENT_SECONDS: u64 = 5;

/// Tokens of the last seconds.
#[derive(Debug)]
struct Recent {
    since: Instant,
    /// The number of a second, and its tokens.
    seconds: [(u64, u64); RECENT_SECONDS as usize + 1],
}

impl Recent {
    fn add(&mut self) {
        let now = self.since.elapsed().as_secs();
        let place = (now % (RECENT_SECONDS + 1)) as usize;
        if let Some(second) = self.seconds.get_mut(place) {
            *second = (now, if second.0 == now { second.1 + 1 } else { 1 });
        }
    }

    /// Tokens per second over the whole seconds before this one.
    fn per_s(&self) -> f64 {
        let now = self.since.elapsed().as_secs();
        let span = now.saturating_sub(RECENT_SECONDS)..now;
        let seconds = (span.end - span.start).max(1);
        let tokens = self.seconds.iter().filter(|(second, _)| span.contains(second));
        tokens.map(|(_, tokens)| *tokens).sum::<u64>() as f64 / seconds as f64
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self { since: Instant::now(), seconds: [(0, 0); RECENT_SECONDS as usize + 1] }
    }
}

/// Counts of one base or adapter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) waiting: u64,
    pub(crate) running: u64,
    pub(crate) answered: u64,
    pub(crate) tokens: u64,
}

#[derive(Debug, Default)]
struct All {
    recent: Recent,
    models: BTreeMap<String, OfModel>,
    requests: BTreeMap<(&'static str, u16), u64>,
    refused: u64,
    swap: Histogram,
}

/// Counters of a server.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<All>);

/// The times of one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    accepted: Instant,
    last_token: Option<Instant>,
}

impl Timing {
    pub(crate) fn begin() -> Self {
        Self { accepted: Instant::now(), last_token: None }
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of<R>(&self, model: &str, change: impl FnOnce(&mut OfModel) -> R) -> R {
        let mut all = self.lock();
        // Looked for first: a name is new once, and tokens are many.
        match all.models.get_mut(model) {
            Some(of) => change(of),
            None => change(all.models.entry(model.to_owned()).or_default()),
        }
    }

    /// Answers were accepted.
    pub(crate) fn begin(&self, model: &str, choices: usize) {
        self.of(model, |of| of.waiting += choices as u64);
    }

    /// Counts the names that are served no more as one, once their answers have ended. They are
    /// looked for when there are more names than the `expected`.
    pub(crate) fn join_removed(&self, expected: usize, served: impl Fn(&str) -> bool) {
        let mut all = self.lock();
        if all.models.len() <= expected {
            return;
        }
        let mut removed = all.models.remove(REMOVED).unwrap_or_default();
        all.models.retain(|name, of| {
            let stays = of.waiting + of.running > 0 || served(name);
            if !stays {
                removed.join(of);
            }
            stays
        });
        all.models.insert(REMOVED.to_owned(), removed);
    }

    /// An answer has a token.
    pub(crate) fn token(&self, model: &str, timing: &mut Timing) {
        let now = Instant::now();
        self.lock().recent.add();
        self.of(model, |of| {
            of.generation_tokens += 1;
            match timing.last_token.replace(now) {
                None => {
                    of.first_token.add(now - timing.accepted);
                    of.waiting = of.waiting.saturating_sub(1);
                    of.running += 1;
                }
                Some(last) => of.between_tokens.add(now - last),
            }
        });
    }

    fn leave(of: &mut OfModel, timing: &Timing, reason: &'static str) {
        let place = if timing.last_token.is_some() { &mut of.running } else { &mut of.waiting };
        *place = place.saturating_sub(1);
        *of.ended.entry(reason).or_default() += 1;
    }

    /// An answer has ended. The prompt counts for one answer to it, the `first`.
    pub(crate) fn end(&self, model: &str, timing: &Timing, finish: &Finish, first: bool) {
        let reason = match finish.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length | FinishReason::Context => "length",
            FinishReason::Interrupted => "abort",
            FinishReason::Failed(_) | FinishReason::Misformed(_) => "error",
        };
        self.of(model, |of| {
            Self::leave(of, timing, reason);
            of.whole.add(timing.accepted.elapsed());
            if first {
                of.prompt_tokens += finish.usage.prompt_tokens as u64;
                of.cached_tokens += finish.usage.cached_tokens as u64;
            }
        });
    }

    /// Nobody waits for an answer any more.
    pub(crate) fn cancel(&self, model: &str, timing: &Timing) {
        self.of(model, |of| Self::leave(of, timing, "abort"));
    }

    /// A request was answered.
    pub(crate) fn request(&self, route: &'static str, status: u16) {
        *self.lock().requests.entry((route, status)).or_default() += 1;
    }

    /// A request was refused as the queue is full.
    pub(crate) fn refused(&self) {
        self.lock().refused += 1;
    }

    /// A name points to another generation.
    pub(crate) fn swapped(&self, time: Duration) {
        self.lock().swap.add(time);
    }

    /// Answers that wait for their first token, answers on their way, and tokens so far.
    pub(crate) fn load(&self) -> (u64, u64, u64) {
        self.lock().models.values().fold((0, 0, 0), |(waiting, running, tokens), of| {
            (waiting + of.waiting, running + of.running, tokens + of.generation_tokens)
        })
    }

    /// Tokens per second, of late.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        self.lock().recent.per_s()
    }

    /// The requests that were refused as the queue was full.
    pub(crate) fn refusals(&self) -> u64 {
        self.lock().refused
    }

    /// By the names that requests were for.
    pub(crate) fn counts(&self) -> BTreeMap<String, Counts> {
        let counts = |of: &OfModel| Counts {
            waiting: of.waiting,
            running: of.running,
            answered: of.ended.values().sum(),
            tokens: of.generation_tokens,
        };
        self.lock().models.iter().map(|(name, of)| (name.clone(), counts(of))).collect()
    }

    /// Everything as text.
    pub(crate) fn text(&self, adapters: usize) -> String {
        let all = self.lock();
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP tunebook_{name} {help}\n# TYPE tunebook_{name} {kind}");
        };
        type Count = fn(&OfModel) -> u64;
        let counts: [(&str, &str, &str, Count); 5] = [
            ("num_requests_waiting", "gauge", "Answers that wait for their first token.", |of| {
                of.waiting
            }),
            ("num_requests_running", "gauge", "Answers that have begun.", |of| of.running),
            ("prompt_tokens_total", "counter", "Prompt tokens of answers that have ended.", |of| {
                of.prompt_tokens
            }),
            (
                "prompt_tokens_cached_total",
                "counter",
                "Prompt tokens that were computed before.",
                |of| of.cached_tokens,
            ),
            ("generation_tokens_total", "counter", "Tokens of answers.", |of| of.generation_tokens),
        ];
        let label = |model: &str| format!("model=\"{}\"", escaped(model));
        for (name, kind, help, count) in counts {
            head(&mut out, name, kind, help);
            for (model, of) in &all.models {
                let _ = writeln!(out, "tunebook_{name}{{{}}} {}", label(model), count(of));
            }
        }
        head(&mut out, "request_success_total", "counter", "Answers that have ended, by reason.");
        for (model, of) in &all.models {
            for (reason, count) in &of.ended {
                let labels = label(model);
                let _ = writeln!(
                    out,
                    "tunebook_request_success_total{{{labels},finished_reason=\"{reason}\"}} {count}"
                );
            }
        }
        type Times = fn(&OfModel) -> &Histogram;
        let times: [(&str, &str, Times); 3] = [
            ("time_to_first_token_seconds", "From acceptance to the first token.", |of| {
                &of.first_token
            }),
            ("inter_token_latency_seconds", "From one token to the next.", |of| &of.between_tokens),
            ("e2e_request_latency_seconds", "From acceptance to the end.", |of| &of.whole),
        ];
        for (name, help, histogram) in times {
            head(&mut out, name, "histogram", help);
            for (model, of) in &all.models {
                histogram(of).write(&mut out, &format!("tunebook_{name}"), &label(model));
            }
        }
        head(&mut out, "adapter_load_seconds", "histogram", "Loading and swapping an adapter.");
        all.swap.write(&mut out, "tunebook_adapter_load_seconds", "");
        head(&mut out, "adapters", "gauge", "Adapters that are served.");
        let _ = writeln!(out, "tunebook_adapters {adapters}");
        head(&mut out, "queue_full_total", "counter", "Requests refused as the queue was full.");
        let _ = writeln!(out, "tunebook_queue_full_total {}", all.refused);
        head(&mut out, "http_requests_total", "counter", "Requests by route and status.");
        for ((route, status), count) in &all.requests {
            let labels = format!("route=\"{route}\",status=\"{status}\"");
            let _ = writeln!(out, "tunebook_http_requests_total{{{labels}}} {count}");
        }
        out
    }
}

/// A label's value, as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use tunebook_models::TokenUsage;

    use super::*;

    #[test]
    fn answers_are_counted_in_and_out() {
        let metrics = Metrics::default();
        let mut timing = Timing::begin();
        metrics.begin("a\"b", 2);
        assert_eq!(metrics.load(), (2, 0, 0));
        metrics.token("a\"b", &mut timing);
        metrics.token("a\"b", &mut timing);
        assert_eq!(metrics.load(), (1, 1, 2));
        let usage = TokenUsage { prompt_tokens: 7, cached_tokens: 3, completion_tokens: 2 };
        let finish = Finish { reason: FinishReason::Stop, usage };
        metrics.end("a\"b", &timing, &finish, true);
        metrics.cancel("a\"b", &Timing::begin());
        assert_eq!(metrics.load(), (0, 0, 2));
        let text = metrics.text(1);
        for line in [
            "tunebook_prompt_tokens_total{model=\"a\\\"b\"} 7",
            "tunebook_request_success_total{model=\"a\\\"b\",finished_reason=\"stop\"} 1",
            "tunebook_request_success_total{model=\"a\\\"b\",finished_reason=\"abort\"} 1",
            "tunebook_time_to_first_token_seconds_bucket{model=\"a\\\"b\",le=\"+Inf\"} 1",
            "tunebook_inter_token_latency_seconds_count{model=\"a\\\"b\"} 1",
            "tunebook_adapters 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_time_on_a_bound_counts_below_it() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_millis(1));
        histogram.add(Duration::from_secs(1000));
        assert_eq!((histogram.counts[0], histogram.counts[BOUNDS.len()]), (1, 1));
    }
}
