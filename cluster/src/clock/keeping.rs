//! The task that settles the node's time when the node starts, steers it, and says what it sees.

use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::reference::{self, Reference};
use super::{NodeClock, elapsed_us, wall_us};
use crate::{NodeId, Shards};

/// The file in the data directory.
const FILE: &str = "clock";

/// Between two looks until the clock has settled, and afterwards.
const SETTLE_LOOK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(1);

/// How long a clock waits for those of all nodes, when a majority's are known.
const ALL_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long it waits for a majority's. A node that hears of no majority leads nothing by then.
const MAJORITY_WAIT_MAX: Duration = Duration::from_secs(10);

/// The file is written anew when what it comes to is off by more.
const FILE_OFF_MAX_US: u64 = 20_000;

/// Between two warnings of the same.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Where a clock goes on when its process ends, and what it was last.
struct File {
    path: PathBuf,
    machine: String,
    written: Option<Reference>,
}

impl File {
    fn of(dir: &Path) -> Option<File> {
        let path = dir.join(FILE);
        let machine = reference::machine()?;
        let written = reference::read(&path, &machine);
        Some(File { path, machine, written })
    }

    /// What the last process of this node would say now.
    fn time_us(&self, elapsed_us: u64) -> Option<u64> {
        self.written?.time_us(elapsed_us)
    }

    fn keep(&mut self, clock: &NodeClock) {
        let elapsed_us = elapsed_us();
        let time_us = clock.time_us(elapsed_us);
        if self.time_us(elapsed_us).is_some_and(|it| it.abs_diff(time_us) <= FILE_OFF_MAX_US) {
            return;
        }
        let reference = Reference { elapsed_us, time_us };
        match reference::write(&self.path, &self.machine, reference) {
            Ok(()) => self.written = Some(reference),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "write the clock's file");
            }
        }
    }
}

/// What keeps a node's clock.
pub(crate) struct Keeper {
    file: Option<File>,
    /// Nobody else's clock may be compared with a founder's: it starts settled.
    founding: bool,
}

impl Keeper {
    /// Sets a clock to what this node alone knows, before it can make an entry. `dir` is where the
    /// node keeps its data.
    pub fn start(clock: &NodeClock, dir: &Path, founding: bool) -> Keeper {
        let file = File::of(dir);
        let elapsed_us = elapsed_us();
        let before = file.as_ref().and_then(|file| file.time_us(elapsed_us));
        clock.unsettle(elapsed_us, before.unwrap_or_else(wall_us));
        if founding {
            clock.settle(&[]);
        }
        Keeper { file, founding }
    }

    /// Settles the clock, and keeps it until the shards are gone.
    pub async fn run(mut self, shards: Weak<Shards>) {
        if !self.founding && !settled(&shards).await {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut warned = None;
        loop {
            ticks.tick().await;
            let Some(shards) = shards.upgrade() else { return };
            let clock = shards.peers().clock();
            let others = others(&shards);
            if others.is_empty() || is_majority(clock.heard(&others) + 1, others.len() + 1) {
                // Twice the time between looks, so that a late one does not let it run free.
                clock.steer(&others, 2 * LOOK.as_micros() as u64);
            }
            if let Some(file) = &mut self.file {
                file.keep(clock);
            }
            warn(clock, &mut warned);
        }
    }
}

/// Waits until enough clocks are known, and settles; `false` if the shards are gone.
async fn settled(shards: &Weak<Shards>) -> bool {
    let started = Instant::now();
    loop {
        {
            let Some(shards) = shards.upgrade() else { return false };
            let clock = shards.peers().clock();
            let informed = !shards.topology().nodes.is_empty();
            let others = others(&shards);
            let (heard, waited) = (clock.heard(&others), started.elapsed());
            let enough = informed
                && (heard == others.len()
                    || waited > ALL_WAIT_MAX && is_majority(heard + 1, others.len() + 1));
            if enough || waited > MAJORITY_WAIT_MAX {
                clock.settle(&others);
                let skew_ms = clock.report().skew_ms;
                tracing::debug!(heard, of = others.len(), skew_ms, "the node's time is settled");
                for group in shards.groups() {
                    group.clock_settled();
                }
                return true;
            }
        }
        tokio::time::sleep(SETTLE_LOOK).await;
    }
}

/// The other nodes, all of them connected to: those that have nothing else to say are pinged too.
fn others(shards: &Shards) -> Vec<NodeId> {
    let (me, peers) = (shards.me(), shards.peers());
    let others: Vec<NodeId> = peers.known().into_iter().filter(|node| *node != me).collect();
    others.iter().for_each(|node| drop(peers.peer(*node)));
    others
}

fn is_majority(some: usize, all: usize) -> bool {
    some > all / 2
}

/// Says that the wall clock is off, and that it no longer is.
fn warn(clock: &NodeClock, warned: &mut Option<Instant>) {
    let report = clock.report();
    if !report.is_off() {
        if warned.take().is_some() {
            tracing::info!(skew_ms = report.skew_ms, "the wall clock is right again");
        }
        return;
    }
    if warned.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
        *warned = Some(Instant::now());
        tracing::warn!(
            skew_ms = report.skew_ms,
            "the wall clock is ahead of the node's time by so much (behind, if below zero): it \
             has stepped, or differs from those of most nodes; nothing expires by it"
        );
    }
}
