//! What a store holds that it has acknowledged: the last commit, and of each replica log and vote.
//!
//! The commit thread keeps a ledger of what it has written, and `witness.rs` puts it on disk after
//! each sync, outside RocksDB. A start reads the same from RocksDB (`proof.rs`) and compares: what
//! the database does not hold and the ledger claims has been lost.

use std::collections::BTreeMap;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Malformed, Scanner, Writer};
use crate::commit::Job;
use crate::db::{Family, Mutation, Owner};
use crate::encoding::id_of_row;
use crate::ids::{EntryId, ReplicaId};
use crate::keys;

/// The format of an encoded ledger.
const FORMAT: u8 = 1;

/// Votes of more bytes are claimed by their checksum alone, and can't be written again.
const VOTE_BYTES_MAX: usize = 128;

/// What is claimed of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// The last commit; 0 claims nothing at all.
    pub commit: u64,
    /// The last commit that wrote to the family of all logs.
    pub log_commit: u64,
    /// A checksum of each fact of the node, by its row's key.
    pub facts: BTreeMap<Vec<u8>, u64>,
    pub replicas: BTreeMap<ReplicaId, Claim>,
}

/// What is claimed of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub generation: u64,
    /// The last entry of its log, or the last purged one.
    pub last: EntryId,
    pub purged: EntryId,
    /// A checksum of its vote, and the vote itself if it is short.
    pub vote: Option<(u64, Option<Bytes>)>,
    /// The last commit that wrote to its family; 0 if none did.
    pub written: u64,
    /// It has lost acknowledged rows: what the database holds of it is not served again.
    pub quarantined: bool,
}

impl Ledger {
    /// Notes what a job has written, in a commit that is the ledger's last.
    pub fn note(&mut self, job: &Job) {
        for mutation in &job.mutations {
            match (mutation.family().owner(), mutation) {
                (Owner::Meta, Mutation::Put { key, value, .. }) => self.put(key, value),
                (Owner::Meta, Mutation::Delete { key, .. }) => self.delete(key),
                (Owner::Log, Mutation::Put { key, value, .. }) => self.append(key, value),
                _ => {}
            }
        }
        if let Some((replica, last)) = job.log_end
            && let Some(claim) = self.replicas.get_mut(&replica)
        {
            claim.last = last;
        }
    }

    /// Notes that the ledger's last commit wrote to a family.
    pub fn touch(&mut self, family: &Family) {
        match family.owner() {
            Owner::Log => self.log_commit = self.commit,
            Owner::Replica(id, generation) => {
                if let Some(claim) = self.replicas.get_mut(&id)
                    && claim.generation == generation
                {
                    claim.written = self.commit;
                }
            }
            Owner::Meta | Owner::Nobody => {}
        }
    }

