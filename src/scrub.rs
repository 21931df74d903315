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

/// The longest wait before a scrub that could not be carried out is tried again.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// The number of times in an interval, at least, that the rate is fitted to the store's size.
const RATES_PER_INTERVAL: u32 = 10;

/// The longest time between two fittings of the rate.
const RATE_INTERVAL_MAX: Duration = Duration::from_secs(60);

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
                RETRY_WAIT_MAX.min(config.interval)
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
    let started = Instant::now();
    let mut pacer = Pacer::new(store, config, ended)?;
    let report = store.scrub(&mut |bytes| pacer.wait(bytes))?;
    let (bytes, rows, damages) = (report.bytes, report.rows, report.damages);
    let (finished, took) = (report.finished, started.elapsed());
    tracing::info!(bytes, rows, damages, finished, ?took, "scrubbed the disk");
    Ok(())
}

/// Spreads a scrub over its interval, also while the store grows.
struct Pacer<'a> {
    store: &'a Store,
    config: Config,
    ended: &'a Receiver<()>,
    /// The rate, in bytes per second.
    rate: u64,
    /// The time when the rate was fitted.
    fitted: Instant,
}

impl<'a> Pacer<'a> {
    fn new(
        store: &'a Store,
        config: Config,
        ended: &'a Receiver<()>,
    ) -> Result<Self, statehouse_store::Error> {
        let rate = rate(store.scrub_bytes()?, config);
        Ok(Pacer { store, config, ended, rate, fitted: Instant::now() })
    }

    /// Waits as long as so many bytes take. `Break` if the thread should end.
    fn wait(&mut self, bytes: u64) -> ControlFlow<()> {
        let rate_interval = (self.config.interval / RATES_PER_INTERVAL).min(RATE_INTERVAL_MAX);
        let mut left = bytes as f64;
        while left > 0.0 {
            let wait = Duration::from_secs_f64(left / self.rate as f64).min(rate_interval);
            if is_over(self.ended, wait) {
                return ControlFlow::Break(());
            }
            left -= (wait.as_secs_f64() * self.rate as f64).max(1.0);
            if self.fitted.elapsed() >= rate_interval {
                // If the list of files can't be read now, the scrub that follows says so.
                let bytes = self.store.scrub_bytes();
                self.rate = bytes.map_or(self.rate, |bytes| rate(bytes, self.config));
                self.fitted = Instant::now();
            }
        }
        ControlFlow::Continue(())
    }
}

/// Bytes per second that end a scrub of so many bytes within the interval.
fn rate(scrub_bytes: u64, config: Config) -> u64 {
    let interval_s = config.interval.as_secs().max(1);
    let even = scrub_bytes.div_ceil(interval_s);
    even.max(BYTES_PER_SECOND_MIN).min(config.bytes_per_second_max.max(1))
}

/// Waits. Answers whether the thread should end.
fn is_over(ended: &Receiver<()>, wait: Duration) -> bool {
    !matches!(ended.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use statehouse_store::{Body, Entry, ReplicaId};

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_scrub_is_spread_over_its_interval_and_never_faster_than_allowed() {
        let config = Config { interval: Duration::from_secs(1_000), bytes_per_second_max: 1 << 20 };
        assert_eq!(rate(0, config), BYTES_PER_SECOND_MIN);
        assert_eq!(rate(200_000_000, config), 200_000);
        assert_eq!(rate(u64::MAX / 4, config), 1 << 20);
    }

    #[test]
    fn a_scrub_takes_the_time_that_its_rate_says_and_ends_when_it_should() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), statehouse_store::Config::default()).unwrap();
        let config = Config { interval: Duration::from_secs(3_600), bytes_per_second_max: 1 << 20 };
        let (end, ended) = channel();
        let mut pacer = Pacer::new(&store, config, &ended).unwrap();
        assert_eq!(pacer.rate, BYTES_PER_SECOND_MIN);
        let begun = Instant::now();
        assert!(pacer.wait(BYTES_PER_SECOND_MIN / 4).is_continue());
        assert!(begun.elapsed() >= Duration::from_millis(240), "{:?}", begun.elapsed());
        drop(end);
        assert!(pacer.wait(u64::MAX).is_break());
        store.close().unwrap();
    }

    #[test]
    fn a_scrub_begun_when_the_store_was_small_keeps_its_interval_when_it_has_grown() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), statehouse_store::Config::default()).unwrap();
        store.create_replica(ReplicaId(1)).unwrap();
        let config =
            Config { interval: Duration::from_secs(1), bytes_per_second_max: 64 * MIB as u64 };
        let (_end, ended) = channel();
        let mut pacer = Pacer::new(&store, config, &ended).unwrap();
        assert!(8 * MIB as u64 / pacer.rate > 40, "at {} B/s it takes seconds", pacer.rate);
        for index in 1..=8 {
            let (sender, synced) = channel();
            let done = Box::new(move |result| sender.send(result).unwrap());
            let body = Body::Membership(vec![7; MIB].into());
            let entry = Entry::new(index, 1, body);
            store.log(ReplicaId(1)).unwrap().append(vec![entry], done).unwrap();
            synced.recv().unwrap().unwrap();
        }
        // At the first rate this would take more than 40 s.
        let begun = Instant::now();
        assert!(pacer.wait(8 * MIB as u64).is_continue());
        assert!(begun.elapsed() < Duration::from_secs(32), "{:?}", begun.elapsed());
        store.close().unwrap();
    }
}
