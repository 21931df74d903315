//! Repairing a store that is not open: what is damaged, and going on without it.
//!
//! [`inspect_damage`] reads every file and changes nothing. [`accept_loss`] is for a node whose
//! rows nobody else holds: it keeps what is whole and returns what is gone. In the log it puts
//! entries that do nothing where entries are lost, so that those behind them can be applied; tables
//! and blob files are `salvage.rs`.
//!
//! Not for a node of a cluster whose shards have other replicas: entries of the same index would
//! differ between them. Such a store has [`DamagePolicy::Quarantine`] and is left as it is.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::command::{Body, Entry};
use crate::config::Config;
use crate::damage::{Damage, DamagePolicy};
use crate::db::{Batch, Db, Family, Walk};
use crate::directory::Directory;
use crate::disk::{decode_applied, encode_descriptor, encode_purged};
use crate::encoding::id_of_row;
use crate::error::Error;
use crate::files::{self, Reading};
use crate::ids::{CollectionId, EntryId, ReplicaId};
use crate::keys;
use crate::ledger::{Claim, Ledger};
use crate::opening::{Diagnosis, diagnose, look};
use crate::proof::{Depth, Held};
use crate::salvage::{Lost, salvage_tables};
use crate::tables::blamed;
use crate::witness::Witness;

/// Entries of one replica that are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The replica.
    pub replica: ReplicaId,
    /// The first lost entry's index.
    pub first: u64,
    /// The last lost entry's index.
    pub last: u64,
    /// The states that these entries seem to have changed, as far as the damaged bytes can be read.
    pub keys: Vec<(CollectionId, Bytes)>,
}

/// What was given up so that a store opens again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Entries of the logs.
    pub entries: Vec<Loss>,
    /// Rows of tables and blob files.
    pub rows: Vec<Lost>,
}

/// Returns the damage in a directory's store. Changes nothing, but for a damaged `CURRENT` of which
/// there is no doubt what it named. Reads every file. `InUse` if the store is open.
pub fn inspect_damage(dir: &Path) -> Result<Vec<Damage>, Error> {
    let directory = Directory::existing(dir)?;
    let mut damages = diagnose(&directory, &Config::default())?.damages;
    // One that can't be read is among the damages.
    let Ok(manifest) = files::read(&directory.database) else { return Ok(damages) };
    for live in manifest.files() {
        let path = directory.database.join(live.name());
        if damages.iter().any(|known| known.file.as_ref() == Some(&path)) {
            continue;
        }
        let opened = files::open_without_cache(&path)
            .map_err(|error| Error::io("open a file to check", error))?;
        if let Reading::Broken(broken) =
            files::verify(&opened, &live, &mut |_| ControlFlow::Continue(()))?
        {
            let (offset, detail) = (Some(broken.offset), broken.detail);
            let damage = Damage { replica: None, file: Some(path), offset, detail };
            damages.extend(blamed(&damage, &live, &manifest));
        }
    }
    Ok(damages)
}

/// Returns what the next opening of a directory's store does with damage.
pub fn damage_policy(dir: &Path) -> Result<DamagePolicy, Error> {
    Ok(DamagePolicy::read(&Directory::existing(dir)?.policy))
}

/// Keeps what is whole of a damaged store so that it opens again, and returns what is lost. Reads
/// everything.
///
/// `InUse` if the store is open; `Damaged` if not even the node's own facts are left. A store
/// without damage, and one whose replicas are rebuilt from other nodes, is left as it is.
pub fn accept_loss(dir: &Path) -> Result<Accepted, Error> {
    if damage_policy(dir)? == DamagePolicy::Quarantine {
        return Ok(Accepted::default());
    }
    let entries = accept_loss_of_log(dir)?;
    Ok(Accepted { entries, rows: salvage_tables(dir)? })
}

