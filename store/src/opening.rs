//! Opening a database without losing acknowledged rows silently.
//!
//! Before RocksDB changes anything the write-ahead log is read (`wal.rs`) and compared with what
//! the file `synced` claims (`witness.rs`). What comes out is one of three:
//!
//! - *whole*: every commit that was synced is there. RocksDB opens in the mode that refuses any bad
//!   record, so that it can't drop one either.
//! - *torn*: the log ends in records that were never synced, so nobody was told of them. That end
//!   is cut off, and the rest is whole.
//! - *damaged*: the opening is refused and nothing is changed, or, where other nodes hold the same
//!   rows ([`DamagePolicy::Quarantine`]), everything that is whole is opened and the replicas that
//!   have lost something are put in quarantine.
//!
//! Where the log alone does not tell, the database is opened read-only and looked at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::damage::{Damage, DamageLog, DamagePolicy};
use crate::db::{Db, Opening, Recovery};
use crate::directory::{Directory, replace_file};
use crate::error::Error;
use crate::ids::ReplicaId;
use crate::keys;
use crate::ledger::Ledger;
use crate::proof::{Depth, Held, Losses};
use crate::tables;
use crate::wal::Survey;
use crate::witness::{self, Found};

/// A database that is open.
pub(crate) struct Opened {
    pub db: Arc<Db>,
    /// What it holds; its commit is the number that no other may have.
    pub ledger: Ledger,
    /// The newest commit that the database itself knows of.
    pub held_commit: u64,
    /// Replicas that have lost acknowledged rows, with their generations.
    pub quarantined: BTreeMap<ReplicaId, u64>,
    pub damages: Vec<Damage>,
}

/// What was found out before the opening.
pub(crate) struct Diagnosis {
    pub survey: Survey,
    pub claimed: Ledger,
    /// The newest commit that is known to have been synced.
    pub proven: u64,
    pub damages: Vec<Damage>,
    /// The log's end is to be cut off.
    torn: bool,
    /// It can't be opened at all, or does not know any more who it is.
    hopeless: bool,
    /// There is no way to tell which replicas have lost something.
    unprovable: bool,
}

/// Opens the database of a directory, or makes one.
pub(crate) fn open(
    directory: &Directory,
    config: &Config,
    damage: &Arc<DamageLog>,
) -> Result<Opened, Error> {
    let policy = DamagePolicy::read(&directory.policy);
    let mut diagnosis = diagnose(directory, config)?;
    if diagnosis.refuses(policy) {
        return Err(diagnosis.refusal());
    }
    let damaged = !diagnosis.damages.is_empty();
    let recovery = diagnosis.prepare(directory)?;
    let open = |recovery| open_as(directory, config, recovery, damage.clone());
    let db = match open(recovery) {
        // A table that the opening needs.
        Err(Error::Damaged { damages }) if !damaged => {
            diagnosis.take(tables::whose(&directory.database, &damages));
            if diagnosis.refuses(policy) {
                return Err(diagnosis.refusal());
            }
            open(Recovery::Rest)?
        }
        // A missing log file, such as one in front of all that are there.
        Err(error @ Error::Corrupt { .. }) if !damaged => {
            diagnosis.damages.push(Damage::of_node(&directory.database, &error.to_string()));
            if policy == DamagePolicy::Refuse {
                return Err(diagnosis.refusal());
            }
            open(Recovery::Rest)?
        }
        opened => opened?,
    };
    if policy == DamagePolicy::Quarantine
        && let Some(damage) = tables::damage_of_log(&directory.database, &db)?
    {
        // No replica could be rebuilt beside those that are quarantined.
        diagnosis.take(vec![damage]);
        return Err(diagnosis.refusal());
    }
    let depth = if diagnosis.damages.is_empty() { Depth::Ends } else { Depth::Entries };
    let held = Held::read(&db, depth)?;
    let losses = held.losses(&diagnosis.claimed, &diagnosis.survey.changed);
    diagnosis.add(&losses);
    if diagnosis.refuses(policy) {
        return Err(diagnosis.refusal());
    }
    Ok(diagnosis.opened(db, held, &losses))
}

