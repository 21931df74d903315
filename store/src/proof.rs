//! Whether a database holds what is claimed of it.
//!
//! Reads a [`Ledger`] from the database and compares it with the one in the file `synced`. A
//! replica of which they differ has lost acknowledged rows, or has some back that were deleted:
//! either way it is not what this node told the others.
//!
//! A database may be ahead of the claims after a power loss, which the claims are synced a moment
//! before. What the commits behind them have changed is then known from the write-ahead log, or the
//! comparison is left at what holds in any case.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::Malformed;
use crate::command::Entry;
use crate::db::{Db, Family, Walk};
use crate::disk::{decode_applied, decode_descriptor, decode_purged};
use crate::encoding::id_of_row;
use crate::error::Error;
use crate::extent::chunks_of;
use crate::ids::{EntryId, ReplicaId};
use crate::keys;
use crate::ledger::{Claim, Ledger, fact, vote_claim};
use crate::wal::Changed;

/// What a database holds.
pub(crate) struct Held {
    pub ledger: Ledger,
    /// Replicas whose own rows contradict each other, or can't be read, and how.
    pub broken: BTreeMap<ReplicaId, String>,
}

/// How closely a database is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The rows at the ends.
    Ends,
    /// Every entry, and the payloads of those that a start applies.
    Entries,
}

/// What a database does not hold as it is claimed.
#[derive(Default)]
pub(crate) struct Losses {
    /// Lost by the node as a whole: it can't know any more who it is.
    pub node: Option<String>,
    /// Lost by no replica in particular.
    pub commits: Option<String>,
    pub replicas: BTreeMap<ReplicaId, String>,
}

impl Losses {
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.commits.is_none() && self.replicas.is_empty()
    }
}