/// Whether a damage is in a table or blob file, not in the log or in what is known of it.
fn is_of_table(damage: &Damage) -> bool {
    let kind = damage.file.as_deref().and_then(Path::extension);
    kind.is_some_and(|kind| kind == "sst" || kind == "blob")
}

fn accept_loss_of_log(dir: &Path) -> Result<Vec<Loss>, Error> {
    let directory = Directory::existing(dir)?;
    let config = Config::default();
    let diagnosis = diagnose(&directory, &config)?;
    if diagnosis.damages.iter().all(is_of_table) {
        return Ok(Vec::new());
    }
    if diagnosis.is_hopeless() {
        return Err(Error::Damaged { damages: diagnosis.damages.into() });
    }
    let recovery = diagnosis.prepare(&directory)?;
    let db = look(&directory, &config, recovery)?;
    let mut repair = Repair::new(db, &diagnosis)?;
    repair.replicas()?;
    let losses = repair.losses;
    let db = repair.db;
    flush_all(&db, &directory.database)?;
    let mut ledger = Held::read(&db, Depth::Ends)?.ledger;
    for (id, claim) in diagnosis.claimed.replicas.iter().filter(|(_, claim)| claim.quarantined) {
        ledger.replicas.insert(*id, claim.clone());
    }
    Witness::start(directory.synced, &ledger, Arc::default())?.close(Some(&ledger))?;
    db.stop_background_work();
    Ok(losses)
}

/// Writes all that is in memory to files.
pub(crate) fn flush_all(db: &Arc<Db>, database: &Path) -> Result<(), Error> {
    db.sync()?;
    for name in db.family_names(database)? {
        if let Some(family) = db.family(&name) {
            db.flush(&family)?;
        }
    }
    Ok(())
}

/// A repair under way.
struct Repair<'a> {
    db: Arc<Db>,
    log: Family,
    meta: Family,
    held: Ledger,
    claimed: &'a Ledger,
    /// What damaged bytes say about entries.
    likely: BTreeMap<(ReplicaId, u64), Vec<(CollectionId, Bytes)>>,
    losses: Vec<Loss>,
}

impl<'a> Repair<'a> {
    fn new(db: Arc<Db>, diagnosis: &'a Diagnosis) -> Result<Self, Error> {
        let missing = |what| Error::corrupt("database", format!("it has no family {what:?}"));
        let log = db.family(keys::LOG_FAMILY).ok_or(missing(keys::LOG_FAMILY))?;
        let meta = db.family(keys::META_FAMILY).ok_or(missing(keys::META_FAMILY))?;
        let held = Held::read(&db, Depth::Ends)?.ledger;
        let found = diagnosis.survey.breaks.iter().flat_map(|found| &found.likely);
        let likely = found.map(|it| ((it.replica, it.entry.index), it.keys.clone())).collect();
        let (claimed, losses) = (&diagnosis.claimed, Vec::new());
        Ok(Repair { db, log, meta, held, claimed, likely, losses })
    }

