//! What a store does about damage: remembers and reports it, and keeps replicas in quarantine.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Inner, Store};
use crate::damage::{Damage, DamageHook, DamagePolicy};
use crate::db::Mutation;
use crate::disk::{Replica, encode_descriptor};
use crate::error::Error;
use crate::ids::ReplicaId;
use crate::keys;

impl Store {
    /// Returns the damage found at the opening and since.
    pub fn damages(&self) -> Vec<Damage> {
        self.inner.disk.damage.found()
    }

    /// Calls the hook for each damage found so far and from now on, on the thread that finds it: it
    /// must not block.
    pub fn on_damage(&self, hook: DamageHook) {
        self.inner.disk.damage.on_damage(hook);
    }

    /// Records damage that somebody above has found, such as an entry that can't be applied or a
    /// hash that differs from other replicas' at the same entry.
    pub fn report_damage(&self, damage: &Damage) {
        self.inner.disk.damage.report(damage);
    }

    /// Quarantines a replica: from then on nothing is read from it or written to it, though it can
    /// be dropped. Not durable: what is damaged is found again at the next opening, or by a read.
    pub fn quarantine(&self, id: ReplicaId) -> Result<(), Error> {
        self.inner.replica(id)?.quarantined.store(true, Ordering::Release);
        Ok(())
    }

    /// Returns the replicas in quarantine, in order.
    pub fn quarantined(&self) -> Vec<ReplicaId> {
        let replicas = self.inner.disk.replicas.read();
        let quarantined = |replica: &&Arc<Replica>| replica.quarantined.load(Ordering::Acquire);
        replicas.values().filter(quarantined).map(|replica| replica.id).collect()
    }

    /// Returns what an opening does with replicas that have lost acknowledged rows.
    pub fn damage_policy(&self) -> DamagePolicy {
        self.inner.damage_policy()
    }

    /// Sets what the next opening does with replicas that have lost acknowledged rows. Durable when
    /// it returns.
    pub fn set_damage_policy(&self, policy: DamagePolicy) -> Result<(), Error> {
        let _changing = self.inner.disk.changing.lock();
        match DamagePolicy::read(&self.inner.policy) == policy {
            true => Ok(()),
            false => policy.write(&self.inner.policy),
        }
    }
}

impl Inner {
    /// Returns what an opening does with replicas that have lost rows.
    pub(super) fn damage_policy(&self) -> DamagePolicy {
        DamagePolicy::read(&self.policy)
    }

    /// Writes descriptors again that were lost: a replica in quarantine is there until it is
    /// dropped.
    pub(super) fn restore(&self, descriptors: &[(ReplicaId, u64)]) -> Result<(), Error> {
        if descriptors.is_empty() {
            return Ok(());
        }
        let put = |(id, generation): &(ReplicaId, u64)| Mutation::Put {
            family: self.disk.meta.clone(),
            key: keys::descriptor(*id),
            value: encode_descriptor(*generation),
        };
        self.disk.commit.write_and_wait(descriptors.iter().map(put).collect())
    }

    /// Opens a replica in quarantine, of which nothing is read.
    pub(super) fn open_hollow(&self, id: ReplicaId, generation: u64) -> Result<(), Error> {
        let (disk, name) = (&self.disk, keys::family(id, generation));
        let missing = || Error::corrupt("database", format!("it has no family {name:?}"));
        let family = disk.db.family(&name).ok_or_else(missing)?;
        let replica = Replica::hollow(id, generation, family, disk.cache.space());
        disk.replicas.write().insert(id, Arc::new(replica));
        tracing::warn!(target: "audit", replica = %id, "replica is in quarantine");
        Ok(())
    }
}