/// Looks at a directory's database and changes nothing.
pub(crate) fn diagnose(directory: &Directory, config: &Config) -> Result<Diagnosis, Error> {
    let found = witness::read(&directory.synced)?;
    let mut damages = Vec::new();
    let claims = matches!(found, Found::Claims(_));
    let claimed = match found {
        Found::Claims(ledger) => ledger,
        Found::Missing => Ledger::default(),
        Found::Damaged => {
            damages.push(Damage::of_node(&directory.synced, "no copy of what was synced is whole"));
            Ledger::default()
        }
    };
    let survey = Survey::of(&directory.database, claimed.commit)?;
    let proven = survey.synced.max(claimed.commit);
    let (torn, hopeless, unprovable) = (false, false, false);
    let mut diagnosis = Diagnosis { survey, claimed, proven, damages, torn, hopeless, unprovable };
    match tables::damage_of_tables(&directory.database) {
        Ok(found) => diagnosis.take(found),
        // There is no list of files that could be read.
        Err(Error::Damaged { damages }) => {
            diagnosis.damages.extend_from_slice(&damages);
            diagnosis.hopeless = true;
            return Ok(diagnosis);
        }
        Err(error) => return Err(error),
    }
    let current = directory.database.join("CURRENT");
    if !current.exists() {
        diagnosis.without_database(&current);
        return Ok(diagnosis);
    }
    let survey = &diagnosis.survey;
    let reaches = survey.first.is_some_and(|first| first <= proven)
        && survey.last.is_some_and(|last| last >= proven);
    if claims && proven > 0 && reaches && survey.breaks.is_empty() {
        return Ok(diagnosis);
    }
    if claims && survey.is_torn(proven) {
        diagnosis.torn = true;
        return Ok(diagnosis);
    }
    diagnosis.look(directory, config, claims)?;
    Ok(diagnosis)
}

/// Opens the database in a certain way.
pub(crate) fn look(
    directory: &Directory,
    config: &Config,
    recovery: Recovery,
) -> Result<Arc<Db>, Error> {
    open_as(directory, config, recovery, Arc::default())
}

fn open_as(
    directory: &Directory,
    config: &Config,
    recovery: Recovery,
    damage: Arc<DamageLog>,
) -> Result<Arc<Db>, Error> {
    let lock = directory.lock.try_clone().map_err(|error| Error::io("share the lock", error))?;
    let opening = Opening {
        config,
        direct_io: directory.direct_io,
        recovery,
        tolerant: matches!(recovery, Recovery::Rest),
        damage,
    };
    Db::open(&directory.database, opening, lock)
}

impl Diagnosis {
    /// Whether a store with this policy stays closed.
    fn refuses(&self, policy: DamagePolicy) -> bool {
        !self.damages.is_empty() && (policy == DamagePolicy::Refuse || self.hopeless)
    }

    /// Whether not even a repair can open it.
    pub fn is_hopeless(&self) -> bool {
        self.hopeless
    }

    fn refusal(&self) -> Error {
        Error::Damaged { damages: self.damages.clone().into() }
    }

    /// Changes the log so that RocksDB finds nothing in it that it would have to skip. Returns how
    /// it is to open it.
    pub fn prepare(&self, directory: &Directory) -> Result<Recovery, Error> {
        if !self.damages.is_empty() {
            self.survey.salvage(&directory.aside)?;
            return Ok(Recovery::Rest);
        }
        if self.torn {
            self.survey.cut()?;
        }
        Ok(Recovery::Whole)
    }

    /// Adds damage of tables and blob files. That of the node's own rows leaves nothing to go on
    /// with.
    fn take(&mut self, found: Vec<Damage>) {
        self.hopeless |= found.iter().any(|damage| damage.replica.is_none());
        self.damages.extend(found);
    }

    /// There is no database: fine in a fresh directory alone.
    fn without_database(&mut self, current: &Path) {
        if self.claimed.commit > 0 || !self.damages.is_empty() || !self.survey.files.is_empty() {
            self.damages.push(Damage::of_node(current, "the file is missing"));
            self.hopeless = true;
        }
    }

    /// Decides by what the database itself holds.
    fn look(&mut self, directory: &Directory, config: &Config, claims: bool) -> Result<(), Error> {
        let breaks = !self.survey.breaks.is_empty();
        let opened = look(directory, config, Recovery::LookOnly);
        let looked = opened.and_then(|db| Held::read(&db, Depth::Entries));
        let problem = match looked {
            Ok(held) => {
                if !claims && held.ledger.commit > 0 && self.damages.is_empty() {
                    let missing = "the file that says what was synced is missing";
                    self.damages.push(Damage::of_node(&directory.synced, missing));
                }
                let losses = held.losses(&self.claimed, &self.survey.changed);
                if losses.is_empty() {
                    return Ok(());
                }
                None
            }
            Err(error @ (Error::NewerFormat { .. } | Error::Io { .. })) => return Err(error),
            Err(error) => Some(error),
        };
        if breaks && self.is_torn_by_prefix(directory, config, claims) {
            self.torn = true;
            return Ok(());
        }
        self.damages.extend(self.survey.damages());
        if let Some(error) = problem.filter(|_| !breaks) {
            self.damages.push(Damage::of_node(&directory.database, &error.to_string()));
        }
        self.unprovable = !claims;
        match self.look_at_rest(directory, config) {
            Ok(held) => {
                let losses = held.losses(&self.claimed, &self.survey.changed);
                self.unprovable |= !held.is_comparable(&self.claimed, &self.survey.changed);
                self.hopeless |= self.unprovable && !claims && breaks;
                self.add(&losses);
            }
            // Nothing was found out, for want of space maybe.
            Err(Error::Io { .. }) => {}
            Err(_) => self.hopeless = true,
        }
        Ok(())
    }

