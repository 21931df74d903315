//! Reads: inline when everything lies in memory, else on the read pool, and what is long apart
//! from what is not. Room in memory is taken before anything is brought from disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use statehouse_cluster::catalog::{Collection, Missing};
use statehouse_cluster::raft::Group;
use statehouse_store::{Cached, ReadPool, Reader, Selection, State, StateField, WholeState};

use super::{Freshness, States, check_key};
use crate::admission::Charge;
use crate::failure::{Failure, Reason};

/// Reads of more bytes go to the threads for long stretches: no small one waits behind them.
const LONG_READ_BYTES: u64 = 1 << 20;

/// One state's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StateKey {
    /// The collection's name.
    pub collection: String,
    /// 1..=512 bytes.
    pub key: Bytes,
}

/// What to read of which state.
#[derive(Debug, Clone)]
pub struct GetQuery {
    /// Whose state.
    pub target: StateKey,
    /// Which fields, or parts of them.
    pub selection: Selection,
    /// How fresh it must be.
    pub freshness: Freshness,
}

/// A key and this node's replica of its shard.
pub type KeyHere<'a> = (&'a Bytes, &'a Group);

impl States {
    /// Reads a state from a replica, once that may serve it; answers also how far behind it is.
    pub async fn get(
        &self,
        group: &Arc<Group>,
        query: &GetQuery,
        charge: &Arc<Charge>,
    ) -> Result<(WholeState, Duration), Failure> {
        let collection = self.collection(&query.target.collection).await?;
        let lag = query.freshness.reached_by(group).await?;
        let key = (&query.target.key, &**group);
        let found = self.get_in(&collection, key, &query.selection, charge).await?;
        Ok((found, lag))
    }

    /// Reads many states of one collection, each with its own outcome, in the order of the keys.
    /// The replicas may serve the read already.
    pub async fn get_many(
        &self,
        collection: &Collection,
        keys: &[KeyHere<'_>],
        selection: &Selection,
        charge: &Arc<Charge>,
    ) -> Vec<Result<WholeState, Failure>> {
        // What lies in memory is taken at once; only what does not is waited for, together.
        let mut found: Vec<Option<Result<WholeState, Failure>>> =
            keys.iter().map(|key| cached(collection, *key, selection, charge)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|at| found[*at].is_none()).collect();
        let waits =
            missing.iter().map(|at| self.get_waiting(collection, keys[*at], selection, charge));
        for (at, state) in missing.iter().zip(join_all(waits).await) {
            found[*at] = Some(state);
        }
        found.into_iter().flatten().collect()
    }

    async fn get_in(
        &self,
        collection: &Collection,
        (key, group): KeyHere<'_>,
        selection: &Selection,
        charge: &Arc<Charge>,
    ) -> Result<WholeState, Failure> {
        if let Some(found) = cached(collection, (key, group), selection, charge) {
            return found;
        }
        self.get_waiting(collection, (key, group), selection, charge).await
    }

    async fn get_waiting(
        &self,
        collection: &Collection,
        (key, group): KeyHere<'_>,
        selection: &Selection,
        charge: &Arc<Charge>,
    ) -> Result<WholeState, Failure> {
        let charge = charge.clone();
        let take = move |bytes| charge.answer(bytes);
        let found = self.whole(collection, (key, group), selection.clone(), take).await?;
        answer(collection, key, found)
    }

    /// Reads those of the named fields that a state has; nothing if there is no state.
    pub async fn read_present(
        &self,
        collection: &Collection,
        (key, group): KeyHere<'_>,
        names: Vec<String>,
        charge: &Arc<Charge>,
    ) -> Result<Option<WholeState>, Failure> {
        let selection = Selection::if_present(names);
        let reader = group.reader();
        let found = reader.try_get_whole(collection.id, key, &selection, group.now_ms());
        match found.map_err(failure)? {
            Cached::Ready(found) => Ok(found),
            Cached::NeedsDisk => {
                let charge = charge.clone();
                let take = move |bytes| charge.states(bytes);
                self.whole(collection, (key, group), selection, take).await
            }
        }
    }

    /// Reads a state from disk, once `take` has taken room for its bytes.
    async fn whole(
        &self,
        collection: &Collection,
        (key, group): KeyHere<'_>,
        selection: Selection,
        take: impl FnOnce(u64) -> Result<(), Failure> + Send + 'static,
    ) -> Result<Option<WholeState>, Failure> {
        let (id, now_ms) = (collection.id, group.now_ms());
        let (owned, wanted) = (key.clone(), selection.clone());
        let short = move |reader: &Reader| {
            let state = reader.get(id, &owned, now_ms).map_err(failure)?;
            let Some(state) = state else { return Ok(Length::Short(None)) };
            let bytes = selected_bytes(&state, &wanted)?;
            take(bytes)?;
            if bytes > LONG_READ_BYTES {
                return Ok(Length::Long);
            }
            let whole = reader.get_whole(id, &owned, &wanted, now_ms).map_err(failure)?;
            Ok(Length::Short(whole))
        };
        let reader = group.reader();
        match self.on_disk(reader, short).await? {
            Length::Short(found) => Ok(found),
            Length::Long => {
                let key = key.clone();
                let long = move |reader: &Reader| {
                    reader.get_whole(id, &key, &selection, now_ms).map_err(failure)
                };
                on(self.shards.store().stream_pool(), reader, long).await
            }
        }
    }

    /// Runs a read that may wait for the disk on the read pool.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        reader: &Reader,
        read: impl FnOnce(&Reader) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        on(self.shards.store().read_pool(), reader, read).await
    }
}

