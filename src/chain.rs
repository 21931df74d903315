//! Writes and steps of one key, one after another, without waiting for commits.
//!
//! A key with something under way has a chain. Whoever wants to write enters and waits for its
//! turn, so that what reaches the shard's queue has the order of arrival. A step leaves behind
//! the *tail*: the state that it made, not committed yet. The next step builds on it, on the
//! condition that the state's writer is that step, so that a commit that did not go through takes
//! everything built on it down with it, and nothing else: a step that was under way when a commit
//! failed leaves no tail either. A plain write leaves no tail: a step behind it waits until the
//! key has *settled*, which is when nothing is uncommitted.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use statehouse_inference::Tensor;
use statehouse_store::CollectionId;
use tokio::sync::oneshot;

use crate::failure::{Failure, Reason};

/// Writes and steps that may wait for one key.
pub const WAITING_PER_KEY_MAX: usize = 1_024;

/// How many locks the chains are spread over.
const STRIPES: usize = 64;

/// The state that a step made, committed or not.
#[derive(Clone)]
pub struct Tail {
    /// Of which model.
    pub model: String,
    /// Of which version.
    pub model_version: u64,
    /// In the model's order.
    pub states: Vec<Tensor>,
    /// The token under which the step's write stands in the record.
    pub writer: u64,
}

type ChainKey = (CollectionId, Bytes);

#[derive(Default)]
struct Chain {
    running: bool,
    waiting: VecDeque<oneshot::Sender<Turn>>,
    uncommitted: usize,
    tail: Option<Tail>,
    /// Commits that did not go through. What was built before the newest of them may not hold.
    failed: u64,
    settled: Option<oneshot::Sender<()>>,
}

/// The chains of a node.
#[derive(Clone)]
pub struct Chains {
    stripes: Arc<[Mutex<HashMap<ChainKey, Chain>>]>,
    hasher: Arc<RandomState>,
}

impl Default for Chains {
    fn default() -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Chains { stripes, hasher: Arc::default() }
    }
}

/// The right to write a key next. Dropped, it passes to the next who waits.
pub struct Turn {
    place: Place,
    tail: Option<Tail>,
    /// The chain's failed commits when the turn began.
    failed: u64,
    open: bool,
}

/// A write that was proposed and is not committed yet.
pub struct Uncommitted {
    place: Place,
    open: bool,
}

#[derive(Clone)]
struct Place {
    chains: Chains,
    key: ChainKey,
}

/// What entering comes to: a turn at once, or later.
enum Entered {
    Turn(Turn),
    Waiting(oneshot::Receiver<Turn>),
}

impl Chains {
    /// Queues for a turn, in the order of the calls; the future is ready once it comes.
    pub fn enter(
        &self,
        collection: CollectionId,
        key: &Bytes,
    ) -> Result<impl Future<Output = Result<Turn, Failure>> + use<>, Failure> {
        let place = Place { chains: self.clone(), key: (collection, key.clone()) };
        let entered = place.enter()?;
        Ok(async move {
            match entered {
                Entered::Turn(turn) => Ok(turn),
                Entered::Waiting(receiver) => receiver.await.map_err(|_| stopping()),
            }
        })
    }

    fn stripe(&self, key: &ChainKey) -> &Mutex<HashMap<ChainKey, Chain>> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }
}

impl Turn {
    /// The state to build on, if the write before was a step of the same model version.
    pub fn tail_of(&mut self, model: &str, model_version: u64) -> Option<Tail> {
        self.tail.take().filter(|tail| tail.model == model && tail.model_version == model_version)
    }

    /// Waits until nothing of the key is uncommitted: then what is stored is what is.
    pub async fn settled(&mut self) -> Result<(), Failure> {
        loop {
            let wait = {
                let mut chains = self.place.stripe().lock();
                let chain = chains.get_mut(&self.place.key).expect("a turn keeps its chain");
                if chain.uncommitted == 0 {
                    // What failed before was waited for.
                    self.failed = chain.failed;
                    return Ok(());
                }
                let (sender, receiver) = oneshot::channel();
                chain.settled = Some(sender);
                receiver
            };
            wait.await.map_err(|_| stopping())?;
        }
    }

