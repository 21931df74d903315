//! Reads: inline when everything lies in memory, else on the read pool.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use statehouse_cluster::catalog::{Collection, Missing};
use statehouse_cluster::raft::Group;
use statehouse_store::{Cached, Reader, Selection, WholeState};

use super::{Freshness, States, check_key};
use crate::clock::unix_now_ms;
use crate::failure::{Failure, Reason};

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
    ) -> Result<(WholeState, Duration), Failure> {
        let collection = self.collection(&query.target.collection).await?;
        let lag = query.freshness.reached_by(group).await?;
        let found = self.get_in(&collection, (&query.target.key, group), &query.selection).await?;
        Ok((found, lag))
    }

    /// Reads many states of one collection, each with its own outcome, in the order of the keys.
    /// The replicas may serve the read already.
    pub async fn get_many(
        &self,
        collection: &Collection,
        keys: &[KeyHere<'_>],
        selection: &Selection,
    ) -> Vec<Result<WholeState, Failure>> {
        // What lies in memory is taken at once; only what does not is waited for, together.
        let mut found: Vec<Option<Result<WholeState, Failure>>> =
            keys.iter().map(|key| cached(collection, *key, selection)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|at| found[*at].is_none()).collect();
        let waits = missing.iter().map(|at| self.get_waiting(collection, keys[*at], selection));
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
    ) -> Result<WholeState, Failure> {
        if let Some(found) = cached(collection, (key, group), selection) {
            return found;
        }
        self.get_waiting(collection, (key, group), selection).await
    }

    async fn get_waiting(
        &self,
        collection: &Collection,
        (key, group): KeyHere<'_>,
        selection: &Selection,
    ) -> Result<WholeState, Failure> {
        let (id, owned, now_ms) = (collection.id, key.clone(), unix_now_ms());
        let selection = selection.clone();
        let wait = move |reader: &Reader| reader.get_whole(id, &owned, &selection, now_ms);
        let found = self.on_disk(group.reader(), wait).await?;
        answer(collection, key, found)
    }

    /// Reads those of the named fields that a state has; nothing if there is no state.
    pub async fn read_present(
        &self,
        collection: &Collection,
        (key, group): KeyHere<'_>,
        names: Vec<String>,
    ) -> Result<Option<WholeState>, Failure> {
        let (id, now_ms) = (collection.id, unix_now_ms());
        let selection = Selection::if_present(names);
        let reader = group.reader();
        match reader.try_get_whole(id, key, &selection, now_ms).map_err(failure)? {
            Cached::Ready(found) => Ok(found),
            Cached::NeedsDisk => {
                let key = key.clone();
                let wait = move |reader: &Reader| reader.get_whole(id, &key, &selection, now_ms);
                self.on_disk(reader, wait).await
            }
        }
    }

    /// Runs a read that may wait for the disk on the read pool.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        reader: &Reader,
        read: impl FnOnce(&Reader) -> Result<T, statehouse_store::Error> + Send + 'static,
    ) -> Result<T, Failure> {
        let reader = reader.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.shards.store().read_pool().submit(Box::new(move || {
            // The caller may have given up meanwhile.
            let _ = sender.send(read(&reader));
        }))?;
        receiver
            .await
            .map_err(|_| Failure::new(Reason::Unavailable, "the node is stopping"))?
            .map_err(failure)
    }
}

/// A state that lies in memory; `None` if the disk must be asked.
fn cached(
    collection: &Collection,
    (key, group): KeyHere<'_>,
    selection: &Selection,
) -> Option<Result<WholeState, Failure>> {
    if let Err(failure) = check_key(key) {
        return Some(Err(failure));
    }
    match group.reader().try_get_whole(collection.id, key, selection, unix_now_ms()) {
        Ok(Cached::Ready(found)) => Some(answer(collection, key, found)),
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
