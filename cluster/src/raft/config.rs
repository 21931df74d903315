//! Timings and limits of a node's groups.

use std::ops::Range;
use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::proposals::Limits;
use crate::{Error, checkpointer};

/// How a node's groups behave.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often a leader is heard at least.
    pub heartbeat_interval: Duration,
    /// A follower that hears no leader for its lease and this long, at least, wants to lead.
    pub election_timeout_min: Duration,
    /// The same, at most; and the lease: for so long after it was heard a leader is not voted
    /// out.
    pub election_timeout_max: Duration,
    /// A node not heard for so long is suspected: its groups' followers elect another leader as
    /// soon as its lease is out.
    pub silence_max: Duration,
    /// How long a follower lets the one before it, by replica id, try first.
    pub election_stagger: Duration,
    /// What bounds a group's queue of proposals and its entries.
    pub limits: Limits,
    /// What replicas may have applied and not flushed.
    pub checkpoints: checkpointer::Limits,
    /// How often logs are purged.
    pub purge_interval: Duration,
    /// Entries kept behind what is flushed, for followers that are a little behind.
    pub log_entries_kept: u64,
    /// The same in bytes, whichever is less: what entries brought that is no state's any more lies
    /// on disk for as long.
    pub log_bytes_kept: u64,
    /// Bytes of a log kept for followers that are alive and behind; beyond, they get a snapshot.
    pub log_bytes_kept_max: u64,
    /// Nothing is kept for a follower whose node was not heard for so long.
    pub follower_away_max: Duration,
    /// Snapshots sent at a time, and taken at a time.
    pub transfers_max: usize,
    /// Bytes of snapshots that the node sends per second.
    pub transfer_bytes_per_second: u64,
    /// Snapshots pause while more than one of a hundred calls takes longer; zero: never.
    pub foreground_p99_max: Duration,
    /// A snapshot that takes longer is given up: its view holds up compaction.
    pub transfer_time_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            heartbeat_interval: Duration::from_millis(200),
            election_timeout_min: Duration::from_millis(400),
            election_timeout_max: Duration::from_millis(500),
            silence_max: Duration::from_millis(250),
            election_stagger: Duration::from_millis(60),
            limits: Limits::default(),
            checkpoints: checkpointer::Limits::default(),
            purge_interval: Duration::from_secs(5),
            log_entries_kept: 1_024,
            log_bytes_kept: 4 << 20,
            log_bytes_kept_max: 64 << 20,
            follower_away_max: Duration::from_secs(10),
            transfers_max: 2,
            transfer_bytes_per_second: 128 << 20,
            foreground_p99_max: Duration::ZERO,
            transfer_time_max: Duration::from_secs(30 * 60),
        }
    }
}

impl Config {
    /// How long a follower waits beyond the lease.
    pub(super) fn election_timeouts(&self) -> Range<Duration> {
        self.election_timeout_min..self.election_timeout_max
    }

    /// openraft's part of it.
    pub(super) fn openraft(&self) -> Result<openraft::Config, Error> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: "statehouse".to_owned(),
            heartbeat_interval: millis(self.heartbeat_interval),
            // A follower that has just answered an append needs no heartbeat.
            heartbeat_min_interval: Some(millis(self.heartbeat_interval / 2)),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            enable_pre_vote: Some(true),
            // The node beats and elects for all of its groups at once: `pulse.rs`.
            enable_heartbeat: false,
            enable_tick: false,
            // A leader sends entries before it has synced them itself. Were it to lead on in the
            // same term after a crash, it could send others under the same index and term.
            enable_leader_restore: Some(false),
            quorum_loss_probe_interval: Some(2 * millis(self.election_timeout_max)),
            // Purging is the checkpointer's.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| Error::Invalid(format!("raft timings: {error}")))
    }
}