impl Held {
    /// Reads what a database holds.
    pub fn read(db: &Arc<Db>, depth: Depth) -> Result<Held, Error> {
        let (mut ledger, mut broken) = (Ledger::default(), BTreeMap::new());
        let (Some(log), Some(meta)) = (db.family(keys::LOG_FAMILY), db.family(keys::META_FAMILY))
        else {
            return Ok(Held { ledger, broken });
        };
        let commit = db.fetch(&meta, keys::COMMIT)?;
        ledger.commit = commit.and_then(|row| keys::parse_commit(&row)).unwrap_or_default().0;
        ledger.log_commit = number(db.fetch(&log, keys::COMMIT)?);
        for key in [keys::FORMAT, keys::STORE_ID] {
            if let Some(value) = db.fetch(&meta, key)? {
                ledger.facts.insert(key.to_vec(), fact(key, &value));
            }
        }
        db.walk(&meta, keys::facts(), Walk::Few, &mut |key, value| {
            ledger.facts.insert(key.to_vec(), fact(key, value));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut descriptors = Vec::new();
        db.walk(&meta, keys::descriptors(), Walk::Few, &mut |key, value| {
            let generation = decode_descriptor(Bytes::copy_from_slice(value))?;
            let id = keys::replica_of_descriptor(key)
                .ok_or_else(|| Error::corrupt("replica's descriptor", "its key is malformed"))?;
            descriptors.push((id, generation));
            Ok(ControlFlow::Continue(()))
        })?;
        for (id, generation) in descriptors {
            let mut replica = Reading { db, log: &log, meta: &meta, id, problem: None };
            let claim = match replica.claim(generation, depth) {
                Ok(claim) => claim,
                Err(error @ Error::NewerFormat { .. }) => return Err(error),
                Err(error) => {
                    replica.problem = Some(error.to_string());
                    Claim { generation, ..Claim::default() }
                }
            };
            if let Some(problem) = replica.problem {
                broken.insert(id, problem);
            }
            ledger.replicas.insert(id, claim);
        }
        Ok(Held { ledger, broken })
    }

    /// Compares with what is claimed, replicas in quarantine apart. `changed` is what the commits
    /// behind the claims have changed.
    pub fn losses(&self, claimed: &Ledger, changed: &Changed) -> Losses {
        let mut losses = Losses::default();
        for (id, problem) in &self.broken {
            losses.replicas.insert(*id, problem.clone());
        }
        if claimed.commit == 0 {
            return losses;
        }
        let held = &self.ledger;
        let ahead = held.commit > claimed.commit;
        let exact = self.is_comparable(claimed, changed);
        if held.commit < claimed.commit {
            let (held, claimed) = (held.commit, claimed.commit);
            losses.commits = Some(format!("ends at commit {held}, synced through {claimed}"));
        } else if held.log_commit < claimed.log_commit {
            let (held, claimed) = (held.log_commit, claimed.log_commit);
            losses.commits = Some(format!("logs end at commit {held}, synced through {claimed}"));
        }
        let id = |ledger: &Ledger| ledger.facts.get(keys::STORE_ID).copied();
        if id(held).is_some() && id(held) != id(claimed) {
            losses.node = Some("its database belongs to another directory".into());
        } else if exact && !(ahead && changed.facts) && held.facts_sum() != claimed.facts_sum() {
            losses.node = Some("facts of the node are missing or older than synced".into());
        } else if held.facts.len() < claimed.facts.len() {
            losses.node = Some("facts of the node are missing".into());
        }
        for (id, claim) in &claimed.replicas {
            if claim.quarantined {
                losses.replicas.remove(id);
            } else if exact && let Some(lost) = self.differs(*id, claim, ahead.then_some(changed)) {
                losses.replicas.entry(*id).or_insert(lost);
            }
        }
        for id in held.replicas.keys().filter(|id| !claimed.replicas.contains_key(id)) {
            if exact && !(ahead && changed.descriptors.contains(id)) {
                losses.replicas.insert(*id, "it is back though it was dropped".into());
            }
        }
        losses
    }

    /// Whether it is known what every commit behind the claims has changed.
    pub fn is_comparable(&self, claimed: &Ledger, changed: &Changed) -> bool {
        self.ledger.commit <= claimed.commit || changed.complete
    }

    fn differs(&self, id: ReplicaId, claim: &Claim, changed: Option<&Changed>) -> Option<String> {
        let is_newer = |of: fn(&Changed) -> &std::collections::BTreeSet<ReplicaId>| {
            changed.is_some_and(|changed| of(changed).contains(&id))
        };
        if is_newer(|changed| &changed.descriptors) {
            return None;
        }
        let Some(held) = self.ledger.replicas.get(&id) else {
            return Some("its descriptor is missing".into());
        };
        if held.generation != claim.generation {
            let (held, claimed) = (held.generation, claim.generation);
            return Some(format!("it has generation {held}, synced was {claimed}"));
        }
        if !is_newer(|changed| &changed.votes)
            && held.vote.as_ref().map(|vote| vote.0) != claim.vote.as_ref().map(|vote| vote.0)
        {
            return Some("its vote is not the one that was synced last".into());
        }
        if !is_newer(|changed| &changed.logs) && held.last != claim.last {
            return Some(format!(
                "its log ends at entry {}, synced through {}",
                held.last, claim.last
            ));
        }
        if !is_newer(|changed| &changed.logs) && held.purged != claim.purged {
            let (held, claimed) = (held.purged, claim.purged);
            return Some(format!("its log is purged through entry {held}, synced was {claimed}"));
        }
        if held.written < claim.written {
            let (held, claimed) = (held.written, claim.written);
            return Some(format!("its payloads end at commit {held}, synced through {claimed}"));
        }
        None
    }
}

/// One replica's rows being read.
struct Reading<'a> {
    db: &'a Arc<Db>,
    log: &'a Family,
    meta: &'a Family,
    id: ReplicaId,
    problem: Option<String>,
}

impl Reading<'_> {
    fn claim(&mut self, generation: u64, depth: Depth) -> Result<Claim, Error> {
        let (db, id) = (self.db, self.id);
        let purged = match db.fetch(self.meta, &keys::purged(id))? {
            None => EntryId::default(),
            Some(row) => decode_purged(&row)?,
        };
        let vote = db.fetch(self.meta, &keys::vote(id))?.map(|vote| vote_claim(&vote));
        let last = crate::disk::last_entry(db, self.log, id)?;
        let last = last.filter(|last| last.index > purged.index).unwrap_or(purged);
        let Some(family) = db.family(&keys::family(id, generation)) else {
            self.problem = Some("its column family is missing".into());
            return Ok(Claim { generation, last, purged, vote, ..Claim::default() });
        };
        let written = number(db.fetch(&family, keys::COMMIT)?);
        let applied = decode_applied(db.fetch(&family, keys::APPLIED)?)?.id;
        if applied.index < purged.index {
            let reason = "its states end at entry";
            self.problem = Some(format!("{reason} {applied}, and its log begins behind {purged}"));
        } else if last.index > purged.index {
            self.problem = match depth {
                Depth::Ends => self.first_entry(purged)?,
                Depth::Entries => self.entries(&family, (purged, last), applied)?,
            };
        }
        Ok(Claim { generation, last, purged, vote, written, quarantined: false })
    }