    /// Counts a write about to be proposed; what comes back must learn how it ended.
    pub fn begin(&self) -> Uncommitted {
        let mut chains = self.place.stripe().lock();
        chains.get_mut(&self.place.key).expect("a turn keeps its chain").uncommitted += 1;
        Uncommitted { place: self.place.clone(), open: true }
    }

    /// The write is proposed: the next may go, on the state that this one made if it's known.
    pub fn leave(mut self, tail: Option<Tail>) {
        self.open = false;
        let failed = self.failed;
        // Without the comparison, one failed commit under a key that is never idle would be handed
        // on from step to step: each would build on the one before, and all would be in vain.
        self.place.pass_on(|chain| chain.tail = tail.filter(|_| chain.failed == failed));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.open {
            self.place.pass_on(|_| {});
        }
    }
}

impl Uncommitted {
    /// The commit went through, or not: then nobody may build on what it made.
    pub fn settle(mut self, committed: bool) {
        self.open = false;
        self.place.settle(committed);
    }
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if self.open {
            self.place.settle(false);
        }
    }
}

impl Place {
    fn stripe(&self) -> &Mutex<HashMap<ChainKey, Chain>> {
        self.chains.stripe(&self.key)
    }

    fn enter(self) -> Result<Entered, Failure> {
        let mut chains = self.stripe().lock();
        let chain = chains.entry(self.key.clone()).or_default();
        if !chain.running {
            chain.running = true;
            let (tail, failed) = (chain.tail.clone(), chain.failed);
            drop(chains);
            return Ok(Entered::Turn(Turn { place: self, tail, failed, open: true }));
        }
        if chain.waiting.len() >= WAITING_PER_KEY_MAX {
            return Err(Failure::overloaded(format!(
                "{WAITING_PER_KEY_MAX} writes and steps wait for this key, the limit"
            )));
        }
        let (sender, receiver) = oneshot::channel();
        chain.waiting.push_back(sender);
        Ok(Entered::Waiting(receiver))
    }

    /// Ends a turn and starts the next one. A waiter that has given up is passed over.
    fn pass_on(&self, change: impl FnOnce(&mut Chain)) {
        let mut change = Some(change);
        loop {
            let next = {
                let mut chains = self.stripe().lock();
                let chain = chains.get_mut(&self.key).expect("a turn keeps its chain");
                if let Some(change) = change.take() {
                    change(chain);
                }
                let next = chain.waiting.pop_front();
                chain.running = next.is_some();
                let next = next.map(|sender| (sender, chain.tail.clone(), chain.failed));
                if next.is_none() {
                    remove_if_idle(chains.entry(self.key.clone()));
                }
                next
            };
            let Some((sender, tail, failed)) = next else { return };
            let turn = Turn { place: self.clone(), tail, failed, open: true };
            match sender.send(turn) {
                Ok(()) => return,
                // Not dropped as open: that would pass on from within.
                Err(mut turn) => turn.open = false,
            }
        }
    }

    fn settle(&self, committed: bool) {
        let mut chains = self.stripe().lock();
        let Entry::Occupied(mut entry) = chains.entry(self.key.clone()) else { return };
        let chain = entry.get_mut();
        chain.uncommitted -= 1;
        if !committed {
            chain.tail = None;
            chain.failed += 1;
        }
        if chain.uncommitted == 0
            && let Some(waiter) = chain.settled.take()
        {
            // Whoever has the turn may have given up meanwhile.
            let _ = waiter.send(());
        }
        remove_if_idle(Entry::Occupied(entry));
    }
}

