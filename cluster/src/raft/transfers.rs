//! Whole replicas under way: how many at a time, how fast, and what the log must keep for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use statehouse_store::ReplicaId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::Config;
use super::throttle::Throttle;
use crate::{Foreground, NodeId, ShardId};

/// How long a transfer lets callers go first before it moves on by a block. Less than its receiver
/// waits for one.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How often a paused transfer looks whether it may go on.
const PAUSE_LOOK: Duration = Duration::from_millis(100);

/// How long the log behind a sent snapshot is kept for its receiver to ask for.
const HELD_AFTER: Duration = Duration::from_secs(10);

/// Which way a replica goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From this node to another.
    Out,
    /// From another node to this one.
    In,
}

/// A replica on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The shard that it is of.
    pub shard: ShardId,
    /// The replica that it goes to.
    pub replica: ReplicaId,
    /// The other node; unknown on the way in.
    pub node: Option<NodeId>,
    /// Which way it goes.
    pub direction: Direction,
    /// Bytes sent or received so far.
    pub bytes: u64,
    /// Since when.
    pub since: Instant,
    /// It waits for callers, who wait too long themselves.
    pub paused: bool,
}

/// A node's transfers.
pub(super) struct Transfers {
    outgoing: Arc<Semaphore>,
    incoming: Arc<Semaphore>,
    throttle: Mutex<Throttle>,
    under_way: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
    foreground: Arc<Foreground>,
    pub time_max: Duration,
}

struct Entry {
    transfer: Transfer,
    /// On the way out: the log behind this index must stay.
    view: u64,
    ended: Option<Instant>,
}

/// Registers a transfer for as long as it lives.
pub(super) struct Guard {
    transfers: Arc<Transfers>,
    id: u64,
    /// `None` while it waits for its turn.
    permit: Option<OwnedSemaphorePermit>,
}

impl Transfers {
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Transfers {
            outgoing: Arc::new(Semaphore::new(config.transfers_max)),
            incoming: Arc::new(Semaphore::new(config.transfers_max)),
            throttle: Mutex::new(Throttle::new(config.transfer_bytes_per_second, Instant::now())),
            under_way: Mutex::default(),
            next: AtomicU64::new(0),
            foreground: Arc::new(Foreground::new(config.foreground_p99_max)),
            time_max: config.transfer_time_max,
        })
    }

    /// Waits for its turn to send a view, as of an index.
    pub async fn send(
        self: &Arc<Self>,
        (shard, replica, node): (ShardId, ReplicaId, NodeId),
        view: u64,
    ) -> Guard {
        // Held from now on, while it waits as well: the view is there already.
        let (direction, since) = (Direction::Out, Instant::now());
        let node = Some(node);
        let transfer = Transfer { shard, replica, node, direction, bytes: 0, since, paused: false };
        let id = self.register(transfer, view);
        let mut guard = Guard { transfers: self.clone(), id, permit: None };
        let permit = self.outgoing.clone().acquire_owned().await;
        guard.permit = Some(permit.expect("the semaphore is never closed"));
        guard
    }

    /// Room for a view that comes in; `None` if there are enough.
    pub fn receive(self: &Arc<Self>, shard: ShardId, replica: ReplicaId) -> Option<Guard> {
        let permit = self.incoming.clone().try_acquire_owned().ok()?;
        let (direction, since) = (Direction::In, Instant::now());
        let node = None;
        let transfer = Transfer { shard, replica, node, direction, bytes: 0, since, paused: false };
        let id = self.register(transfer, u64::MAX);
        Some(Guard { transfers: self.clone(), id, permit: Some(permit) })
    }

    fn register(&self, transfer: Transfer, view: u64) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.under_way.lock().insert(id, Entry { transfer, view, ended: None });
        id
    }

    fn ended(&self, id: u64) {
        let mut under_way = self.under_way.lock();
        if let Some(entry) = under_way.get_mut(&id) {
            entry.ended = Some(Instant::now());
        }
        under_way.retain(|_, entry| match (entry.transfer.direction, entry.ended) {
            (_, None) => true,
            (Direction::In, Some(_)) => false,
            (Direction::Out, Some(ended)) => ended.elapsed() < HELD_AFTER,
        });
    }

    /// The least index that a transfer of a shard's snapshot needs the log behind.
    pub fn held(&self, shard: ShardId) -> Option<u64> {
        let under_way = self.under_way.lock();
        let held = under_way.values().filter(|entry| {
            let fresh = entry.ended.is_none_or(|ended| ended.elapsed() < HELD_AFTER);
            entry.transfer.shard == shard && entry.transfer.direction == Direction::Out && fresh
        });
        held.map(|entry| entry.view).min()
    }

    /// The calls that transfers make room for.
    pub fn foreground(&self) -> &Arc<Foreground> {
        &self.foreground
    }

    /// What is under way now.
    pub fn all(&self) -> Vec<Transfer> {
        let under_way = self.under_way.lock();
        let going = under_way.values().filter(|entry| entry.ended.is_none());
        going.map(|entry| entry.transfer).collect()
    }
}

impl Guard {
    /// Bytes have come in.
    pub fn count(&self, bytes: usize) {
        if let Some(entry) = self.transfers.under_way.lock().get_mut(&self.id) {
            entry.transfer.bytes += bytes as u64;
        }
    }

    /// Lets callers go first while they wait too long, but not for ever.
    pub async fn make_room(&self) {
        let foreground = &self.transfers.foreground;
        if !foreground.is_slow() {
            return;
        }
        self.pause(true);
        let until = Instant::now() + PAUSE_MAX;
        while foreground.is_slow() && Instant::now() < until {
            tokio::time::sleep(PAUSE_LOOK).await;
        }
        self.pause(false);
    }

    fn pause(&self, paused: bool) {
        if let Some(entry) = self.transfers.under_way.lock().get_mut(&self.id) {
            entry.transfer.paused = paused;
        }
    }

    /// Counts bytes, and waits until they may leave.
    pub async fn pace(&self, bytes: usize) {
        self.make_room().await;
        self.count(bytes);
        let wait = self.transfers.throttle.lock().take(bytes as u64, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.transfers.ended(self.id);
    }
}
