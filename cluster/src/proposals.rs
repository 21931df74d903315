//! Which waiting commands ride in the next entry of a shard. Pure: the clock comes in as a value.
//!
//! While entries are on their way to a quorum, commands gather; when one is committed, they leave
//! together in the next one, bounded in count and bytes. So a busy shard makes large entries
//! and an idle one answers at once, with nothing to tune.

use std::collections::{BTreeMap, VecDeque};

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
    /// Entries of one shard that are proposed and not committed.
    pub entries_in_flight_max: usize,
    /// While one is, the next leaves only if at least so many bytes wait: few entries are cheap.
    pub entry_early_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            waiting_max: 16_384,
            waiting_bytes_max: 64 << 20,
            entry_commands_max: 1_024,
            entry_bytes_max: 4 << 20,
            entries_in_flight_max: 2,
            entry_early_bytes: 256 << 10,
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
    /// Its place among the cuts of the queue.
    pub sequence: u64,
    pub batch: CommandBatch,
    pub waiters: Vec<D>,
}

/// The waiting commands of one shard.
pub struct Queue<D> {
    limits: Limits,
    waiting: VecDeque<(Proposal<D>, usize)>,
    waiting_bytes: usize,
    in_flight: usize,
    /// Cuts that were refused before they became entries, to be tried again.
    returned: BTreeMap<u64, Cut<D>>,
    next_sequence: u64,
    last_time_ms: u64,
}

impl<D> Queue<D> {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Queue {
            limits,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: 0,
            returned: BTreeMap::new(),
            next_sequence: 0,
            last_time_ms: 0,
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.returned.values().map(|cut| cut.waiters.len()).sum::<usize>()
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

    /// The next entry, if commands wait and not too many entries are on their way. The caller
    /// proposes it.
    pub fn cut(&mut self, now_ms: u64) -> Option<Cut<D>> {
        // What was returned goes again alone and first, so that the order stays.
        if !self.returned.is_empty() {
            if self.in_flight > 0 {
                return None;
            }
            self.in_flight = 1;
            return self.returned.pop_first().map(|(_, cut)| cut);
        }
        if self.in_flight >= self.limits.entries_in_flight_max || self.waiting.is_empty() {
            return None;
        }
        if self.in_flight > 0 && self.waiting_bytes < self.limits.entry_early_bytes {
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
        self.in_flight += 1;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        // A shard's time never runs backwards, whatever the machine's clock does.
        self.last_time_ms = self.last_time_ms.max(now_ms);
        let batch = CommandBatch { time_ms: self.last_time_ms, commands };
        Some(Cut { sequence, batch, waiters })
    }

    /// An entry on its way is committed, or lost: the next may be cut.
    pub fn landed(&mut self) {
        assert!(self.in_flight > 0, "an entry was on its way");
        self.in_flight -= 1;
    }

    /// A cut on its way was refused before it became an entry: it is tried again.
    pub fn give_back(&mut self, cut: Cut<D>) {
        self.landed();
        self.returned.insert(cut.sequence, cut);
    }

    /// Everyone who waits, when the shard closes or another replica leads.
    pub fn drain(&mut self) -> Vec<D> {
        self.waiting_bytes = 0;
        let returned = std::mem::take(&mut self.returned).into_values().flat_map(|cut| cut.waiters);
        let waiting = self.waiting.drain(..).map(|(proposal, _)| proposal.done);
        returned.chain(waiting).collect()
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
        Queue::new(limits)
    }

    fn one_at_a_time() -> Limits {
        Limits { entries_in_flight_max: 1, ..Limits::default() }
    }

    #[test]
    fn commands_gather_while_entries_are_on_their_way() {
        let limits = Limits { entry_early_bytes: 1_000, ..Limits::default() };
        let mut queue = queue(limits);
        assert!(queue.push(proposal(1), 10).is_ok());
        assert_eq!(queue.cut(100).unwrap().waiters, vec![1]);
        assert!(queue.push(proposal(2), 999).is_ok());
        assert!(queue.cut(100).is_none(), "a small one waits for company");
        assert!(queue.push(proposal(2), 1).is_ok());
        assert_eq!(queue.cut(100).unwrap().waiters, vec![2, 2], "a large one does not");
        for n in 3..=5 {
            assert!(queue.push(proposal(n), 1_000).is_ok());
        }
        assert!(queue.cut(101).is_none(), "but no more");
        queue.landed();
        assert_eq!(queue.cut(102).unwrap().waiters, vec![3, 4, 5]);
    }

    #[test]
    fn an_entry_is_bounded_in_count_and_bytes_but_never_empty() {
        let limits = Limits { entry_commands_max: 2, entry_bytes_max: 100, ..one_at_a_time() };
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
        let mut queue = queue(one_at_a_time());
        assert!(queue.push(proposal(1), 1).is_ok());
        assert_eq!(queue.cut(500).unwrap().batch.time_ms, 500);
        queue.landed();
        assert!(queue.push(proposal(2), 1).is_ok());
        assert_eq!(queue.cut(400).unwrap().batch.time_ms, 500);
    }

    #[test]
    fn refused_entries_go_again_in_their_order_before_all_others() {
        let mut queue = queue(Limits { entry_early_bytes: 0, ..Limits::default() });
        let mut cuts = Vec::new();
        for n in 1..=2 {
            assert!(queue.push(proposal(n), 1).is_ok());
            cuts.push(queue.cut(0).unwrap());
        }
        assert!(queue.push(proposal(3), 1).is_ok());
        queue.give_back(cuts.remove(0));
        assert!(queue.cut(0).is_none(), "the second may still come back");
        queue.give_back(cuts.remove(0));
        assert_eq!(queue.waiting(), 3);
        let mut order = Vec::new();
        while let Some(cut) = queue.cut(0) {
            order.extend(cut.waiters);
            queue.landed();
        }
        assert_eq!(order, vec![1, 2, 3]);
    }

    #[test]
    fn draining_gives_everyone_back_in_order() {
        let mut queue = queue(Limits::default());
        for n in 1..=3 {
            assert!(queue.push(proposal(n), 1).is_ok());
        }
        let cut = queue.cut(0).unwrap();
        queue.give_back(cut);
        assert!(queue.push(proposal(4), 1).is_ok());
        assert_eq!(queue.drain(), vec![1, 2, 3, 4]);
        assert_eq!(queue.waiting(), 0);
    }
}