    /// What is wrong with the first entry.
    fn first_entry(&self, purged: EntryId) -> Result<Option<String>, Error> {
        let range = (keys::entry(self.id, 0), keys::entry(self.id, u64::MAX));
        let mut first = None;
        self.db.walk(self.log, range, Walk::Few, &mut |key, _| {
            first = keys::index_of_entry(key);
            Ok(ControlFlow::Break(()))
        })?;
        let expected = purged.index + 1;
        let wrong = first.filter(|first| *first > expected);
        Ok(wrong.map(|first| missing(expected, first - 1)))
    }

    /// What is wrong with any entry.
    fn entries(
        &self,
        family: &Family,
        (purged, last): (EntryId, EntryId),
        applied: EntryId,
    ) -> Result<Option<String>, Error> {
        let range = (keys::entry(self.id, purged.index + 1), keys::entry(self.id, u64::MAX));
        let (mut expected, mut term, mut problem) = (purged.index + 1, purged.term, None);
        self.db.walk(self.log, range, Walk::Few, &mut |key, value| {
            let row = Bytes::copy_from_slice(value);
            let index = keys::index_of_entry(key).unwrap_or_default();
            let found = id_of_row(&row);
            problem = match found {
                _ if index > expected => Some(missing(expected, index - 1)),
                Ok(found) if found.index != index => Some(format!("entry {index} is another one")),
                Ok(found) if found.term < term => {
                    Some(format!("entry {found} follows one of term {term}"))
                }
                Ok(found) => {
                    (expected, term) = (index + 1, found.term);
                    entry_problem(self.db, family, row, index > applied.index)?
                }
                Err(error) => Some(format!("entry {index} can't be read: {error}")),
            };
            Ok(if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if problem.is_none() && expected <= last.index {
            problem = Some(missing(expected, last.index));
        }
        Ok(problem)
    }
}

/// Returns why an entry can't be applied, if it can't: with its payloads if they are still needed
/// from the log.
pub(crate) fn entry_problem(
    db: &Arc<Db>,
    family: &Family,
    row: Bytes,
    with_payloads: bool,
) -> Result<Option<String>, Error> {
    let mut payloads = Vec::new();
    let entry = Entry::decode_row(row, |payload| {
        payloads.push(payload);
        Ok::<_, Malformed>(Bytes::new())
    });
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => return Ok(Some(format!("an entry can't be read: {error}"))),
    };
    for payload in payloads.iter().filter(|_| with_payloads) {
        let span = chunks_of(&payload.extent());
        for chunk in span.first..span.end {
            let key = keys::chunk(payload.collection, span.blob, chunk);
            if db.fetch(family, &key)?.is_none() {
                return Ok(Some(format!("a payload of entry {} is missing", entry.index)));
            }
        }
    }
    Ok(None)
}

fn missing(first: u64, last: u64) -> String {
    match first == last {
        true => format!("entry {first} is missing"),
        false => format!("entries {first} to {last} are missing"),
    }
}

fn number(row: Option<Bytes>) -> u64 {
    let bytes = row.and_then(|row| row.get(..8).and_then(|row| row.try_into().ok()));
    bytes.map_or(0, u64::from_le_bytes)
}
