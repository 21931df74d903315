//! A look at the write-ahead log before RocksDB opens it: what is whole, what is not, what is
//! missing.
//!
//! RocksDB stops replaying at the first bad record and says so in its own log at most. Here every
//! record is read and checked first, and nothing is changed. Each record of the commit thread
//! carries its commit number and the newest commit that was synced when it was written
//! (`keys.rs`, row `W`), so a missing record is seen as a gap, and a record behind a damaged place
//! proves that what lay there had been synced.
//!
//! What to do about it is decided in `opening.rs`.

mod frames;
mod rows;
mod salvage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::command::{Body, Command, Entry};
use crate::damage::Damage;
use crate::encoding::id_of_row;
use crate::error::Error;
use crate::ids::{CollectionId, EntryId, ReplicaId};
use crate::keys;
use frames::Frame;
use rows::Change;

/// Places remembered at most; more are counted as one.
const BREAKS_MAX: usize = 64;
/// Keys named of one damaged place.
const KEYS_MAX: usize = 1_000;

/// What the write-ahead log holds.
#[derive(Default)]
pub(crate) struct Survey {
    /// The files with their sizes in bytes, in the order they were written.
    pub files: Vec<(PathBuf, u64)>,
    /// Where the log is not whole, in order.
    pub breaks: Vec<Break>,
    /// The first and the last commit whose record is whole.
    pub first: Option<u64>,
    pub last: Option<u64>,
    /// The last whole commit in front of the first break.
    pub before: Option<u64>,
    /// The newest commit that a whole record proves to have been synced.
    pub synced: u64,
    /// What the commits behind a certain one have changed.
    pub changed: Changed,
    /// Missing stretches of replicas' logs between whole records.
    pub gaps: Vec<Gap>,
    /// Behind which commit changes are noted.
    since: u64,
    /// How many of them there are.
    noted: u64,
    ends: BTreeMap<ReplicaId, u64>,
}

/// A place where the log is not whole.
pub(crate) struct Break {
    file: usize,
    /// Where in the file, in bytes.
    pub offset: u64,
    pub reason: &'static str,
    /// There is nothing bad, but something is missing.
    gap: bool,
    /// The commits whose records are missing there, first and last, as far as that is known.
    pub lost: Option<(u64, u64)>,
    /// Whole records that follow.
    pub whole_behind: u64,
    /// What can still be made out of the damaged bytes. Not to be trusted: it may be wrong.
    pub likely: Vec<Likely>,
}

/// An entry that seems to have been in a damaged place.
pub(crate) struct Likely {
    pub replica: ReplicaId,
    pub entry: EntryId,
    pub keys: Vec<(CollectionId, Bytes)>,
}

/// Entries missing from a replica's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub replica: ReplicaId,
    pub first: u64,
    pub last: u64,
}

/// Which rows some commits have changed.
#[derive(Default)]
pub(crate) struct Changed {
    pub logs: BTreeSet<ReplicaId>,
    pub votes: BTreeSet<ReplicaId>,
    pub descriptors: BTreeSet<ReplicaId>,
    pub facts: bool,
    /// Through which commit each one was there to be looked at.
    pub through: u64,
}

impl Survey {
    /// Reads the write-ahead log of a database. Changes of commits behind `since` are noted.
    pub fn of(database: &Path, since: u64) -> Result<Survey, Error> {
        let mut survey = Survey { since, ..Survey::default() };
        for path in files(database)? {
            let file = survey.files.len();
            survey.files.push((path.clone(), 0));
            let read = frames::walk(&path, &mut |frame| survey.frame(file, frame));
            survey.files[file].1 = read.map_err(|error| Error::io("read the log file", error))?;
        }
        let last = survey.last.unwrap_or_default();
        let all = survey.noted == last.saturating_sub(since);
        survey.changed.through = if all { last.max(since) } else { since };
        Ok(survey)
    }

    /// Whether the log ends with a break that only tears off what was never acknowledged, if
    /// everything through the commit `proven` was synced.
    pub fn is_torn(&self, proven: u64) -> bool {
        !self.breaks.is_empty() && self.before.is_some_and(|before| before >= proven)
    }

    /// Whether the only break is at the very end: a log without commit numbers proves no more.
    pub fn breaks_at_end(&self) -> bool {
        self.breaks.len() == 1 && self.breaks[0].whole_behind == 0
    }

    /// The file of a break.
    pub fn file_of(&self, found: &Break) -> &Path {
        &self.files[found.file].0
    }

