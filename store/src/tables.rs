//! What a start looks at before it trusts a database's tables and blob files.
//!
//! Each live file must be there and have its length and its ends; that takes a few reads a file.
//! What is inside is checked when it is read, and by the scrub. A damaged file is laid at the door
//! of the replicas whose rows it has: a table of the log at those whose entries lie between its
//! ends.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::damage::{Damage, DamageLog};
use crate::db::{Db, Family, Mutation, Walk};
use crate::disk::{Disk, decode_applied, decode_purged, encode_purged};
use crate::encoding::id_of_row;
use crate::error::Error;
use crate::files::{self, LiveFile, Manifest};
use crate::ids::{EntryId, ReplicaId};
use crate::keys;
use crate::proof::entry_problem;

/// Bytes of an entry's row that are enough to say which entry it is.
const HEAD_BYTES: usize = 64;

/// Returns what is wrong with the tables, blob files and lists of files of the database in a
/// directory, without opening it. `Damaged` if it has no list of files that can be read. A
/// `CURRENT` that is damaged is written again where there is no doubt what it said.
pub(crate) fn damage_of_tables(database: &Path) -> Result<Vec<Damage>, Error> {
    let Some(manifest) = files::read_or_restore(database)? else { return Ok(Vec::new()) };
    let mut damages = Vec::new();
    if let Some(unlisted) = files::unlisted(database, &manifest)? {
        let detail = format!("it lists no files, and {unlisted} are there: it has been cut short");
        let file = Some(database.join("CURRENT"));
        return Ok(vec![Damage { replica: None, file, offset: None, detail }]);
    }
    for live in manifest.files() {
        if let Some(broken) = files::check_size(database, &live)? {
            let damage = Damage {
                replica: None,
                file: Some(database.join(live.name())),
                offset: Some(broken.offset),
                detail: broken.detail,
            };
            damages.extend(blamed(&damage, &live, &manifest));
        }
    }
    Ok(damages)
}

/// The damage of a file, once for each replica that may have rows in it.
pub(crate) fn blamed(damage: &Damage, live: &LiveFile, manifest: &Manifest) -> Vec<Damage> {
    let replicas: Vec<Option<ReplicaId>> = match (live.family.as_str(), &live.keys) {
        (keys::LOG_FAMILY, Some((first, last))) => {
            let replica = |row: &[u8]| keys::replica_of_row(keys::LOG_FAMILY, row);
            // Behind all entries lies the number of the last commit.
            let ends = [replica(first), replica(last).or(Some(ReplicaId(u64::MAX)))];
            let mut ids: Vec<_> = manifest.families().filter_map(keys::parse_family).collect();
            ids.sort_unstable();
            ids.dedup_by_key(|(id, _)| *id);
            let ids = ids.into_iter().map(|(id, _)| Some(id));
            ids.filter(|id| ends[0] <= *id && *id <= ends[1]).collect()
        }
        (family, _) => vec![keys::replica_of_row(family, &[])],
    };
    replicas.into_iter().map(|replica| Damage { replica, ..damage.clone() }).collect()
}

/// What an opening that failed is answered: the damage that it met, if that was it.
pub(crate) fn as_damage(error: Error, log: &DamageLog) -> Error {
    let found = log.found();
    match error {
        Error::Corrupt { .. } if !found.is_empty() => Error::Damaged { damages: found.into() },
        error => error,
    }
}

/// Damage that RocksDB has met while it opened, with the replicas it concerns.
pub(crate) fn whose(database: &Path, damages: &[Damage]) -> Vec<Damage> {
    let Ok(Some(manifest)) = files::read_or_restore(database) else { return damages.to_vec() };
    let files = manifest.files();
    let whose = |damage: &Damage| {
        let name = damage.file.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        match files.iter().find(|live| Some(live.name().as_str()) == name) {
            Some(live) => blamed(damage, live, &manifest),
            None => vec![damage.clone()],
        }
    };
    damages.iter().flat_map(whose).collect()
}