/// What a read from disk comes to at first.
enum Length {
    Short(Option<WholeState>),
    /// It belongs on other threads.
    Long,
}

/// Runs a read on a pool's threads.
async fn on<T: Send + 'static>(
    pool: &ReadPool,
    reader: &Reader,
    read: impl FnOnce(&Reader) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let reader = reader.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    pool.submit(Box::new(move || {
        // The caller may have given up meanwhile.
        let _ = sender.send(read(&reader));
    }))?;
    receiver.await.map_err(|_| Failure::new(Reason::Unavailable, "the node is stopping"))?
}

/// Bytes of a state that a selection names.
fn selected_bytes(state: &State, selection: &Selection) -> Result<u64, Failure> {
    let slices = state.select(selection).map_err(failure)?;
    let bytes = |slice: &statehouse_store::Slice<'_, StateField>| {
        slice.range.end.min(slice.field.bytes_len).saturating_sub(slice.range.start)
    };
    Ok(slices.iter().map(bytes).sum())
}

/// A state that lies in memory; `None` if the disk must be asked.
fn cached(
    collection: &Collection,
    (key, group): KeyHere<'_>,
    selection: &Selection,
    charge: &Charge,
) -> Option<Result<WholeState, Failure>> {
    if let Err(failure) = check_key(key) {
        return Some(Err(failure));
    }
    match group.reader().try_get_whole(collection.id, key, selection, group.now_ms()) {
        Ok(Cached::Ready(found)) => {
            let bytes = found.as_ref().map_or(0, WholeState::bytes_len);
            let taken = charge.answer(bytes);
            Some(taken.and_then(|()| answer(collection, key, found)))
        }
        Ok(Cached::NeedsDisk) => None,
        Err(error) => Some(Err(failure(error))),
    }
}

/// What was found, or what the collection says of a missing state.
fn answer(
    collection: &Collection,
    key: &[u8],
    found: Option<WholeState>,
) -> Result<WholeState, Failure> {
    match (found, collection.settings.missing) {
        (Some(found), _) => Ok(found),
        (None, Missing::Empty) => Ok(WholeState::empty()),
        (None, Missing::Error) => Err(no_state(collection, key)),
    }
}

/// There is no state under a key.
pub(super) fn no_state(collection: &Collection, key: &[u8]) -> Failure {
    let message = format!("collection {:?} has no state under this key", collection.name);
    Failure::new(Reason::StateNotFound, message)
        .with("collection", &collection.name)
        .with("key", String::from_utf8_lossy(key))
}

pub(super) fn failure(error: statehouse_store::Error) -> Failure {
    use statehouse_store::Error;
    let message = error.to_string();
    match error {
        Error::UnknownField { name } => {
            Failure::new(Reason::FieldNotFound, message).with("field", name)
        }
        Error::RangePastEnd { name, .. } => {
            Failure::new(Reason::RangePastEnd, message).with("field", name)
        }
        Error::NoRows { name } => Failure::new(Reason::FieldMismatch, message).with("field", name),
        other => Failure::from(other),
    }
}
