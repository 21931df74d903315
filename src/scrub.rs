//! The scrub of a node's disk: one thread that reads everything once in a while, slowly.
//!
//! The store knows what to read (`store/src/scrub.rs`); here is the clock. A scrub spreads over
//! the interval, so that a disk of any size costs the same small rate, up to a rate that it never
//! passes. Its thread gives way to those that serve.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use statehouse_store::Store;

use crate::scheduling;

/// Bytes per second at which even a small store is read: a scrub of it ends within the hour.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// What is read once as a file and once as rows.
const PASSES: u64 = 2;

/// A wait before a scrub that could not be carried out is tried again.
const RETRY_WAIT: Duration = Duration::from_secs(60);

/// How a node's disk is scrubbed.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The time from the beginning of one scrub to that of the next.
    pub interval: Duration,
    /// Bytes per second at most.
    pub bytes_per_second_max: u64,
}

/// The thread that scrubs.
#[derive(Debug)]
pub struct Scrubber {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Scrubber {
    /// Starts the thread. `None` if the interval is zero: never.
    pub fn start(store: Store, config: Config) -> std::io::Result<Option<Scrubber>> {
        if config.interval.is_zero() {
            return Ok(None);
        }
        let (end, ended) = channel();
        let thread = std::thread::Builder::new().name("scrub".into()).spawn(move || {
            scheduling::give_way();
            run(&store, config, &ended);
        })?;
        Ok(Some(Scrubber { end, thread }))
    }

    /// Ends the thread, whatever it is at. Blocks until it is gone.
    pub fn stop(self) {
        drop(self.end);
        if self.thread.join().is_err() {
            tracing::error!("the scrubbing thread ended in a panic");
        }
    }
}

fn run(store: &Store, config: Config, ended: &Receiver<()>) {
    loop {
        let started = Instant::now();
        let wait = match scrub(store, config, ended) {
            Ok(()) => config.interval.saturating_sub(started.elapsed()),
            Err(error) => {
                tracing::warn!(%error, "a scrub could not be carried out");
                RETRY_WAIT
            }
        };
        if is_over(ended, wait) {
            return;
        }
    }
}

fn scrub(
    store: &Store,
    config: Config,
    ended: &Receiver<()>,
) -> Result<(), statehouse_store::Error> {
    let rate = rate(store.live_bytes()?, config);
    let started = Instant::now();
    let report = store.scrub(&mut |bytes| match is_over(
        ended,
        Duration::from_secs_f64(bytes as f64 / rate as f64),
    ) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    let (bytes, rows, damages) = (report.bytes, report.rows, report.damages);
    let (finished, took) = (report.finished, started.elapsed());
    tracing::info!(bytes, rows, damages, finished, ?took, "scrubbed the disk");
    Ok(())
}

/// Bytes per second that end a scrub of so many bytes within the interval.
fn rate(live_bytes: u64, config: Config) -> u64 {
    let interval_s = config.interval.as_secs().max(1);
    let even = (PASSES * live_bytes).div_ceil(interval_s);
    even.max(BYTES_PER_SECOND_MIN).min(config.bytes_per_second_max.max(1))
}

/// Waits. Answers whether the thread should end.
fn is_over(ended: &Receiver<()>, wait: Duration) -> bool {
    !matches!(ended.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_spread_over_its_interval_and_never_faster_than_allowed() {
        let config = Config { interval: Duration::from_secs(1_000), bytes_per_second_max: 1 << 20 };
        assert_eq!(rate(0, config), BYTES_PER_SECOND_MIN);
        assert_eq!(rate(100_000_000, config), 200_000);
        assert_eq!(rate(u64::MAX / 4, config), 1 << 20);
    }
}
