//! Damage: rows that were acknowledged and can no longer be read as they were written.
//!
//! A bit flipped at rest, a truncated or missing file, a row whose checksum or format is wrong. It
//! is found when a store is opened, when a row is read, or by a scrub, and it is never served. What
//! happens next depends on whether other nodes hold the same rows: [`DamagePolicy`].
//!
//! Not here: a disk that refuses a write or a sync. That stops the whole store (`failure.rs`).

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::ids::ReplicaId;

/// One place on disk that does not hold what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The replica whose rows are affected; `None` if all of the node's replicas may be.
    pub replica: Option<ReplicaId>,
    /// The damaged file; `None` if RocksDB did not name one.
    pub file: Option<PathBuf>,
    /// The offset of the damage in the file, in bytes, if it is known.
    pub offset: Option<u64>,
    /// The problem: what was expected, and what was found.
    pub detail: String,
}

/// What a store does at its opening with replicas that have lost acknowledged rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DamagePolicy {
    /// Refuses to open and changes nothing: nobody else holds the rows.
    #[default]
    Refuse,
    /// Opens, and quarantines the replicas: other nodes hold their rows, and rebuild them.
    Quarantine,
}

/// A listener for damage; called on the thread that found it, so it must not block.
pub type DamageHook = Box<dyn Fn(&Damage) + Send + Sync>;

/// The damage found since the store was opened, and at its opening.
#[derive(Default)]
pub(crate) struct DamageLog {
    found: Mutex<Vec<Damage>>,
    hooks: Mutex<Vec<DamageHook>>,
    reported: AtomicU64,
}

/// Places remembered; more are reported to listeners and logged, and not kept.
const DAMAGES_MAX: usize = 1_024;

impl DamageLog {
    /// Records damage and tells the listeners. A place that is known already is not told again.
    pub fn report(&self, damage: &Damage) {
        {
            let mut found = self.found.lock();
            if found.contains(damage) {
                return;
            }
            self.reported.fetch_add(1, Ordering::Relaxed);
            if found.len() < DAMAGES_MAX {
                found.push(damage.clone());
            }
        }
        tracing::error!(target: "audit", %damage, "damage found on disk");
        for hook in self.hooks.lock().iter() {
            hook(damage);
        }
    }

    /// Returns how many places were reported so far, each once as long as it is remembered.
    pub fn reported(&self) -> u64 {
        self.reported.load(Ordering::Relaxed)
    }

    /// Returns the damage found so far.
    pub fn found(&self) -> Vec<Damage> {
        self.found.lock().clone()
    }

    /// Forgets what was found of a replica: it was mended before anybody could be told.
    pub fn forget(&self, replica: ReplicaId) {
        self.found.lock().retain(|damage| damage.replica != Some(replica));
    }

    /// Calls the hook for each damage found so far and from now on.
    pub fn on_damage(&self, hook: DamageHook) {
        self.hooks.lock().push(hook);
        let known = self.found();
        let hooks = self.hooks.lock();
        let hook = hooks.last().expect("the hook was pushed just now and none is removed");
        for damage in &known {
            hook(damage);
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.replica {
            Some(replica) => write!(out, "replica {replica}: ")?,
            None => write!(out, "all replicas: ")?,
        }
        if let Some(file) = &self.file {
            write!(out, "{}", file.display())?;
            if let Some(offset) = self.offset {
                write!(out, " at byte {offset}")?;
            }
            write!(out, ": ")?;
        }
        write!(out, "{}", self.detail)
    }
}
