//! What each follower has acknowledged to this replica while it led, so that one that has lost it
//! is noticed. Pure.
//!
//! A follower acknowledges an entry once it is on its disk, and an entry that a quorum has
//! acknowledged is committed. One that does not have what it acknowledged has broken the promise
//! that commits stand on: a disk that lied, a directory put back from a copy. openraft either
//! panics at that (with debug assertions) or goes on counting what is gone. Here the follower is
//! written down as *reverted*: openraft is not told of its answers any more, so that it counts for
//! nothing within this term, and who looks after the cluster has to replace it.
//!
//! Only what had been acknowledged before a request was sent counts against its answer, and only
//! within one term: a newer leader may rightly have cut the follower's log.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use statehouse_store::{EntryId, ReplicaId};

/// Of one replica, in the term in which it last led.
#[derive(Debug, Default)]
pub struct Acknowledged(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    term: u64,
    through: HashMap<u64, u64>,
    /// What each replica should have had, by its own word.
    reverted: BTreeMap<ReplicaId, EntryId>,
}

impl Acknowledged {
    /// The index through which a replica has acknowledged in a term; 0 if nothing is known.
    pub fn through(&self, replica: u64, term: u64) -> u64 {
        let known = self.0.lock();
        if known.term == term { known.through.get(&replica).copied().unwrap_or(0) } else { 0 }
    }

    /// A replica has acknowledged everything through an index.
    pub fn note(&self, replica: u64, term: u64, through: u64) {
        let mut known = self.0.lock();
        if term > known.term {
            *known =
                Known { term, reverted: std::mem::take(&mut known.reverted), ..Known::default() };
        }
        if term == known.term {
            let newest = known.through.entry(replica).or_default();
            *newest = through.max(*newest);
        }
    }

    /// A replica does not have an entry that it acknowledged. Answers whether that is news.
    pub fn revert(&self, replica: u64, missing: EntryId) -> bool {
        self.0.lock().reverted.insert(ReplicaId(replica), missing).is_none()
    }

    /// The replicas that have lost what they acknowledged.
    pub fn reverted(&self) -> BTreeMap<ReplicaId, EntryId> {
        self.0.lock().reverted.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_of_the_same_term() {
        let acknowledged = Acknowledged::default();
        acknowledged.note(1, 3, 10);
        acknowledged.note(1, 3, 8);
        acknowledged.note(2, 3, 4);
        assert_eq!((acknowledged.through(1, 3), acknowledged.through(2, 3)), (10, 4));
        assert_eq!(acknowledged.through(1, 4), 0, "another leader may have cut it back since");
        acknowledged.note(2, 5, 6);
        assert_eq!((acknowledged.through(1, 5), acknowledged.through(2, 5)), (0, 6));
        acknowledged.note(1, 3, 20);
        assert_eq!(acknowledged.through(1, 3), 0, "an answer that comes late");
    }

    #[test]
    fn a_replica_that_reverted_stays_so() {
        let acknowledged = Acknowledged::default();
        let missing = EntryId { index: 9, term: 3 };
        assert!(acknowledged.revert(1, missing));
        assert!(!acknowledged.revert(1, missing), "it is said once");
        acknowledged.note(2, 7, 1);
        assert_eq!(acknowledged.reverted(), BTreeMap::from([(ReplicaId(1), missing)]));
    }
}
