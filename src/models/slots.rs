//! The loaded versions of models: each is loaded once, by whoever needs it first, for all.
//!
//! A load is a task that ends by itself: what it has loaded belongs to its slot, whoever is still
//! waiting. A slot that was cleared meanwhile keeps nothing, and what was loaded for it is let go.
//! A load that failed for a reason of the node's (a damaged file, no room) is tried again by who
//! asks later, since the file may have been healed. One that failed for a reason of the model's is
//! not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::failure::{Failure, Reason};

/// A model's name and a version of it.
pub type Key = (String, u64);

/// One version's place: filled by the first who needs it, shared by all.
type Slot<T> = Arc<OnceCell<Tried<T>>>;

/// How long a load that failed is not tried again: it may read hundreds of MiB.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The outcome of a load, and the time of it.
struct Tried<T> {
    result: Result<T, Failure>,
    at: Instant,
}

impl<T> Tried<T> {
    fn now(result: Result<T, Failure>) -> Tried<T> {
        Tried { result, at: Instant::now() }
    }

    fn is_due_again(&self, after: Duration) -> bool {
        let failed = self.result.as_ref().is_err_and(|failure| may_pass(failure.reason));
        failed && self.at.elapsed() >= after
    }
}

/// Whether a failure says something of the node now, and nothing of the model.
fn may_pass(reason: Reason) -> bool {
    use Reason::{Corrupt, DeadlineExceeded, Internal, NotLeader, Overloaded, Unavailable};
    matches!(reason, Corrupt | DeadlineExceeded | Internal | NotLeader | Overloaded | Unavailable)
}

/// Lets go of what was loaded. Twice is as good as once.
type Release<T> = Box<dyn Fn(&T) + Send + Sync>;

/// The slots of all versions.
pub struct Slots<T> {
    slots: Mutex<HashMap<Key, Slot<T>>>,
    release: Release<T>,
    retry_after: Duration,
}

impl<T: Clone + Send + Sync + 'static> Slots<T> {
    /// No slots, and how what was in one is let go.
    pub fn new(release: Release<T>) -> Arc<Self> {
        Arc::new(Slots { slots: Mutex::default(), release, retry_after: RETRY_AFTER })
    }

    /// Returns what is in a slot. The first who asks fills it, or fills it again some time after a
    /// failure of the node's; the load goes on if they give up.
    pub async fn load<F>(self: &Arc<Self>, key: Key, load: F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let slot = self.slot(&key);
        if let Some(tried) = slot.get() {
            return tried.result.clone();
        }
        let slots = self.clone();
        let filling = tokio::spawn(async move {
            slot.get_or_init(|| async { Tried::now(load.await) }).await;
            slots.settled(&key, &slot)
        });
        let panicked = |_| Err(Failure::new(Reason::Internal, "loading a model panicked"));
        filling.await.unwrap_or_else(panicked)
    }

    /// The slot of a version: a new one if there is none, or if its load is due again.
    fn slot(&self, key: &Key) -> Slot<T> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(key.clone()).or_default();
        if slot.get().is_some_and(|tried| tried.is_due_again(self.retry_after)) {
            *slot = Slot::default();
        }
        slot.clone()
    }

    /// What whoever waited for a slot gets: the slot may have been cleared or replaced meanwhile.
    fn settled(&self, key: &Key, slot: &Slot<T>) -> Result<T, Failure> {
        let current = self.slots.lock().get(key).cloned();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, slot)) {
            return result_of(slot).unwrap_or_else(|| Err(gone(key)));
        }
        if let Some(Ok(loaded)) = result_of(slot) {
            (self.release)(&loaded);
        }
        current.and_then(|current| result_of(&current)).unwrap_or_else(|| Err(gone(key)))
    }

    /// Puts what was loaded into its slot, or lets go of it if something is there.
    pub fn keep(&self, key: Key, loaded: T) {
        let mut slots = self.slots.lock();
        let slot = slots.entry(key).or_default();
        if matches!(slot.get(), Some(Tried { result: Ok(_), .. })) {
            return (self.release)(&loaded);
        }
        *slot = Slot::new(OnceCell::new_with(Some(Tried::now(Ok(loaded)))));
    }

    /// Clears the slots of a model's version, or with `None` of all its versions.
    pub fn clear(&self, name: &str, version: Option<u64>) {
        let mut slots = self.slots.lock();
        slots.retain(|(model, found), slot| {
            let kept = model != name || version.is_some_and(|only| only != *found);
            if !kept && let Some(Ok(loaded)) = result_of(slot) {
                (self.release)(&loaded);
            }
            kept
        });
    }

    /// What loading came to, if it was tried.
    pub fn peek(&self, key: &Key) -> Option<Result<T, Failure>> {
        self.slots.lock().get(key).and_then(result_of)
    }
}

