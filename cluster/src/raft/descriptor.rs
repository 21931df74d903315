//! A replica's row in the store's `meta`: which shard it is of, and whether it lives.
//!
//! ```text
//! replica/<id> = format u8 | shard u16 LE | 1 live, 2 destroyed, 3 quarantined | reason
//! ```
//!
//! The reason, UTF-8, is a quarantined replica's alone. A program from before quarantine refuses
//! to start on such a row, which is right: it would vote.

use bytes::Bytes;
use statehouse_store::{ReplicaId, Store};
use tokio::sync::oneshot;

use crate::{Error, ShardId};

const FORMAT: u8 = 1;
const LIVE: u8 = 1;
const DESTROYED: u8 = 2;
const QUARANTINED: u8 = 3;

/// Bytes kept of a reason.
const REASON_BYTES_MAX: usize = 512;

/// What a node knows of a replica id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Descriptor {
    /// It is here, or is being made.
    Live(ShardId),
    /// It was here, and never will be again.
    Destroyed(ShardId),
    /// It is damaged, for the reason given, and takes no part: it waits to be destroyed.
    Quarantined(ShardId, String),
}

/// The prefix of descriptors' names.
const PREFIX: &str = "replica/";

fn name(replica: ReplicaId) -> String {
    format!("{PREFIX}{replica}")
}

/// Returns the replicas that have a descriptor, with it: also those that the store does not have.
pub(super) fn all(store: &Store) -> Result<Vec<(ReplicaId, Descriptor)>, Error> {
    let mut found = Vec::new();
    for name in store.meta_names(PREFIX)? {
        let id = name.strip_prefix(PREFIX).and_then(|id| id.parse().ok());
        let id = id.ok_or_else(|| Error::Invalid(format!("{name:?} names no replica")))?;
        let replica = ReplicaId(id);
        found.extend(read(store, replica)?.map(|descriptor| (replica, descriptor)));
    }
    Ok(found)
}

pub(super) fn read(store: &Store, replica: ReplicaId) -> Result<Option<Descriptor>, Error> {
    let Some(row) = store.meta_get(&name(replica))? else { return Ok(None) };
    let [FORMAT, low, high, kind, ref rest @ ..] = row[..] else {
        return Err(Error::Invalid(format!("replica {replica}'s descriptor is malformed")));
    };
    let shard = ShardId(u16::from_le_bytes([low, high]));
    match (kind, rest) {
        (LIVE, []) => Ok(Some(Descriptor::Live(shard))),
        (DESTROYED, []) => Ok(Some(Descriptor::Destroyed(shard))),
        (QUARANTINED, reason) => {
            let reason = String::from_utf8_lossy(reason).into_owned();
            Ok(Some(Descriptor::Quarantined(shard, reason)))
        }
        _ => Err(Error::Invalid(format!("replica {replica}'s descriptor is malformed"))),
    }
}

/// The replicas of a shard that a disk holds.
pub(crate) fn replicas_of(store: &Store, shard: ShardId) -> Result<Vec<ReplicaId>, Error> {
    let mut found = Vec::new();
    for replica in store.replicas() {
        if read(store, replica)? == Some(Descriptor::Live(shard)) {
            found.push(replica);
        }
    }
    Ok(found)
}

pub(super) async fn write(
    store: &Store,
    replica: ReplicaId,
    descriptor: Descriptor,
) -> Result<(), Error> {
    let (shard, kind, reason) = match descriptor {
        Descriptor::Live(shard) => (shard, LIVE, String::new()),
        Descriptor::Destroyed(shard) => (shard, DESTROYED, String::new()),
        Descriptor::Quarantined(shard, reason) => (shard, QUARANTINED, reason),
    };
    let [low, high] = shard.0.to_le_bytes();
    let mut row = vec![FORMAT, low, high, kind];
    row.extend_from_slice(&reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]);
    put(store, &name(replica), Bytes::from(row)).await
}

/// Puts a row and waits until it is synced, and in the copy that outlives the database.
pub(crate) async fn put(store: &Store, name: &str, row: Bytes) -> Result<(), Error> {
    let (sender, synced) = oneshot::channel();
    let done = Box::new(move |result| {
        // Whoever waits is right below.
        let _ = sender.send(result);
    });
    store.meta_put(name, row, done)?;
    synced.await.map_err(|_| Error::Closed { reason: "the commit thread is gone".into() })??;
    let store = store.clone();
    let copied = tokio::task::spawn_blocking(move || store.copy_facts()).await;
    copied.map_err(|error| Error::Closed { reason: error.to_string() })??;
    Ok(())
}