/// Checks that a replica's log can be read from its first entry to its last, without gaps, and that
/// it meets what is applied: a list of files cut short, or a row that came back from an older
/// table, would leave a gap. Reads the log, and the payloads that a start needs: those of entries
/// that are not applied, and of the first one, which Raft reads to learn its term.
///
/// Entries that can't be read and whose changes are in files are needed by nobody here: the log is
/// purged of them, and other replicas that lack them get all rows instead.
pub(crate) fn check_log(disk: &Disk, id: ReplicaId, family: &Family) -> Result<(), Error> {
    let (db, meta) = (&disk.db, &disk.meta);
    let applied = decode_applied(db.fetch(family, keys::APPLIED)?)?.id;
    let purged = db.fetch(meta, &keys::purged(id))?;
    let purged = purged.map_or(Ok(EntryId::default()), |row| decode_purged(&row))?;
    if applied.index < purged.index {
        let (applied, purged) = (applied.index, purged.index);
        let detail = format!("its rows end at entry {applied}, its log is purged through {purged}");
        return Err(Error::corrupt("replica", detail));
    }
    let log = StoredLog { disk, family, id, applied: applied.index };
    let broken = match log.walk(purged.index + 1) {
        Ok(()) => return Ok(()),
        Err(broken) => broken,
    };
    if applied.index == purged.index || log.walk(applied.index + 1).is_err() {
        return Err(broken);
    }
    disk.commit.write_and_wait(vec![
        Mutation::DeleteRange {
            family: disk.log.clone(),
            start: keys::entry(id, 0),
            end: keys::entry(id, applied.index + 1),
        },
        Mutation::Put {
            family: meta.clone(),
            key: keys::purged(id),
            value: encode_purged(applied),
        },
    ])?;
    disk.damage.forget(id);
    let through = applied.index;
    tracing::warn!(target: "audit", replica = %id, %broken, through, "purged a log of it");
    Ok(())
}

/// Returns what keeps a replica to come from having a log: a table that can't be opened at all,
/// such as one that is missing, fails every reading of the log, whosever entries it holds.
pub(crate) fn damage_of_log(database: &Path, db: &Arc<Db>) -> Result<Option<Damage>, Error> {
    let missing = || Error::corrupt("database", "it has no family for the log");
    let log = db.family(keys::LOG_FAMILY).ok_or_else(missing)?;
    // In front of all rows: what can't be read there is no replica's.
    let range = (Vec::new(), vec![0]);
    match db.walk(&log, range, Walk::Few, &mut |_, _| Ok(ControlFlow::Continue(()))) {
        Err(error @ Error::Corrupt { .. }) => {
            Ok(Some(Damage::of_node(database, &error.to_string())))
        }
        walked => walked.map(|()| None),
    }
}

/// One replica's log on disk.
struct StoredLog<'a> {
    disk: &'a Disk,
    /// The family that the payloads lie in.
    family: &'a Family,
    id: ReplicaId,
    /// The index of the last entry applied.
    applied: u64,
}

impl StoredLog<'_> {
    /// Reads the entries from an index on: each there, each with a head that makes sense, and with
    /// the payloads that a start needs.
    fn walk(&self, first: u64) -> Result<(), Error> {
        let range = (keys::entry(self.id, first), keys::entry(self.id, u64::MAX));
        let (mut next, all) = (first, Walk::Ahead { keep: false });
        self.disk.db.walk(&self.disk.log, range, all, &mut |key, row| {
            if keys::index_of_entry(key) != Some(next) {
                return Err(Error::corrupt("log", format!("entry {next} is missing")));
            }
            let head = Bytes::copy_from_slice(&row[..row.len().min(HEAD_BYTES)]);
            let found = id_of_row(&head).map_err(|error| Error::corrupt("log row", error))?;
            if found.index != next {
                let detail = format!("entry {} lies in the place of entry {next}", found.index);
                return Err(Error::corrupt("log row", detail));
            }
            if next == first || next > self.applied {
                self.check_payloads(row)?;
            }
            next += 1;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn check_payloads(&self, row: &[u8]) -> Result<(), Error> {
        let row = Bytes::copy_from_slice(row);
        let problem = entry_problem(&self.disk.db, self.family, row, true)?;
        problem.map_or(Ok(()), |problem| Err(Error::corrupt("log", problem)))
    }
}
