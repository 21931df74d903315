//! Through which entry a replica's log is durable here.
//!
//! A quorum may have an entry before this node's disk has it. Applied then, a state would refer to
//! bytes that are not there yet: a reader would miss them, and a crash could keep the state and
//! lose the entry. So nothing is applied before it has landed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::watch;

/// The index, and those who wait for it.
pub struct Landed {
    index: watch::Sender<u64>,
    /// Counts truncations: an append from before one says nothing of what came in its place.
    truncations: AtomicU64,
    failed: AtomicBool,
}

impl Landed {
    /// A log that is durable through an index.
    pub fn through(index: u64) -> Self {
        let (truncations, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        Landed { index: watch::Sender::new(index), truncations, failed }
    }

    /// What an append that begins now has to bring along when it is done.
    pub fn ticket(&self) -> u64 {
        self.truncations.load(Ordering::Acquire)
    }

    /// An append is durable.
    pub fn note(&self, last: u64, ticket: u64) {
        self.index.send_if_modified(|index| {
            let further = ticket == self.truncations.load(Ordering::Acquire) && last > *index;
            if further {
                *index = last;
            }
            further
        });
    }

    /// The log is being cut back to an index; what was behind it comes anew.
    pub fn cut(&self, last: u64) {
        self.index.send_if_modified(|index| {
            self.truncations.fetch_add(1, Ordering::AcqRel);
            *index = last.min(*index);
            false
        });
    }

    /// Another replica's state took this one's place: the log ends no later than `last`. Appends
    /// under way still count.
    pub fn replaced(&self, last: u64) {
        self.index.send_modify(|index| *index = last.min(*index));
    }

    /// An append failed, and with it everything behind it: whoever waits waits for nothing.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.index.send_modify(|_| {});
    }

    /// Returns once an index is durable; whether it is, for an append may have failed.
    pub async fn reach(&self, wanted: u64) -> bool {
        let mut index = self.index.subscribe();
        let done = |index: &u64| *index >= wanted || self.failed.load(Ordering::Acquire);
        // An error would mean that the sender is gone, which is ours.
        index.wait_for(done).await.is_ok_and(|index| *index >= wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_append_from_before_a_cut_says_nothing() {
        let landed = Landed::through(5);
        let old = landed.ticket();
        assert!(landed.reach(5).await);
        landed.cut(4);
        landed.note(6, old);
        assert_eq!(*landed.index.borrow(), 4, "entries 5 and 6 were cut off");
        landed.note(5, landed.ticket());
        assert!(landed.reach(5).await);
        landed.replaced(3);
        assert_eq!(*landed.index.borrow(), 3);
        landed.fail();
        assert!(!landed.reach(4).await, "it never will be");
    }
}
