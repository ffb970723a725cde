//! What the server counts, as Prometheus reads it.

use critbeta::attention::DecodeRow;
use critbeta::cpu::Measure;
use critbeta::operating_ratio;
use critbeta_candle::llama::{Config, Watch};
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Quantiles are those of this many rows of a layer, the last ones.
const ROWS: usize = 4096;
const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// The model ended the text.
    Stop,
    /// At its `max_tokens`.
    Length,
    /// Its client was gone.
    Dropped,
    /// The model could not go on.
    Failed,
    /// It was not understood (4xx).
    Refused,
    /// There was no place for it (503).
    Busy,
}

const OUTCOMES: [&str; 6] = ["stop", "length", "dropped", "failed", "refused", "busy"];

/// The rows of one layer.
#[derive(Default)]
struct Rows {
    /// Operating ratios beta / Lambda of the last rows.
    ratios: VecDeque<f64>,
    rows: u64,
    tied: u64,
    poisoned: u64,
}

/// All counters.
pub struct Metrics {
    rescaling: String,
    /// The rows of every so many tokens of a sequence are measured; none if it is 0.
    every: usize,
    ended: [AtomicU64; 6],
    prompt: AtomicU64,
    generated: AtomicU64,
    slots: AtomicU64,
    waiting: AtomicI64,
    layers: Vec<Mutex<Rows>>,
}

impl Metrics {
    pub fn new(rescaling: String, layers: usize, every: usize) -> Metrics {
        Metrics {
            rescaling,
            every,
            ended: Default::default(),
            prompt: AtomicU64::new(0),
            generated: AtomicU64::new(0),
            slots: AtomicU64::new(0),
            waiting: AtomicI64::new(0),
            layers: (0..layers).map(|_| Mutex::default()).collect(),
        }
    }

    pub fn ended(&self, outcome: Outcome) {
        self.ended[outcome as usize].fetch_add(1, Relaxed);
    }

    pub fn prompt(&self, tokens: usize) {
        self.prompt.fetch_add(tokens as u64, Relaxed);
    }

    pub fn generated(&self) {
        self.generated.fetch_add(1, Relaxed);
    }

    pub fn slots(&self, used: usize) {
        self.slots.store(used as u64, Relaxed);
    }

    pub fn waiting(&self, more: i64) {
        self.waiting.fetch_add(more, Relaxed);
    }

    /// Who measures the rows of a sequence that has made so many tokens, if it is the turn of its next one.
    /// The first turn is that of the first step after the prompt, so that short answers have one.
    pub fn tally(&self, made: usize) -> Tally<'_> {
        Tally { metrics: self, measures: self.every > 0 && made % self.every == 1 % self.every }
    }

    /// The page.
    pub fn page(&self) -> String {
        let mut page = String::new();
        let mut line = |text: String| page.push_str(&(text + "\n"));
        let head = |name: &str, kind: &str, help: &str| format!("# HELP {name} {help}\n# TYPE {name} {kind}");
        line(head("critbeta_info", "gauge", "The rescaling of all requests."));
        line(format!("critbeta_info{{rescaling={}}} 1", quoted(&self.rescaling)));
        line(head("critbeta_requests_total", "counter", "Requests by how they ended."));
        for (outcome, count) in OUTCOMES.iter().zip(&self.ended) {
            line(format!("critbeta_requests_total{{outcome=\"{outcome}\"}} {}", count.load(Relaxed)));
        }
        line(head("critbeta_prompt_tokens_total", "counter", "Tokens of prompts that were read."));
        line(format!("critbeta_prompt_tokens_total {}", self.prompt.load(Relaxed)));
        line(head("critbeta_generated_tokens_total", "counter", "Tokens that were generated."));
        line(format!("critbeta_generated_tokens_total {}", self.generated.load(Relaxed)));
        line(head("critbeta_slots_used", "gauge", "Sequences that run."));
        line(format!("critbeta_slots_used {}", self.slots.load(Relaxed)));
        line(head("critbeta_waiting", "gauge", "Requests in the queue."));
        line(format!("critbeta_waiting {}", self.waiting.load(Relaxed)));
        let mut counts = [
            head("critbeta_rows_total", "counter", "Attention rows that were measured."),
            head(
                "critbeta_tied_rows_total",
                "counter",
                "Measured rows with a tied maximum: Lambda is infinite.",
            ),
            head("critbeta_poisoned_rows_total", "counter", "Measured rows with a NaN."),
        ];
        let help = format!("beta / Lambda of the last {ROWS} measured rows: above 1 one key dominates.");
        let mut ratios = head("critbeta_operating_ratio", "gauge", &help);
        for (index, layer) in self.layers.iter().enumerate() {
            let layer = layer.lock().unwrap_or_else(PoisonError::into_inner);
            let name = quoted(&Config::layer_name(index));
            for (text, (what, count)) in counts.iter_mut().zip([
                ("", layer.rows),
                ("tied_", layer.tied),
                ("poisoned_", layer.poisoned),
            ]) {
                let _ = write!(text, "\ncritbeta_{what}rows_total{{layer={name}}} {count}");
            }
            let mut sorted: Vec<f64> = layer.ratios.iter().copied().collect();
            drop(layer);
            sorted.sort_by(f64::total_cmp);
            for q in QUANTILES.iter().filter(|_| !sorted.is_empty()) {
                let value = sorted[(q * (sorted.len() - 1) as f64).round() as usize];
                let value = if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() };
                let _ = write!(ratios, "\ncritbeta_operating_ratio{{layer={name},quantile=\"{q}\"}} {value}");
            }
        }
        counts.into_iter().chain([ratios]).for_each(line);
        page
    }
}

/// The value of a label as Prometheus reads it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n"))
}

/// Measures the rows of one sequence in one step.
pub struct Tally<'a> {
    metrics: &'a Metrics,
    measures: bool,
}

impl Watch for Tally<'_> {
    fn measure(&self) -> Option<Measure> {
        self.measures.then(Measure::default)
    }

    fn rows(&mut self, layer: usize, rows: &[DecodeRow]) {
        let Some(kept) = self.metrics.layers.get(layer).filter(|_| self.measures) else { return };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        for report in rows.iter().filter_map(|row| row.report) {
            kept.rows += 1;
            kept.tied += u64::from(report.critical.beta == f64::INFINITY);
            let ratio = operating_ratio(report.beta, report.critical.beta);
            if ratio.is_nan() {
                kept.poisoned += u64::from(report.top.poisoned);
                continue;
            }
            // One key dominates at any beta: Lambda is 0.
            if report.top.len < 2 {
                continue;
            }
            if kept.ratios.len() == ROWS {
                kept.ratios.pop_front();
            }
            kept.ratios.push_back(ratio);
        }
    }
}
