//! Steps of one key, one after another, without waiting for commits.
//!
//! A key with a step under way has a chain. Whoever enters waits for its turn; who has the turn
//! finds the *tail*: the state that the step before made, which may not be committed yet. The
//! next step writes on the condition that the state's writer is that step, so that a commit that
//! did not go through takes everything built on it down with it, and nothing else.

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

/// Steps that may wait for one key.
pub const STEPS_WAITING_MAX: usize = 1_024;

/// How many locks the chains are spread over.
const STRIPES: usize = 64;

/// The state that a step made, committed or not.
#[derive(Clone)]
pub struct Tail {
    pub model: String,
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

/// The right to run the next step of a key. Dropped unused, it passes to the next who waits.
pub struct Turn {
    place: Place,
    tail: Option<Tail>,
    open: bool,
}

/// A step that was proposed and is not committed yet.
pub struct Settling {
    place: Place,
    open: bool,
}

#[derive(Clone)]
struct Place {
    chains: Chains,
    key: ChainKey,
}

impl Chains {
    /// Queues for a turn, in the order of the calls; the future is ready once it comes.
    pub fn enter(
        &self,
        collection: CollectionId,
        key: &Bytes,
    ) -> Result<impl Future<Output = Result<Turn, Failure>> + use<>, Failure> {
        let place = Place { chains: self.clone(), key: (collection, key.clone()) };
        let mut waiting = None;
        let mut ready = None;
        {
            let mut chains = self.stripe(&place.key).lock();
            let chain = chains.entry(place.key.clone()).or_default();
            if !chain.running {
                chain.running = true;
                ready = Some(Turn { tail: chain.tail.clone(), open: true, place: place.clone() });
            } else if chain.waiting.len() >= STEPS_WAITING_MAX {
                return Err(Failure::overloaded(format!(
                    "{STEPS_WAITING_MAX} steps wait for this key, the limit"
                )));
            } else {
                let (sender, receiver) = oneshot::channel();
                chain.waiting.push_back(sender);
                waiting = Some(receiver);
            }
        }
        Ok(async move {
            match (ready, waiting) {
                (Some(turn), _) => Ok(turn),
                (None, Some(receiver)) => receiver.await.map_err(|_| stopping()),
                (None, None) => Err(stopping()),
            }
        })
    }

    fn stripe(&self, key: &ChainKey) -> &Mutex<HashMap<ChainKey, Chain>> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }
}

impl Turn {
    /// The state to build on, if the step before was of the same model version.
    pub fn tail_of(&mut self, model: &str, model_version: u64) -> Option<Tail> {
        self.tail.take().filter(|tail| tail.model == model && tail.model_version == model_version)
    }

    /// The step is proposed: the next one may start, on `tail`.
    pub fn leave(mut self, tail: Tail) -> Settling {
        self.open = false;
        self.place.pass_on(|chain| {
            chain.uncommitted += 1;
            chain.tail = Some(tail);
        });
        Settling { place: self.place.clone(), open: true }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.open {
            self.place.pass_on(|_| {});
        }
    }
}

impl Settling {
    /// The commit went through, or not: then nobody may build on what it made.
    pub fn settle(mut self, committed: bool) {
        self.open = false;
        self.place.settle(committed);
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if self.open {
            // The caller left before the commit; whoever builds on it is checked by apply.
            self.place.settle(true);
        }
    }
}

impl Place {
    /// Ends a turn and starts the next one. A waiter that has given up is passed over.
    fn pass_on(&self, change: impl FnOnce(&mut Chain)) {
        let mut change = Some(change);
        loop {
            let next = {
                let mut chains = self.chains.stripe(&self.key).lock();
                let chain = chains.get_mut(&self.key).expect("a turn keeps its chain");
                if let Some(change) = change.take() {
                    change(chain);
                }
                let next = chain.waiting.pop_front();
                chain.running = next.is_some();
                let tail = chain.tail.clone();
                self.remove_if_idle(chains.entry(self.key.clone()));
                next.map(|sender| (sender, tail))
            };
            let Some((sender, tail)) = next else { return };
            let turn = Turn { place: self.clone(), tail, open: true };
            match sender.send(turn) {
                Ok(()) => return,
                // Not dropped as open: that would pass on from within.
                Err(mut turn) => turn.open = false,
            }
        }
    }

    fn settle(&self, committed: bool) {
        let mut chains = self.chains.stripe(&self.key).lock();
        let Entry::Occupied(mut entry) = chains.entry(self.key.clone()) else { return };
        let chain = entry.get_mut();
        chain.uncommitted -= 1;
        if !committed {
            chain.tail = None;
        }
        self.remove_if_idle(Entry::Occupied(entry));
    }

    fn remove_if_idle(&self, entry: Entry<'_, ChainKey, Chain>) {
        if let Entry::Occupied(entry) = entry {
            let chain = entry.get();
            if !chain.running && chain.waiting.is_empty() && chain.uncommitted == 0 {
                entry.remove();
            }
        }
    }
}

fn stopping() -> Failure {
    Failure::new(Reason::Unavailable, "the node is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(writer: u64) -> Tail {
        Tail { model: "m".into(), model_version: 1, states: Vec::new(), writer }
    }

    async fn enter(chains: &Chains) -> Turn {
        chains.enter(CollectionId(7), &Bytes::from_static(b"k")).unwrap().await.unwrap()
    }

    #[tokio::test]
    async fn steps_take_turns_in_the_order_they_came() {
        let chains = Chains::default();
        let first = enter(&chains).await;
        let mut second = Box::pin(enter(&chains));
        let mut third = Box::pin(enter(&chains));
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert!(futures::poll!(third.as_mut()).is_pending());
        let first = first.leave(tail(1));
        let mut turn = second.await;
        assert_eq!(turn.tail_of("m", 1).unwrap().writer, 1);
        assert!(futures::poll!(third.as_mut()).is_pending());
        let second = turn.leave(tail(2));
        assert_eq!(third.await.tail_of("m", 1).unwrap().writer, 2);
        first.settle(true);
        second.settle(true);
        assert!(chains.stripes.iter().all(|stripe| stripe.lock().is_empty()));
    }

    #[tokio::test]
    async fn nobody_builds_on_a_step_that_was_not_committed() {
        let chains = Chains::default();
        let settling = enter(&chains).await.leave(tail(1));
        settling.settle(false);
        assert!(enter(&chains).await.tail_of("m", 1).is_none());
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
        assert!(chains.stripes.iter().all(|stripe| stripe.lock().is_empty()));
    }
}
