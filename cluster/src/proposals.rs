//! Which waiting commands ride in the next entry of a shard. Pure: the clock comes in as a value.
//!
//! While one entry is on its way to the disk, commands gather; when it is durable, they leave
//! together in the next one, bounded in count and bytes. So a busy shard makes large entries
//! and an idle one answers at once, with nothing to tune.

use std::collections::VecDeque;

use statehouse_store::{Command, CommandBatch};

/// What bounds a shard's queue and its entries.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Proposals that may wait in one shard.
    pub waiting_max: usize,
    /// Bytes of proposals that may wait in one shard.
    pub waiting_bytes_max: usize,
    /// Commands in one entry.
    pub entry_commands_max: usize,
    /// Bytes in one entry, unless its first command alone is larger.
    pub entry_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            waiting_max: 16_384,
            waiting_bytes_max: 64 << 20,
            entry_commands_max: 1_024,
            entry_bytes_max: 4 << 20,
        }
    }
}

/// A command and who waits for its reply.
pub struct Proposal<D> {
    pub command: Command,
    pub done: D,
}

/// What leaves together.
pub struct Cut<D> {
    /// The log index that the entry takes.
    pub index: u64,
    pub batch: CommandBatch,
    pub waiters: Vec<D>,
}

/// The waiting commands of one shard.
pub struct Queue<D> {
    limits: Limits,
    waiting: VecDeque<(Proposal<D>, usize)>,
    waiting_bytes: usize,
    entry_in_flight: bool,
    next_index: u64,
    last_time_ms: u64,
}

impl<D> Queue<D> {
    /// A queue whose next entry takes `next_index`.
    pub fn new(limits: Limits, next_index: u64) -> Self {
        Queue {
            limits,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            entry_in_flight: false,
            next_index,
            last_time_ms: 0,
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a proposal, or gives back who waits for it when the queue is full.
    pub fn push(&mut self, proposal: Proposal<D>, bytes: usize) -> Result<(), D> {
        let full = self.waiting.len() >= self.limits.waiting_max
            || (self.waiting_bytes + bytes > self.limits.waiting_bytes_max
                && !self.waiting.is_empty());
        if full {
            return Err(proposal.done);
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back((proposal, bytes));
        Ok(())
    }

    /// The next entry, if commands wait and none is on its way. The caller appends it.
    pub fn cut(&mut self, now_ms: u64) -> Option<Cut<D>> {
        if self.entry_in_flight || self.waiting.is_empty() {
            return None;
        }
        let mut commands = Vec::new();
        let mut waiters = Vec::new();
        let mut entry_bytes = 0;
        while let Some((_, bytes)) = self.waiting.front() {
            let fits = entry_bytes + bytes <= self.limits.entry_bytes_max
                && commands.len() < self.limits.entry_commands_max;
            if !fits && !commands.is_empty() {
                break;
            }
            entry_bytes += bytes;
            let (proposal, bytes) = self.waiting.pop_front().expect("front was there");
            self.waiting_bytes -= bytes;
            commands.push(proposal.command);
            waiters.push(proposal.done);
        }
        self.entry_in_flight = true;
        let index = self.next_index;
        self.next_index += 1;
        // A shard's time never runs backwards, whatever the machine's clock does.
        self.last_time_ms = self.last_time_ms.max(now_ms);
        Some(Cut { index, batch: CommandBatch { time_ms: self.last_time_ms, commands }, waiters })
    }

    /// The entry on its way is durable: the next may be cut.
    pub fn landed(&mut self) {
        assert!(self.entry_in_flight, "an entry was on its way");
        self.entry_in_flight = false;
    }

    /// Everyone who waits, when the shard closes.
    pub fn drain(&mut self) -> Vec<D> {
        self.waiting_bytes = 0;
        self.waiting.drain(..).map(|(proposal, _)| proposal.done).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statehouse_store::CollectionId;

    fn proposal(n: u32) -> Proposal<u32> {
        let command = Command::DropCollection { collection: CollectionId(u64::from(n)) };
        Proposal { command, done: n }
    }

    fn queue(limits: Limits) -> Queue<u32> {
        Queue::new(limits, 7)
    }

    #[test]
    fn commands_gather_while_an_entry_is_on_its_way() {
        let mut queue = queue(Limits::default());
        assert!(queue.push(proposal(1), 10).is_ok());
        let first = queue.cut(100).unwrap();
        assert_eq!((first.index, first.waiters), (7, vec![1]));
        for n in 2..=4 {
            assert!(queue.push(proposal(n), 10).is_ok());
        }
        assert!(queue.cut(101).is_none(), "one entry at a time");
        queue.landed();
        let second = queue.cut(102).unwrap();
        assert_eq!((second.index, second.waiters), (8, vec![2, 3, 4]));
    }

    #[test]
    fn an_entry_is_bounded_in_count_and_bytes_but_never_empty() {
        let limits = Limits { entry_commands_max: 2, entry_bytes_max: 100, ..Limits::default() };
        let mut queue = queue(limits);
        for (n, bytes) in [(1, 10), (2, 10), (3, 10), (4, 500), (5, 90), (6, 20)] {
            assert!(queue.push(proposal(n), bytes).is_ok());
        }
        let mut cuts = Vec::new();
        while let Some(cut) = queue.cut(0) {
            cuts.push(cut.waiters);
            queue.landed();
        }
        assert_eq!(cuts, vec![vec![1, 2], vec![3], vec![4], vec![5], vec![6]]);
    }

    #[test]
    fn a_full_queue_gives_the_waiter_back() {
        let limits = Limits { waiting_max: 2, waiting_bytes_max: 50, ..Limits::default() };
        let mut by_count = queue(limits);
        assert!(by_count.push(proposal(1), 1).is_ok());
        assert!(by_count.push(proposal(2), 1).is_ok());
        assert_eq!(by_count.push(proposal(3), 1), Err(3));
        let mut by_bytes = queue(limits);
        assert!(by_bytes.push(proposal(1), 80).is_ok(), "one large proposal always fits");
        assert!(by_bytes.push(proposal(2), 1).is_err());
    }

    #[test]
    fn a_shards_time_never_runs_backwards() {
        let mut queue = queue(Limits::default());
        assert!(queue.push(proposal(1), 1).is_ok());
        assert_eq!(queue.cut(500).unwrap().batch.time_ms, 500);
        queue.landed();
        assert!(queue.push(proposal(2), 1).is_ok());
        assert_eq!(queue.cut(400).unwrap().batch.time_ms, 500);
    }
}