    /// Reads what is left when the damaged records are skipped.
    fn look_at_rest(&self, directory: &Directory, config: &Config) -> Result<Held, Error> {
        let imitation = Imitation(directory.database.with_extension("look"));
        let _ = std::fs::remove_dir_all(&imitation.0);
        self.survey.imitate(&directory.database, &imitation.0)?;
        let lock =
            directory.lock.try_clone().map_err(|error| Error::io("share the lock", error))?;
        let opening = Opening {
            config,
            direct_io: directory.direct_io,
            recovery: Recovery::Rest,
            tolerant: true,
            damage: Arc::default(),
        };
        let db = Db::open(&imitation.0, opening, lock)?;
        let held = Held::read(&db, Depth::Entries);
        db.stop_background_work();
        held
    }

    /// Whether everything that was synced lies in front of the first break, in the log or in table
    /// files.
    fn is_torn_by_prefix(&self, directory: &Directory, config: &Config, claims: bool) -> bool {
        if !claims {
            // Of a version that numbered nothing: the end of its log may be torn, no more.
            return self.survey.last.is_none() && self.survey.breaks_at_end();
        }
        if self.survey.before.is_some() {
            return false;
        }
        look(directory, config, Recovery::LookAtPrefix)
            .and_then(|db| Held::read(&db, Depth::Entries))
            .is_ok_and(|held| {
                let losses = held.losses(&self.claimed, &self.survey.changed);
                held.ledger.commit >= self.proven && losses.is_empty()
            })
    }

    /// Adds what was lost to the damages, unless it is among them.
    fn add(&mut self, losses: &Losses) {
        let mut found: Vec<Damage> = Vec::new();
        let place = |replica, detail: &String| Damage {
            replica,
            file: None,
            offset: None,
            detail: detail.clone(),
        };
        found.extend(losses.node.iter().map(|detail| place(None, detail)));
        found.extend(losses.commits.iter().map(|detail| place(None, detail)));
        found.extend(losses.replicas.iter().map(|(id, detail)| place(Some(*id), detail)));
        found.retain(|damage| !self.damages.contains(damage));
        self.damages.extend(found);
        self.hopeless |= losses.node.is_some();
    }

    fn opened(self, db: Arc<Db>, held: Held, losses: &Losses) -> Opened {
        let mut ledger = held.ledger;
        let held_commit = ledger.commit;
        ledger.commit = held_commit.max(self.proven).max(self.survey.last.unwrap_or_default());
        let mut lost: Vec<ReplicaId> = losses.replicas.keys().copied().collect();
        let claimed = &self.claimed.replicas;
        lost.extend(claimed.iter().filter(|(_, claim)| claim.quarantined).map(|(id, _)| *id));
        lost.extend(self.damages.iter().filter_map(|damage| damage.replica));
        if self.unprovable && !self.damages.is_empty() {
            lost.extend(ledger.replicas.keys().chain(claimed.keys()));
        }
        let mut quarantined = BTreeMap::new();
        for id in lost {
            let claim = ledger.replicas.entry(id).or_default();
            if let Some(claimed) = claimed.get(&id) {
                claim.clone_from(claimed);
            }
            claim.quarantined = true;
            quarantined.insert(id, claim.generation);
        }
        Opened { db, ledger, held_commit, quarantined, damages: self.damages }
    }
}

/// A directory that is looked at, and removed when it is dropped.
struct Imitation(PathBuf);

impl Drop for Imitation {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Opened {
    /// Makes sure that each replica in quarantine has a column family, so that it can be dropped.
    /// Returns the descriptors to write again.
    pub fn restore_families(&self) -> Result<Vec<(ReplicaId, u64)>, Error> {
        let mut missing = Vec::new();
        for (id, generation) in &self.quarantined {
            let name = keys::family(*id, *generation);
            if self.db.family(&name).is_none() {
                self.db.create_family(&name)?;
            }
            missing.push((*id, *generation));
        }
        Ok(missing)
    }
}

impl Damage {
    /// Damage that may concern any replica of the node.
    pub(crate) fn of_node(file: &Path, detail: &str) -> Damage {
        Damage {
            replica: None,
            file: Some(file.to_owned()),
            offset: None,
            detail: detail.to_owned(),
        }
    }
}

impl DamagePolicy {
    const QUARANTINE: &str = "quarantine\n";