    fn replicas(&mut self) -> Result<(), Error> {
        let claims = self.claimed.commit > 0;
        let mut ids: Vec<ReplicaId> = self.held.replicas.keys().copied().collect();
        ids.extend(self.claimed.replicas.keys());
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            match self.claimed.replicas.get(&id) {
                Some(claim) if claim.quarantined => {}
                Some(claim) => self.replica(id, &claim.clone())?,
                None if claims && self.held.commit <= self.claimed.commit => self.drop(id)?,
                None => self.replica(id, &self.held.replicas[&id].clone())?,
            }
        }
        Ok(())
    }

    /// A replica that had been dropped, before that was lost.
    fn drop(&mut self, id: ReplicaId) -> Result<(), Error> {
        let mut batch = Batch::default();
        for key in [keys::descriptor(id), keys::vote(id), keys::purged(id)] {
            batch.delete(&self.meta, &key);
        }
        batch.delete_range(&self.log, &keys::entry(id, 0), &keys::entry(id, u64::MAX));
        self.db.write(batch)
    }

    fn replica(&mut self, id: ReplicaId, claim: &Claim) -> Result<(), Error> {
        let name = keys::family(id, claim.generation);
        if self.db.family(&name).is_none() {
            self.db.create_family(&name)?;
        }
        let missing = || Error::corrupt("database", format!("it has no family {name:?}"));
        let family = self.db.family(&name).ok_or_else(missing)?;
        let mut batch = Batch::default();
        batch.put(&self.meta, &keys::descriptor(id), &encode_descriptor(claim.generation));
        let held = self.held.replicas.get(&id).cloned().unwrap_or_default();
        if let Some((sum, Some(vote))) = &claim.vote
            && held.vote.as_ref().map(|held| held.0) != Some(*sum)
            && self.held.commit <= self.claimed.commit
        {
            batch.put(&self.meta, &keys::vote(id), vote);
        }
        let applied = decode_applied(self.db.fetch(&family, keys::APPLIED)?)?.id;
        let mut purged = held.purged;
        if applied.index < purged.index {
            // Its states are older than the log's beginning: the entries between are lost.
            purged = applied;
            batch.put(&self.meta, &keys::purged(id), &encode_purged(applied));
        }
        let end = self.entries(id, &family, (purged, applied), &mut batch)?;
        if end < claim.last.index {
            self.lost(id, end + 1, claim.last.index);
        }
        self.db.write(batch)
    }

    /// Puts blank entries where some are missing or can't be read. Returns the last index.
    fn entries(
        &mut self,
        id: ReplicaId,
        family: &Family,
        (purged, applied): (EntryId, EntryId),
        batch: &mut Batch,
    ) -> Result<u64, Error> {
        let mut expected = EntryId { index: purged.index + 1, term: purged.term };
        let (mut blanks, mut stale) = (Vec::new(), None);
        let range = (keys::entry(id, expected.index), keys::entry(id, u64::MAX));
        let (db, log) = (self.db.clone(), self.log.clone());
        db.walk(&log, range, Walk::Few, &mut |key, value| {
            let row = Bytes::copy_from_slice(value);
            let Some(index) = keys::index_of_entry(key) else {
                return Ok(ControlFlow::Continue(()));
            };
            let term = id_of_row(&row).ok().filter(|found| found.index == index);
            if term.is_some_and(|found| found.term < expected.term) {
                // What follows was truncated, and that is what was lost.
                stale = Some(index);
                return Ok(ControlFlow::Break(()));
            }
            blanks.extend((expected.index..index).map(|index| EntryId { index, ..expected }));
            let whole = term.is_some()
                && crate::proof::entry_problem(&db, family, row, index > applied.index)?.is_none();
            if !whole {
                blanks.push(EntryId { index, ..expected });
            }
            let term = term.map_or(expected.term, |found| found.term);
            expected = EntryId { index: index + 1, term };
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(from) = stale {
            batch.delete_range(&log, &keys::entry(id, from), &keys::entry(id, u64::MAX));
        }
        for blank in &blanks {
            let row = Entry::new(blank.index, blank.term, Body::Blank).encode_row();
            batch.put(&log, &keys::entry(id, blank.index), &row);
        }
        let mut indexes = blanks.iter().map(|blank| blank.index).peekable();
        while let Some(first) = indexes.next() {
            let mut last = first;
            while indexes.next_if(|next| *next == last + 1).is_some() {
                last += 1;
            }
            self.lost(id, first, last);
        }
        Ok(expected.index - 1)
    }

    fn lost(&mut self, replica: ReplicaId, first: u64, last: u64) {
        let range = (replica, first)..=(replica, last);
        let mut keys: Vec<_> =
            self.likely.range(range).flat_map(|(_, keys)| keys.clone()).collect();
        keys.sort();
        keys.dedup();
        self.losses.push(Loss { replica, first, last, keys });
    }
}
