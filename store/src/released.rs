//! What a purge of a log deletes beside entries: noted once it is written.

use std::sync::atomic::Ordering;

use crate::db::Mutation;
use crate::disk::Replica;

/// Chunks that a purge deletes.
#[derive(Default)]
pub(crate) struct Released {
    bytes: u64,
    ranges: Vec<(Vec<u8>, Vec<u8>, u64)>,
    rows: u64,
}

impl Released {
    /// Adds the deletions of one piece of garbage, of about so many bytes.
    pub fn note(&mut self, bytes: u64, deletions: &[Mutation]) {
        self.bytes = self.bytes.saturating_add(bytes);
        for deletion in deletions {
            match deletion {
                Mutation::DeleteRange { start, end, .. } => {
                    self.ranges.push((start.clone(), end.clone(), bytes));
                }
                Mutation::Delete { .. } => self.rows += 1,
                Mutation::Put { .. } => {}
            }
        }
    }

    /// The deletions are written: their space comes back with a flush and a compaction.
    pub fn settle(self, replica: &Replica) {
        replica.freed_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        let less = |waiting: u64| Some(waiting.saturating_sub(self.bytes));
        // Never refused: the closure always has a value.
        let _ = replica.garbage_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let mut deleted = replica.deleted.lock();
        for (start, end, bytes) in &self.ranges {
            deleted.add(start, end, *bytes);
        }
        deleted.add_rows(self.rows);
    }
}
