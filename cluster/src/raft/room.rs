//! Room on the disks of a group: what a replica short of space still takes, and what its leader
//! admits.
//!
//! A follower below its reserve takes no large entries, and below its freeing reserve none that
//! adds anything: it stays behind, with its log and vote in order, until there is space, while the
//! others go on. An entry that a quorum can't do without is taken as long as the freeing reserve is
//! there: deletes may lie behind it. So that there are few of those, a leader admits nothing that
//! adds once most of its group is short of space.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use statehouse_store::{DiskLevel, Store};

use super::group::Group;
use crate::transport::Peers;
use crate::{Error, NodeId};

/// An entry of more bytes is large: a replica below its reserve does without it.
pub(super) const SMALL_ENTRY_BYTES_MAX: usize = 64 << 10;

/// Whether most of a group is short of space, as its leader knows.
#[derive(Debug, Default)]
pub struct Room {
    quorum_short: AtomicBool,
}

impl Room {
    pub fn quorum_is_short(&self) -> bool {
        self.quorum_short.load(Ordering::Relaxed)
    }
}

/// What a replica knows of an entry that it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offered {
    /// It adds no bytes of a caller's.
    pub frees: bool,
    pub bytes: usize,
}

/// Returns how many of the entries, from the first on, a replica takes on a disk of a level.
/// `needed`: without this replica there is no quorum with room for them. Pure.
pub(super) fn taken(
    level: DiskLevel,
    needed: bool,
    mut entries: impl ExactSizeIterator<Item = Offered>,
) -> usize {
    let takes = |entry: Offered| match level {
        DiskLevel::Ample => true,
        DiskLevel::Reserved => entry.frees || needed || entry.bytes <= SMALL_ENTRY_BYTES_MAX,
        DiskLevel::Freeing => entry.frees,
        DiskLevel::Spent => false,
    };
    let count = entries.len();
    entries.position(|entry| !takes(entry)).unwrap_or(count)
}

impl Group {
    /// Refuses if most of the group is short of space: for commands that add to it. What was found
    /// at the last heartbeat admits; before it refuses, the disks are looked at again.
    pub fn check_room(&self) -> Result<(), Error> {
        if self.room.quorum_is_short() {
            self.look_for_room(&short_of_space(&self.peers, &self.store));
        }
        match self.room.quorum_is_short() && self.leads() {
            true => Err(Error::DisksFull { shard: self.shard }),
            false => Ok(()),
        }
    }

    /// Looks whether most of a group that is led here has room on its disks; `short` has the nodes
    /// that don't. Of a change that is half done, both halves count.
    pub(super) fn look_for_room(&self, short: &HashSet<NodeId>) {
        let is_short = !short.is_empty() && self.leads() && {
            let voters = self.status().voters;
            let roomy = voters.values().filter(|node| !short.contains(node)).count();
            roomy <= voters.len() / 2
        };
        if self.room.quorum_short.swap(is_short, Ordering::Relaxed) != is_short {
            tracing::warn!(shard = %self.shard, is_short, "disks of most of a shard's replicas");
        }
    }

    /// Whether this replica does without entries that its leader has, for want of space.
    pub fn is_out_of_room(&self) -> bool {
        self.out_of_room.load(Ordering::Relaxed)
    }

    /// Notes whether entries were refused for want of space.
    pub(super) fn note_room(&self, refused: bool) {
        if self.out_of_room.swap(refused, Ordering::Relaxed) != refused {
            let shard = self.shard;
            match refused {
                true => {
                    tracing::warn!(%shard, "disk nearly full: large entries wait at the leader");
                }
                false => tracing::info!(%shard, "entries are taken again"),
            }
        }
    }
}

/// The nodes, of this one and its peers, whose disks have less free than their reserve: of this
/// one's as it is, of the peers' as they said last.
pub(super) fn short_of_space(peers: &Peers, store: &Store) -> HashSet<NodeId> {
    let mut short = peers.short_of_space();
    if store.check_space().is_err() {
        short.insert(peers.node());
    }
    short
}

/// Room, as shared between a group and its links.
pub type SharedRoom = Arc<Room>;

#[cfg(test)]
mod tests {
    use super::*;

    const DELETE: Offered = Offered { frees: true, bytes: 100 };
    const SMALL: Offered = Offered { frees: false, bytes: SMALL_ENTRY_BYTES_MAX };
    const LARGE: Offered = Offered { frees: false, bytes: SMALL_ENTRY_BYTES_MAX + 1 };

    fn check(level: DiskLevel, needed: bool, entries: &[Offered], expected: usize) {
        let found = taken(level, needed, entries.iter().copied());
        assert_eq!(found, expected, "{level:?}, needed {needed}, {entries:?}");
    }

    #[test]
    fn the_fuller_a_disk_the_less_is_taken_and_never_past_what_is_refused() {
        let all = [DELETE, SMALL, LARGE, DELETE];
        check(DiskLevel::Ample, false, &all, 4);
        check(DiskLevel::Reserved, false, &all, 2);
        check(DiskLevel::Freeing, false, &all, 1);
        check(DiskLevel::Spent, false, &all, 0);
        check(DiskLevel::Freeing, false, &[DELETE, DELETE], 2);
        check(DiskLevel::Spent, false, &[], 0);
    }

    #[test]
    fn what_a_quorum_needs_is_taken_as_long_as_deletes_have_room() {
        check(DiskLevel::Reserved, true, &[LARGE, DELETE], 2);
        check(DiskLevel::Freeing, true, &[LARGE, DELETE], 0);
        check(DiskLevel::Spent, true, &[DELETE], 0);
    }
}
