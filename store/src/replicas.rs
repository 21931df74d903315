//! Makes replicas and drops them: each can be asked for again after it was refused or failed.
//!
//! A replica is its descriptor. A column family without one is what an attempt left: an empty one
//! when a replica could not be made, a full one when it could be dropped but for its family. Nobody
//! reads either, whoever makes or drops the replica next takes it away, and so does a start.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::commit::Job;
use crate::db::Mutation;
use crate::disk::{Replica, encode_descriptor};
use crate::error::{Error, ReplicaProblem};
use crate::ids::ReplicaId;
use crate::keys;
use crate::store::{Inner, Store};

impl Store {
    /// Makes an empty replica. Blocks until it is durable.
    ///
    /// On an error there is no replica, and it may be tried again: `Overloaded` when the commit
    /// queue is full.
    pub fn create_replica(&self, id: ReplicaId) -> Result<(), Error> {
        let inner = self.inner();
        inner.disk.failure.check()?;
        let _changing = inner.disk.changing.lock();
        if inner.disk.replicas.read().contains_key(&id) {
            return Err(Error::Replica { replica: id, problem: ReplicaProblem::Exists });
        }
        inner.drop_leftovers(id)?;
        let name = keys::family(id, 0);
        inner.disk.db.create_family(&name)?;
        let made = inner.disk.commit.write_and_wait(vec![Mutation::Put {
            family: inner.disk.meta.clone(),
            key: keys::descriptor(id),
            value: encode_descriptor(0),
        }]);
        if let Err(error) = made {
            if let Err(error) = inner.disk.db.drop_family(&name) {
                tracing::warn!(%error, family = name, "family of a replica not made stays");
            }
            return Err(error);
        }
        inner.open_replica(id)
    }

    /// Drops a replica: its states, its log, its vote. Blocks until that is durable. Handles to
    /// it answer from then on that it does not exist.
    ///
    /// On `Overloaded`, when the commit queue is full, the replica is as it was. On any other error
    /// it is gone, or will be with the next start, and this may be called again.
    pub fn drop_replica(&self, id: ReplicaId) -> Result<(), Error> {
        let inner = self.inner();
        inner.disk.failure.check()?;
        let _changing = inner.disk.changing.lock();
        let Some(replica) = inner.disk.replicas.read().get(&id).cloned() else {
            return match inner.drop_leftovers(id)? {
                0 => Err(Error::missing(id)),
                _ => Ok(()),
            };
        };
        inner.forget(&replica)?;
        inner.disk.db.drop_family(&keys::family(id, replica.generation().number))
    }
}

impl Inner {
    /// Deletes a replica's rows outside its family, and it from memory. Blocks until that is
    /// durable.
    fn forget(&self, replica: &Arc<Replica>) -> Result<(), Error> {
        let id = replica.id;
        let (meta, log) = (&self.disk.meta, &self.disk.log);
        let delete = |key| Mutation::Delete { family: meta.clone(), key };
        let (start, end) = (keys::entry(id, 0), keys::entry(id, u64::MAX));
        let mutations = vec![
            delete(keys::descriptor(id)),
            delete(keys::vote(id)),
            delete(keys::purged(id)),
            Mutation::DeleteRange { family: log.clone(), start, end },
        ];
        let (sender, durable) = crossbeam_channel::bounded(1);
        let done = Box::new(move |result| {
            // The receiver waits below.
            let _ = sender.send(result);
        });
        let gone = {
            // Under the log's lock: no job for it can follow those that delete it.
            let mut log = replica.log.lock();
            self.disk.commit.push_urgent(Job::synced(mutations, done))?;
            replica.dropped.store(true, Ordering::Release);
            log.forget_through(u64::MAX)
        };
        self.disk.replicas.write().remove(&id);
        self.disk.tail_bytes.fetch_sub(gone, Ordering::Relaxed);
        let ended = || Error::io("drop a replica", "the commit thread ended");
        durable.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Drops the families of a replica that is not there. Answers how many there were.
    fn drop_leftovers(&self, id: ReplicaId) -> Result<usize, Error> {
        let mut dropped = 0;
        for name in self.disk.db.family_names(&self.database)? {
            if keys::parse_family(&name).is_some_and(|(replica, _)| replica == id) {
                tracing::info!(family = name, "dropping what is left of a replica");
                self.disk.db.drop_family(&name)?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}
