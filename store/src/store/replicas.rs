//! What an opening finds in a database: whose it is, which replicas it has, and which of them have
//! lost rows.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Inner;
use crate::damage::{Damage, DamagePolicy};
use crate::db::{Mutation, Walk};
use crate::disk::{Replica, decode_descriptor};
use crate::error::Error;
use crate::ids::ReplicaId;
use crate::keys::{self, STORE_FORMAT};
use crate::{set_aside, tables};

impl Inner {
    /// The database must be of our format and belong to this directory.
    pub(super) fn check_identity(&self) -> Result<(), Error> {
        let (db, meta) = (&self.disk.db, &self.disk.meta);
        let Some(format) = db.fetch(meta, keys::FORMAT)? else {
            let names = db.family_names(&self.database)?;
            if names.iter().any(|name| keys::parse_family(name).is_some()) {
                return Err(Error::corrupt("store", "it has replicas and no row of its format"));
            }
            let put = |key: &[u8], value: &[u8]| Mutation::Put {
                family: meta.clone(),
                key: key.to_vec(),
                value: Bytes::copy_from_slice(value),
            };
            let mut rows = vec![put(keys::FORMAT, &[STORE_FORMAT]), put(keys::STORE_ID, &self.id)];
            if self.damage_policy() == DamagePolicy::Quarantine {
                // It takes the place of a database that was set aside. Without the facts the node
                // would take itself for the first of a new cluster.
                let missing = "its database is gone, and the copy of its facts is not whole";
                let facts = self.facts.read()?.ok_or_else(|| Error::corrupt("store", missing))?;
                rows.extend(facts.iter().map(|(key, value)| put(key, value)));
                rows.push(put(&keys::node(set_aside::FACT), b"1"));
            }
            return self.disk.commit.write_and_wait(rows);
        };
        let found = u32::from(format.first().copied().unwrap_or_default());
        let supported = u32::from(STORE_FORMAT);
        if found > supported {
            return Err(Error::NewerFormat { found, supported });
        }
        if found < supported {
            // From here on an older program would leave rows behind that are not true any more.
            let put = Mutation::Put {
                family: meta.clone(),
                key: keys::FORMAT.to_vec(),
                value: Bytes::from_static(&[STORE_FORMAT]),
            };
            self.disk.commit.write_and_wait(vec![put])?;
        }
        let id = db.fetch(meta, keys::STORE_ID)?;
        if id.as_deref() != Some(&self.id[..]) {
            return Err(Error::corrupt("store", "its database belongs to another directory"));
        }
        Ok(())
    }

    /// Opens every replica with a descriptor; column families that none names are leftovers.
    pub(super) fn open_replicas(
        &self,
        quarantined: &BTreeMap<ReplicaId, u64>,
    ) -> Result<(), Error> {
        let mut families = Vec::new();
        let (db, meta) = (&self.disk.db, &self.disk.meta);
        db.walk(meta, keys::descriptors(), Walk::Few, &mut |row, value| {
            let generation = decode_descriptor(Bytes::copy_from_slice(value))?;
            let id = keys::replica_of_descriptor(row)
                .ok_or_else(|| Error::corrupt("replica's descriptor", "its key is malformed"))?;
            families.push((id, generation));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut damages = Vec::new();
        for (id, generation) in &families {
            match quarantined.get(id) {
                Some(generation) => self.open_hollow(*id, *generation)?,
                None => damages.extend(self.open_or_quarantine(*id, *generation)?),
            }
        }
        if !damages.is_empty() && self.damage_policy() == DamagePolicy::Refuse {
            return Err(Error::Damaged { damages: damages.into() });
        }
        for name in db.family_names(&self.database)? {
            if let Some(family) = keys::parse_family(&name)
                && !families.contains(&family)
            {
                tracing::info!(family = name, "dropping what is left of a replica");
                db.drop_family(&name)?;
            }
        }
        Ok(())
    }

    /// Opens a replica, or puts one that has lost rows into quarantine and answers what it lost.
    fn open_or_quarantine(&self, id: ReplicaId, number: u64) -> Result<Vec<Damage>, Error> {
        let disk = &self.disk;
        let of_it = |damage: &Damage| damage.replica == Some(id);
        let opened = match disk.damage.found().iter().any(of_it) {
            true => Err(Error::quarantined(id)),
            false => disk.seen(id, self.check_and_open(id, number)),
        };
        match opened {
            Ok(()) => return Ok(Vec::new()),
            Err(Error::Corrupt { .. } | Error::Replica { .. }) => {}
            Err(error) => return Err(error),
        }
        let damages = disk.damage.found().into_iter().filter(of_it).collect();
        if self.damage_policy() == DamagePolicy::Refuse {
            return Ok(damages);
        }
        let name = keys::family(id, number);
        if disk.db.family(&name).is_none() {
            disk.db.create_family(&name)?;
        }
        self.open_hollow(id, number)?;
        Ok(damages)
    }

    fn check_and_open(&self, id: ReplicaId, number: u64) -> Result<(), Error> {
        if let Some(family) = self.disk.db.family(&keys::family(id, number)) {
            tables::check_log(&self.disk, id, &family)?;
        }
        self.open_replica(id)
    }

    pub(crate) fn open_replica(&self, id: ReplicaId) -> Result<(), Error> {
        let disk = &self.disk;
        let replica = Replica::open(&disk.db, (&disk.log, &disk.meta), id, disk.cache.space())?;
        disk.replicas.write().insert(id, Arc::new(replica));
        Ok(())
    }
}