    /// Cuts the log at its first break, durably: RocksDB finds nothing there that it would have to
    /// skip.
    pub fn cut(&self) -> Result<(), Error> {
        let Some(first) = self.breaks.first() else { return Ok(()) };
        for (number, (path, len)) in self.files.iter().enumerate().skip(first.file) {
            let keep = if number == first.file { first.offset } else { 0 };
            if *len == keep {
                continue;
            }
            let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
                file.set_len(keep)?;
                file.sync_all()
            });
            cut.map_err(|error| Error::io("cut the torn end of the log", error))?;
            tracing::info!(file = %path.display(), from = keep, bytes = len - keep, "torn end cut");
        }
        Ok(())
    }

    /// Puts the whole records of each damaged file in its place; the file itself is kept in
    /// `aside`. RocksDB then loses what is damaged, and nothing beside it.
    pub fn salvage(&self, aside: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("keep what is whole of the log", error);
        for path in self.damaged_files() {
            std::fs::create_dir_all(aside).map_err(failed)?;
            let unfinished = path.with_extension("whole");
            salvage::copy_whole(path, &unfinished).map_err(failed)?;
            let kept = aside.join(path.file_name().unwrap_or_default());
            // There already if this was interrupted before.
            if !kept.exists() {
                std::fs::hard_link(path, &kept).map_err(failed)?;
            }
            std::fs::rename(&unfinished, path).map_err(failed)?;
            for dir in [Some(aside), path.parent()].into_iter().flatten() {
                File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Makes a directory that looks like the database with the whole records alone. RocksDB may
    /// open and change it: what it shares with the database are table files, which are never
    /// written again.
    pub fn imitate(&self, database: &Path, at: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("look at what is whole of the database", error);
        std::fs::create_dir_all(at).map_err(failed)?;
        let damaged: Vec<&Path> = self.damaged_files().collect();
        for file in std::fs::read_dir(database).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            let to = at.join(path.file_name().unwrap_or_default());
            let is_table = path.extension().is_some_and(|kind| kind == "sst" || kind == "blob");
            let made = match (damaged.contains(&path.as_path()), is_table) {
                (true, _) => salvage::copy_whole(&path, &to),
                (false, true) => std::fs::hard_link(&path, &to),
                (false, false) => std::fs::copy(&path, &to).map(drop),
            };
            made.map_err(failed)?;
        }
        Ok(())
    }

    fn damaged_files(&self) -> impl Iterator<Item = &Path> {
        let damaged =
            |file: usize| self.breaks.iter().any(|found| found.file == file && !found.gap);
        let files = self.files.iter().enumerate();
        files.filter(move |(file, _)| damaged(*file)).map(|(_, (path, _))| path.as_path())
    }

    /// The breaks, each with what is known of it.
    pub fn damages(&self) -> Vec<Damage> {
        let damage = |found: &Break| Damage {
            replica: found.replica(),
            file: Some(self.file_of(found).to_owned()),
            offset: Some(found.offset),
            detail: found.describe(),
        };
        self.breaks.iter().map(damage).collect()
    }

    fn frame(&mut self, file: usize, frame: Frame<'_>) {
        match frame {
            Frame::Record { offset, bytes } => self.record(file, offset, bytes),
            Frame::Bad { offset, reason, bytes } => self.bad(file, offset, reason, bytes),
        }
    }

    fn bad(&mut self, file: usize, offset: u64, reason: &'static str, bytes: &[u8]) {
        let goes_on = |last: &&mut Break| last.file == file && last.whole_behind == 0;
        if let Some(last) = self.breaks.last_mut().filter(goes_on) {
            last.likely.extend(likely(bytes));
            return;
        }
        self.add(Break::new(file, offset, reason, likely(bytes)));
    }

    fn add(&mut self, found: Break) {
        if self.breaks.is_empty() {
            self.before = self.last;
        }
        if self.breaks.len() < BREAKS_MAX {
            self.breaks.push(found);
        }
    }

    fn record(&mut self, file: usize, offset: u64, bytes: &[u8]) {
        let mut commit = None;
        rows::walk(bytes, &mut |change| {
            if let Change::Put { key: keys::COMMIT, value } = change {
                commit = commit.or(keys::parse_commit(value));
            }
        });
        if let Some((number, synced)) = commit {
            self.synced = self.synced.max(synced);
            self.number(file, offset, number);
        }
        let note = commit.is_some_and(|(number, _)| number > self.since);
        rows::walk(bytes, &mut |change| self.change(note, &change));
        for found in &mut self.breaks {
            found.whole_behind += 1;
        }
    }

    fn number(&mut self, file: usize, offset: u64, number: u64) {
        let expected = self.last.map(|last| last + 1);
        let fresh = self.breaks.last().is_some_and(|last| last.whole_behind == 0);
        match expected {
            Some(expected) if number > expected => {
                let lost = Some((expected, number - 1));
                if fresh {
                    let last = self.breaks.last_mut().expect("there is a break without any behind");
                    last.lost = lost;
                } else {
                    let reason = "records are missing in front of this one";
                    let gap =
                        Break { gap: true, lost, ..Break::new(file, offset, reason, Vec::new()) };
                    self.add(gap);
                }
            }
            Some(_) => {}
            None => self.first = Some(number),
        }
        if number > self.since && Some(number) > self.last {
            self.noted += 1;
        }
        self.last = self.last.max(Some(number));
    }

    fn change(&mut self, note: bool, change: &Change<'_>) {
        match change {
            Change::Put { key, value } => {
                if let Some((replica, index)) = keys::parse_entry(key)
                    && let Ok(id) = id_of_row(&Bytes::copy_from_slice(head(value)))
                    && id.index == index
                {
                    self.entry(replica, index);
                    if note {
                        self.changed.logs.insert(replica);
                    }
                }
                if note {
                    self.meta(key);
                }
            }
            Change::Delete { key } => {
                if note {
                    if let Some((replica, _)) = keys::parse_entry(key) {
                        self.changed.logs.insert(replica);
                    }
                    self.meta(key);
                }
            }
            Change::DeleteRange => {}
        }
    }

    fn entry(&mut self, replica: ReplicaId, index: u64) {
        let end = self.ends.entry(replica).or_insert(index);
        if index > *end + 1 {
            self.gaps.push(Gap { replica, first: *end + 1, last: index - 1 });
        }
        *end = index;
    }

    fn meta(&mut self, key: &[u8]) {
        if let Some(replica) = keys::replica_of_descriptor(key) {
            self.changed.descriptors.insert(replica);
        } else if let Some(replica) = keys::replica_of_vote(key) {
            self.changed.votes.insert(replica);
        } else if let Some(replica) = keys::replica_of_purged(key) {
            self.changed.logs.insert(replica);
        } else if keys::is_fact(key) {
            self.changed.facts = true;
        }
    }
}

impl Break {
    fn new(file: usize, offset: u64, reason: &'static str, likely: Vec<Likely>) -> Self {
        Break { file, offset, reason, gap: false, lost: None, whole_behind: 0, likely }
    }

    /// The replica, if the place seems to have held entries of one alone.
    fn replica(&self) -> Option<ReplicaId> {
        let mut replicas = self.likely.iter().map(|likely| likely.replica);
        let first = replicas.next()?;
        replicas.all(|replica| replica == first).then_some(first)
    }

    fn describe(&self) -> String {
        let mut out = self.reason.to_owned();
        if let Some((first, last)) = self.lost {
            out += &match first == last {
                true => format!("; commit {first} is missing"),
                false => format!("; commits {first} to {last} are missing"),
            };
        }
        if self.whole_behind > 0 {
            out += &format!("; {} whole records follow", self.whole_behind);
        }
        let mut ranges: BTreeMap<ReplicaId, (u64, u64)> = BTreeMap::new();
        for likely in &self.likely {
            let index = likely.entry.index;
            let range = ranges.entry(likely.replica).or_insert((index, index));
            *range = (range.0.min(index), range.1.max(index));
        }
        for (replica, (first, last)) in ranges {
            out += &format!("; seems to have held entries {first} to {last} of replica {replica}");
        }
        let mut keys: BTreeMap<CollectionId, BTreeSet<&[u8]>> = BTreeMap::new();
        for (collection, key) in self.likely.iter().flat_map(|likely| &likely.keys) {
            keys.entry(*collection).or_default().insert(key);
        }
        for (collection, keys) in keys {
            let (first, last) = (keys.first().copied(), keys.last().copied());
            let text = |key: Option<&[u8]>| key.unwrap_or_default().escape_ascii().to_string();
            let (count, first, last) = (keys.len(), text(first), text(last));
            out += &format!(
                ", with {count} keys \"{first}\" to \"{last}\" of collection {collection}"
            );
        }
        out
    }
}

/// The entries that some damaged bytes seem to hold.
fn likely(record: &[u8]) -> Vec<Likely> {
    let (mut found, mut keys_left) = (Vec::new(), KEYS_MAX);
    rows::walk(record, &mut |change| {
        let Change::Put { key, value } = change else { return };
        let Some((replica, index)) = keys::parse_entry(key) else { return };
        let row = Bytes::copy_from_slice(value);
        let Ok(entry) = id_of_row(&row) else { return };
        if entry.index != index {
            return;
        }
        let payload = |_| Ok::<_, crate::codec::Malformed>(Bytes::new());
        let mut keys = Entry::decode_row(row, payload).map_or(Vec::new(), |entry| keys_of(&entry));
        keys.truncate(keys_left);
        keys_left -= keys.len();
        found.push(Likely { replica, entry, keys });
    });
    found
}

/// The states that an entry changes.
fn keys_of(entry: &Entry) -> Vec<(CollectionId, Bytes)> {
    let Body::Commands(batch) = &entry.body else { return Vec::new() };
    let targets = batch.commands.iter().filter_map(|command| match command {
        Command::Put(put) => Some(&put.write.target),
        Command::Patch(patch) => Some(&patch.write.target),
        Command::Delete(delete) => Some(&delete.write.target),
        Command::Upload(upload) => Some(&upload.target),
        Command::PutUpload(put) => Some(&put.write.target),
        Command::DropCollection { .. } | Command::Sweep(_) => None,
    });
    targets.map(|target| (target.collection, target.key.clone())).collect()
}

/// As much of an entry's row as says which one it is.
fn head(value: &[u8]) -> &[u8] {
    const HEAD_BYTES: usize = 17;
    &value[..value.len().min(HEAD_BYTES)]
}

/// RocksDB's log files, in the order they were written.
fn files(database: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = match std::fs::read_dir(database) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read the database's directory", error)),
    };
    let mut found = Vec::new();
    for file in listed {
        let path = file.map_err(|error| Error::io("read the database's directory", error))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number
            && path.extension().is_some_and(|extension| extension == "log")
        {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