fn remove_if_idle(entry: Entry<'_, ChainKey, Chain>) {
    if let Entry::Occupied(entry) = entry {
        let chain = entry.get();
        if !chain.running && chain.waiting.is_empty() && chain.uncommitted == 0 {
            entry.remove();
        }
    }
}

fn stopping() -> Failure {
    Failure::new(Reason::Unavailable, "the node is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(writer: u64) -> Option<Tail> {
        Some(Tail { model: "m".into(), model_version: 1, states: Vec::new(), writer })
    }

    async fn enter(chains: &Chains) -> Turn {
        chains.enter(CollectionId(7), &Bytes::from_static(b"k")).unwrap().await.unwrap()
    }

    fn is_empty(chains: &Chains) -> bool {
        chains.stripes.iter().all(|stripe| stripe.lock().is_empty())
    }

    #[tokio::test]
    async fn turns_come_in_the_order_of_entering() {
        let chains = Chains::default();
        let first = enter(&chains).await;
        let mut second = Box::pin(enter(&chains));
        let mut third = Box::pin(enter(&chains));
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert!(futures::poll!(third.as_mut()).is_pending());
        let first_commit = first.begin();
        first.leave(tail(1));
        let mut turn = second.await;
        assert_eq!(turn.tail_of("m", 1).unwrap().writer, 1);
        assert!(futures::poll!(third.as_mut()).is_pending());
        let second_commit = turn.begin();
        turn.leave(tail(2));
        let mut turn = third.await;
        assert_eq!(turn.tail_of("m", 1).unwrap().writer, 2);
        drop(turn);
        first_commit.settle(true);
        assert!(!is_empty(&chains), "something is uncommitted");
        second_commit.settle(true);
        assert!(is_empty(&chains));
    }

    #[tokio::test]
    async fn nobody_builds_on_what_was_not_committed() {
        let chains = Chains::default();
        let (turn, other) = (enter(&chains).await, 1);
        let commit = turn.begin();
        turn.leave(tail(other));
        commit.settle(false);
        assert!(enter(&chains).await.tail_of("m", 1).is_none());
        assert!(is_empty(&chains));
    }

    #[tokio::test]
    async fn a_failed_commit_is_not_handed_on_by_the_step_under_way() {
        let chains = Chains::default();
        let first = enter(&chains).await;
        let first_commit = first.begin();
        first.leave(tail(1));
        let mut second = enter(&chains).await;
        assert_eq!(second.tail_of("m", 1).unwrap().writer, 1);
        let mut third = Box::pin(enter(&chains));
        assert!(futures::poll!(third.as_mut()).is_pending());
        first_commit.settle(false);
        let second_commit = second.begin();
        second.leave(tail(2));
        let mut third = third.await;
        assert!(third.tail_of("m", 1).is_none(), "the second built on what was not committed");
        second_commit.settle(false);
        third.settled().await.unwrap();
        let third_commit = third.begin();
        third.leave(tail(3));
        assert_eq!(enter(&chains).await.tail_of("m", 1).unwrap().writer, 3);
        third_commit.settle(true);
    }

    #[tokio::test]
    async fn a_step_behind_a_plain_write_waits_until_the_key_has_settled() {
        let chains = Chains::default();
        let turn = enter(&chains).await;
        let commit = turn.begin();
        turn.leave(None);
        let mut step = enter(&chains).await;
        assert!(step.tail_of("m", 1).is_none());
        {
            let mut settled = Box::pin(step.settled());
            assert!(futures::poll!(settled.as_mut()).is_pending());
            commit.settle(true);
            settled.await.unwrap();
        }
        step.settled().await.unwrap();
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_is_passed_over() {
        let chains = Chains::default();
        let first = enter(&chains).await;
        let gone = chains.enter(CollectionId(7), &Bytes::from_static(b"k")).unwrap();
        let mut third = Box::pin(enter(&chains));
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(gone);
        drop(first);
        drop(third.await);
        assert!(is_empty(&chains));
    }
}