    fn put(&mut self, key: &[u8], value: &Bytes) {
        if let Some(id) = keys::replica_of_descriptor(key) {
            let generation = crate::disk::decode_descriptor(value.clone()).unwrap_or_default();
            let claim = self.replicas.entry(id).or_default();
            if claim.generation != generation {
                (claim.generation, claim.written) = (generation, 0);
            }
        } else if let Some(id) = keys::replica_of_vote(key) {
            if let Some(claim) = self.replicas.get_mut(&id) {
                claim.vote = Some(vote_claim(value));
            }
        } else if let Some(id) = keys::replica_of_purged(key) {
            if let Some(claim) = self.replicas.get_mut(&id)
                && let Ok(purged) = crate::disk::decode_purged(value)
            {
                claim.purged = purged;
                if claim.last.index < purged.index {
                    claim.last = purged;
                }
            }
        } else if keys::is_fact(key) {
            self.facts.insert(key.to_vec(), fact(key, value));
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(id) = keys::replica_of_descriptor(key) {
            self.replicas.remove(&id);
        } else if keys::is_fact(key) {
            self.facts.remove(key);
        }
    }

    fn append(&mut self, key: &[u8], value: &Bytes) {
        if let Some((id, _)) = keys::parse_entry(key)
            && let Some(claim) = self.replicas.get_mut(&id)
            && let Ok(last) = id_of_row(value)
        {
            claim.last = last;
        }
    }

    /// A checksum of all facts of the node.
    pub fn facts_sum(&self) -> u64 {
        self.facts.values().fold(0, |sum, fact| sum ^ fact)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(64 + 96 * self.replicas.len());
        out.u8(FORMAT);
        out.u64(self.commit);
        out.u64(self.log_commit);
        out.u32(self.facts.len() as u32);
        for (key, sum) in &self.facts {
            out.medium(key);
            out.u64(*sum);
        }
        out.u32(self.replicas.len() as u32);
        for (id, claim) in &self.replicas {
            out.u64(id.0);
            claim.encode(&mut out);
        }
        out.into_vec()
    }

    pub fn decode(input: Bytes) -> Result<Ledger, Malformed> {
        let mut scan = Scanner::new(input);
        scan.format(FORMAT)?;
        let mut ledger = Ledger {
            commit: scan.u64("a commit number")?,
            log_commit: scan.u64("a commit number")?,
            ..Ledger::default()
        };
        for _ in 0..scan.u32("a number of facts")? {
            let key = scan.medium("a fact's key")?.to_vec();
            ledger.facts.insert(key, scan.u64("a fact's checksum")?);
        }
        for _ in 0..scan.u32("a number of replicas")? {
            let id = ReplicaId(scan.u64("a replica")?);
            ledger.replicas.insert(id, Claim::decode(&mut scan)?);
        }
        scan.finish()?;
        Ok(ledger)
    }
}

impl Claim {
    fn encode(&self, out: &mut Writer) {
        out.u64(self.generation);
        for id in [self.last, self.purged] {
            out.u64(id.index);
            out.u64(id.term);
        }
        out.u64(self.written);
        out.u8(u8::from(self.quarantined));
        match &self.vote {
            None => out.u8(0),
            Some((sum, vote)) => {
                out.u8(1);
                out.u64(*sum);
                out.medium(vote.as_deref().unwrap_or_default());
            }
        }
    }

    fn decode(scan: &mut Scanner) -> Result<Claim, Malformed> {
        let generation = scan.u64("a generation")?;
        let mut id = || {
            let index = scan.u64("an entry's index")?;
            Ok::<_, Malformed>(EntryId { index, term: scan.u64("an entry's term")? })
        };
        let (last, purged) = (id()?, id()?);
        let written = scan.u64("a commit number")?;
        let quarantined = scan.u8("whether it is quarantined")? != 0;
        let vote = match scan.u8("whether there is a vote")? {
            0 => None,
            _ => {
                let sum = scan.u64("a vote's checksum")?;
                let vote = scan.medium("a vote")?;
                Some((sum, Some(vote).filter(|vote| !vote.is_empty())))
            }
        };
        Ok(Claim { generation, last, purged, vote, written, quarantined })
    }
}

/// What is claimed of a vote.
pub(crate) fn vote_claim(vote: &Bytes) -> (u64, Option<Bytes>) {
    let short = (1..=VOTE_BYTES_MAX).contains(&vote.len());
    // A copy: the row may be a small part of something large.
    (xxh3_64(vote), short.then(|| Bytes::copy_from_slice(vote)))
}

/// What is claimed of a fact of the node.
pub(crate) fn fact(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64(key).rotate_left(1) ^ xxh3_64(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_read_as_it_was_written() {
        let claim = Claim {
            generation: 3,
            last: EntryId { index: 9, term: 2 },
            purged: EntryId { index: 4, term: 1 },
            vote: Some(vote_claim(&Bytes::from_static(b"term 2"))),
            written: 70,
            quarantined: true,
        };
        let replicas = [(ReplicaId(1), claim), (ReplicaId(8), Claim::default())];
        let ledger = Ledger {
            commit: 77,
            log_commit: 76,
            facts: [(b"node/name".to_vec(), 5)].into(),
            replicas: replicas.into(),
        };
        let encoded = Bytes::from(ledger.encode());
        assert_eq!(Ledger::decode(encoded.clone()).unwrap(), ledger);
        assert!(Ledger::decode(encoded.slice(..encoded.len() - 1)).is_err());
    }
}