fn result_of<T: Clone>(slot: &Slot<T>) -> Option<Result<T, Failure>> {
    slot.get().map(|tried| tried.result.clone())
}

fn gone((name, version): &Key) -> Failure {
    let message = format!("version {version} of model {name:?} was deleted while it was loaded");
    Failure::new(Reason::ModelVersionNotFound, message).with("name", name).with("version", version)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Slots of numbers, and the sum of those that were let go.
    fn slots() -> (Arc<Slots<u32>>, Arc<AtomicU32>) {
        let released = Arc::new(AtomicU32::new(0));
        let sum = released.clone();
        let release = Box::new(move |loaded: &u32| {
            sum.fetch_add(*loaded, Ordering::Relaxed);
        });
        (Slots::new(release), released)
    }

    fn key() -> Key {
        ("m".to_owned(), 1)
    }

    /// A load that ends when it is told with what.
    fn load() -> (oneshot::Sender<u32>, impl Future<Output = Result<u32, Failure>> + 'static) {
        let (end, ended) = oneshot::channel();
        let lost = |_| Failure::new(Reason::Internal, "nobody ends the load");
        (end, async move { ended.await.map_err(lost) })
    }

    /// Begins a load and gives up waiting for it.
    async fn given_up(slots: &Arc<Slots<u32>>) -> oneshot::Sender<u32> {
        let (end, ended) = load();
        let waiting = slots.load(key(), ended);
        assert!(futures::poll!(std::pin::pin!(waiting)).is_pending());
        end
    }

    #[tokio::test]
    async fn who_gives_up_leaves_a_load_that_the_next_one_gets() {
        let (slots, released) = slots();
        let end = given_up(&slots).await;
        let (_, never) = load();
        let mut next = std::pin::pin!(slots.load(key(), never));
        assert!(futures::poll!(&mut next).is_pending());
        end.send(7).unwrap();
        assert_eq!(next.await.unwrap(), 7);
        assert_eq!(slots.peek(&key()).unwrap().unwrap(), 7);
        assert_eq!(released.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_was_loaded_for_a_slot_that_is_cleared_is_let_go() {
        let (slots, released) = slots();
        let end = given_up(&slots).await;
        let (_, never) = load();
        let mut next = std::pin::pin!(slots.load(key(), never));
        assert!(futures::poll!(&mut next).is_pending());
        slots.clear("m", None);
        end.send(7).unwrap();
        assert_eq!(next.await.unwrap_err().reason, Reason::ModelVersionNotFound);
        assert!(released.load(Ordering::Relaxed) >= 7);
        assert!(slots.peek(&key()).is_none());
    }

    #[tokio::test]
    async fn what_was_pushed_meanwhile_takes_the_place_of_a_load() {
        let (slots, released) = slots();
        let (end, ended) = load();
        let mut waiting = std::pin::pin!(slots.load(key(), ended));
        assert!(futures::poll!(&mut waiting).is_pending());
        slots.keep(key(), 1_000);
        end.send(7).unwrap();
        assert_eq!(waiting.await.unwrap(), 1_000);
        assert_eq!(released.load(Ordering::Relaxed), 7);
        slots.keep(key(), 3);
        assert_eq!(released.load(Ordering::Relaxed), 10, "there was one");
        slots.clear("m", Some(2));
        assert_eq!(slots.peek(&key()).unwrap().unwrap(), 1_000);
        slots.clear("m", Some(1));
        assert_eq!(released.load(Ordering::Relaxed), 1_010);
    }

    /// How often a load that ends as `failure` is begun by two asks, one after the other.
    async fn begun(failure: &Failure, retry_after: Duration) -> u32 {
        let (slots, begun) = (Mutex::default(), Arc::new(AtomicU32::new(0)));
        let slots = Arc::new(Slots::<u32> { slots, release: Box::new(|_| ()), retry_after });
        for _ in 0..2 {
            let (counted, failure) = (begun.clone(), failure.clone());
            let load = async move {
                counted.fetch_add(1, Ordering::Relaxed);
                Err(failure)
            };
            slots.load(key(), load).await.unwrap_err();
            assert!(slots.peek(&key()).unwrap().is_err(), "it is shown");
        }
        begun.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_load_that_failed_for_a_reason_of_the_nodes_is_tried_again() {
        let damaged = Failure::new(Reason::Corrupt, "a file is not what was written");
        assert_eq!(begun(&damaged, Duration::ZERO).await, 2);
        assert_eq!(begun(&damaged, RETRY_AFTER).await, 1, "not at each call");
        let refused = Failure::new(Reason::InvalidModel, "no such operator");
        assert_eq!(begun(&refused, Duration::ZERO).await, 1, "the model is what it was");
    }
}
