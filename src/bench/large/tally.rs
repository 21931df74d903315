//! What became of calls: answered, told to come back later, or failed, by name and reason.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value as Json, json};
use statehouse_client::{Error, WriteError};
use tonic::Code;

/// Latencies above this are counted as this, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

/// The reason of what is not a refusal with one.
const NO_ANSWER: &str = "NO_ANSWER";

/// How calls of one name went.
struct Row {
    latency: Histogram<u64>,
    bytes: u64,
}

/// How calls went.
#[derive(Default)]
pub struct Tally {
    rows: BTreeMap<&'static str, Row>,
    /// Refused for now, with a time to wait: by name and reason.
    pressure: BTreeMap<(&'static str, String), u64>,
    /// Everything else: by name and reason, with what the first one said.
    failures: BTreeMap<(&'static str, String), (u64, String)>,
}

impl Tally {
    /// An answer that brought or took so many bytes.
    pub fn answered(&mut self, name: &'static str, since: Instant, bytes: u64) {
        let row = self.rows.entry(name).or_insert_with(|| Row {
            latency: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("fixed bounds"),
            bytes: 0,
        });
        let us = since.elapsed().as_micros() as u64;
        row.latency.saturating_record(us.clamp(1, LATENCY_US_MAX));
        row.bytes += bytes;
    }

    /// No answer. Says how long to wait, if that is all that is asked for.
    pub fn refused(&mut self, name: &'static str, error: &Error) -> Option<Duration> {
        let reason = error.reason().unwrap_or(NO_ANSWER).to_owned();
        if let Some(wait) = pressure(error) {
            *self.pressure.entry((name, reason)).or_default() += 1;
            return Some(wait);
        }
        self.failed(name, reason, error.to_string());
        None
    }

    /// The same of a stream.
    pub fn write_refused(&mut self, name: &'static str, error: &WriteError) -> Option<Duration> {
        match error {
            WriteError::Refused(error) => self.refused(name, error),
            WriteError::Source(_) | WriteError::TooShort { .. } => {
                self.failed(name, NO_ANSWER.to_owned(), error.to_string());
                None
            }
        }
    }

    fn failed(&mut self, name: &'static str, reason: String, message: String) {
        self.failures.entry((name, reason)).or_insert((0, message)).0 += 1;
    }

    /// Adds what another worker counted.
    pub fn add(&mut self, other: Tally) -> anyhow::Result<()> {
        for (name, row) in other.rows {
            match self.rows.get_mut(name) {
                Some(known) => {
                    known.latency.add(&row.latency)?;
                    known.bytes += row.bytes;
                }
                None => _ = self.rows.insert(name, row),
            }
        }
        for (what, count) in other.pressure {
            *self.pressure.entry(what).or_default() += count;
        }
        for (what, (count, message)) in other.failures {
            self.failures.entry(what).or_insert((0, message)).0 += count;
        }
        Ok(())
    }

    /// Calls answered.
    pub fn answers(&self) -> u64 {
        self.rows.values().map(|row| row.latency.len()).sum()
    }

    /// Everything, for programs.
    pub fn json(&self, elapsed: Duration) -> Json {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let row = |(name, row): (&&'static str, &Row)| {
            let at = |quantile| row.latency.value_at_quantile(quantile) as f64 / 1e3;
            json!({
                "name": name,
                "answers": row.latency.len(),
                "bytes": row.bytes,
                "per_second": row.latency.len() as f64 / seconds,
                "mb_per_second": row.bytes as f64 / 1e6 / seconds,
                "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": row.latency.max() as f64 / 1e3,
            })
        };
        let pressure = self.pressure.iter().map(
            |((name, reason), count)| json!({ "name": name, "reason": reason, "count": count }),
        );
        let failures = self.failures.iter().map(|((name, reason), (count, first))| {
            json!({ "name": name, "reason": reason, "count": count, "first": first })
        });
        json!({
            "seconds": seconds,
            "answers": self.answers(),
            "calls": self.rows.iter().map(row).collect::<Vec<_>>(),
            "pressure": pressure.collect::<Vec<_>>(),
            "failures": failures.collect::<Vec<_>>(),
        })
    }
}

/// How long to wait if an error is back-pressure: a refusal that says when to come back.
pub fn pressure(error: &Error) -> Option<Duration> {
    match error {
        Error::Refused { code: Code::ResourceExhausted, retry_after, .. } => *retry_after,
        Error::Refused { .. } | Error::Unreachable { .. } | Error::Unexpected(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn refused(code: Code, reason: &str, retry_after: Option<Duration>) -> Error {
        let (reason, message) = (reason.to_owned(), "no".to_owned());
        Error::Refused { code, reason, message, metadata: HashMap::new(), retry_after }
    }

    #[test]
    fn only_a_refusal_that_says_when_to_come_back_is_back_pressure() {
        let (mut tally, mut other) = (Tally::default(), Tally::default());
        let wait = Some(Duration::from_millis(5));
        let overloaded = refused(Code::ResourceExhausted, "OVERLOADED", wait);
        assert_eq!(tally.refused("get", &overloaded), wait);
        for error in [
            refused(Code::ResourceExhausted, "OVERLOADED", None),
            refused(Code::Unavailable, "UNAVAILABLE", wait),
            Error::Unexpected("nonsense"),
        ] {
            assert_eq!(other.refused("get", &error), None);
        }
        tally.add(other).unwrap();
        let json = tally.json(Duration::from_secs(1));
        assert_eq!(json["pressure"][0]["count"], 1);
        assert_eq!(json["failures"].as_array().unwrap().len(), 3);
    }
}
