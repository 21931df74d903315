//! What a load came to, for people and as JSON.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value as Json, json};

use crate::cli::text::{show_bytes, show_count, show_us};

/// What lanes measured together.
pub struct Figures {
    /// Time that was counted.
    pub elapsed: Duration,
    /// Microseconds.
    pub latency: Histogram<u64>,
    /// Calls answered.
    pub answers: u64,
    /// Bytes of states in the answers.
    pub bytes: u64,
    /// Calls that failed.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
}

impl Figures {
    pub(super) fn empty(elapsed: Duration, latency_us_max: u64) -> Self {
        Figures {
            elapsed,
            latency: Histogram::new_with_bounds(1, latency_us_max, 3).expect("fixed bounds"),
            answers: 0,
            bytes: 0,
            errors: 0,
            first_error: None,
        }
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Everything, for programs.
    pub fn json(&self) -> Json {
        let at = |quantile| self.latency.value_at_quantile(quantile);
        json!({
            "seconds": self.elapsed.as_secs_f64(),
            "answers": self.answers,
            "errors": self.errors,
            "first_error": self.first_error,
            "per_second": self.rate(),
            "bytes_per_second": self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9),
            "latency_us": {
                "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99_9": at(0.999),
                "max": self.latency.max(), "mean": self.latency.mean(),
            },
        })
    }
}

/// Prints one load's figures for people.
pub fn print_figures(name: &str, figures: &Figures) {
    let at = |quantile| show_us(figures.latency.value_at_quantile(quantile));
    let bytes = match figures.bytes {
        0 => String::new(),
        bytes => {
            let per_second = bytes as f64 / figures.elapsed.as_secs_f64().max(1e-9);
            format!(", {}/s", show_bytes(per_second as u64))
        }
    };
    println!(
        "{name}: {}/s{bytes}, p50 {}, p99 {}, p99.9 {}, max {}",
        show_count(figures.rate() as u64),
        at(0.5),
        at(0.99),
        at(0.999),
        show_us(figures.latency.max()),
    );
    if let Some(error) = &figures.first_error {
        println!("  {} calls failed; the first: {error}", show_count(figures.errors));
    }
}