    /// Reads the policy of a directory. Whatever is not understood is the careful one.
    pub(crate) fn read(path: &Path) -> DamagePolicy {
        match std::fs::read_to_string(path).as_deref() {
            Ok(Self::QUARANTINE) => DamagePolicy::Quarantine,
            Ok(_) | Err(_) => DamagePolicy::Refuse,
        }
    }

    /// Keeps a policy, durably.
    pub(crate) fn write(self, path: &Path) -> Result<(), Error> {
        let text = match self {
            DamagePolicy::Refuse => "refuse\n",
            DamagePolicy::Quarantine => Self::QUARANTINE,
        };
        replace_file(path, text.as_bytes())
            .map_err(|error| Error::io("keep the damage policy", error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::command::{Body, Entry};
    use crate::db::Batch;
    use crate::disk::encode_descriptor;
    use crate::store::Store;

    const ENTRIES: u64 = 50;

    /// A store as a version left it that numbered no commits and claimed nothing: everything is in
    /// the log.
    fn old_store(dir: &Path) {
        let directory = Directory::open(dir).unwrap();
        let db = look(&directory, &Config::default(), Recovery::Whole).unwrap();
        let (log, meta) =
            (db.family(keys::LOG_FAMILY).unwrap(), db.family(keys::META_FAMILY).unwrap());
        db.create_family(&keys::family(ReplicaId(1), 0)).unwrap();
        let mut batch = Batch::default();
        batch.put(&meta, keys::FORMAT, &[2]);
        batch.put(&meta, keys::STORE_ID, &directory.store_id);
        batch.put(&meta, &keys::descriptor(ReplicaId(1)), &encode_descriptor(0));
        db.write(batch).unwrap();
        for index in 1..=ENTRIES {
            let mut batch = Batch::default();
            let row = Entry::new(index, 1, Body::Membership(vec![7; 100].into())).encode_row();
            batch.put(&log, &keys::entry(ReplicaId(1), index), &row);
            db.write(batch).unwrap();
        }
        db.sync().unwrap();
    }

    fn change_log(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let survey = Survey::of(&dir.join("db"), 0).unwrap();
        let (path, _) = survey.files.last().unwrap();
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    /// The last entry after an opening.
    fn last(dir: &Path) -> Result<u64, Error> {
        let store = Store::open(dir, Config::default())?;
        let last = store.log(ReplicaId(1)).unwrap().last().unwrap().index;
        store.close().unwrap();
        Ok(last)
    }

    #[test]
    fn a_store_of_a_version_that_claimed_nothing_is_opened_and_claims_from_then_on() {
        let dir = tempfile::TempDir::new().unwrap();
        old_store(dir.path());
        assert_eq!(last(dir.path()).unwrap(), ENTRIES);
        assert_eq!(last(dir.path()).unwrap(), ENTRIES);
        std::fs::remove_file(dir.path().join("synced")).unwrap();
        assert!(matches!(last(dir.path()), Err(Error::Damaged { .. })));
    }

    #[test]
    fn the_log_of_a_version_that_claimed_nothing_may_be_torn_at_its_end_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        old_store(dir.path());
        change_log(dir.path(), |bytes| bytes.truncate(bytes.len() - 20));
        assert_eq!(last(dir.path()).unwrap(), ENTRIES - 1);
        let dir = tempfile::TempDir::new().unwrap();
        old_store(dir.path());
        change_log(dir.path(), |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        assert!(matches!(last(dir.path()), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_database_that_is_ahead_of_its_claims_without_a_log_is_no_damage() {
        let dir = tempfile::TempDir::new().unwrap();
        let (synced, id) = (dir.path().join("synced"), ReplicaId(1));
        let store = Store::open(dir.path(), Config::default()).unwrap();
        store.create_replica(id).unwrap();
        let before = std::fs::read(&synced).unwrap();
        for index in 1..=ENTRIES {
            let (sender, receiver) = crossbeam_channel::bounded(1);
            let done = Box::new(move |result| sender.send(result).unwrap());
            let entry = Entry::new(index, 1, Body::Blank);
            store.log(id).unwrap().append(vec![entry], done).unwrap();
            receiver.recv().unwrap().unwrap();
        }
        store.close().unwrap();
        drop(store);
        // A power loss before the claims were synced, behind a flush of everything.
        std::fs::write(&synced, before).unwrap();
        assert_eq!(last(dir.path()).unwrap(), ENTRIES);
    }
}
