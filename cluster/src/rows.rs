//! Rows that all nodes share: states of shard 0's system collections, one field each, JSON under a
//! format number.
//!
//! They are read from this node's own replica, which may be a moment behind, and changed by
//! compare-and-swap on the version read, so that whoever was behind learns it and looks again.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use statehouse_store::{
    CollectionId, Command, Condition, Delete, Expiry, Field, Put, Reader, Reply, RequestTag,
    Selection, Target, Value, Write, WriteLimits,
};

use crate::{Error, META_SHARD, Shards};

/// The field that holds a row's JSON.
const FIELD: &str = "row";

/// Rows read at a time.
const SCAN_ROWS: usize = 256;

/// What a system collection's state may hold: model files are the largest.
const LIMITS: WriteLimits = WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 };

/// A row and the version it was read at.
pub struct Row<T> {
    pub key: String,
    pub version: u64,
    pub value: T,
}

/// All rows of a system collection.
pub fn scan<T: DeserializeOwned>(
    shards: &Shards,
    collection: CollectionId,
) -> Result<Vec<Row<T>>, Error> {
    scan_in(shards.meta()?.reader(), collection)
}

/// As `scan`, of a replica.
pub fn scan_in<T: DeserializeOwned>(
    reader: &Reader,
    collection: CollectionId,
) -> Result<Vec<Row<T>>, Error> {
    let mut rows = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let keys = reader.scan(collection, after.as_deref(), SCAN_ROWS)?;
        let Some(last) = keys.last().cloned() else { return Ok(rows) };
        for key in keys {
            if let Some(row) = get_in(reader, collection, &key)? {
                rows.push(row);
            }
        }
        after = Some(last);
    }
}

/// One row, if it is there.
pub fn get<T: DeserializeOwned>(
    shards: &Shards,
    collection: CollectionId,
    key: &[u8],
) -> Result<Option<Row<T>>, Error> {
    get_in(shards.meta()?.reader(), collection, key)
}

fn get_in<T: DeserializeOwned>(
    reader: &Reader,
    collection: CollectionId,
    key: &[u8],
) -> Result<Option<Row<T>>, Error> {
    let now_ms = crate::clock::unix_now_ms();
    let state = reader.get_whole(collection, key, &Selection::all(), now_ms)?;
    state.map(|state| parse(key, state.version, &state.fields)).transpose()
}

/// The row that a state is.
pub fn parse<T: DeserializeOwned>(
    key: &[u8],
    version: u64,
    fields: &[Field],
) -> Result<Row<T>, Error> {
    let name = String::from_utf8_lossy(key).into_owned();
    let json = fields
        .iter()
        .find(|field| field.name == FIELD)
        .map(|field| field.value.bytes().clone())
        .ok_or_else(|| Error::Invalid(format!("catalog row {name:?} has no field {FIELD:?}")))?;
    let value = serde_json::from_slice(&json)
        .map_err(|error| Error::Invalid(format!("read catalog row {name:?}: {error}")))?;
    Ok(Row { key: name, version, value })
}

/// Tries of a change that others keep being quicker with.
const CHANGE_TRIES_MAX: usize = 64;

/// Changes a row: `make` gets it as it is, and answers it as it shall be, or `None` to leave it.
/// Answers what is there in the end. May call `make` again if somebody else was quicker.
pub async fn change<T: Serialize + DeserializeOwned + Clone>(
    shards: &Shards,
    collection: CollectionId,
    key: &str,
    mut make: impl FnMut(Option<T>) -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    for _ in 0..CHANGE_TRIES_MAX {
        let found: Option<Row<T>> = get(shards, collection, key.as_bytes())?;
        let condition =
            found.as_ref().map_or(Condition::Absent, |row| Condition::Version(row.version));
        let found = found.map(|row| row.value);
        let Some(wanted) = make(found.clone())? else { return Ok(found) };
        if put(shards, collection, key, &wanted, condition).await?.is_some() {
            return Ok(Some(wanted));
        }
        shards.catch_up().await?;
    }
    Err(Error::Changed { name: key.to_owned() })
}

/// Writes a row; answers its new version, or `None` if the condition did not hold.
pub async fn put<T: Serialize>(
    shards: &Shards,
    collection: CollectionId,
    key: &str,
    value: &T,
    condition: Condition,
) -> Result<Option<u64>, Error> {
    let json = serde_json::to_vec(value).expect("catalog rows become JSON");
    let fields = vec![Field::new(FIELD, Value::Bytes(Bytes::from(json)))];
    put_fields(shards, collection, key, fields, condition).await
}

/// Writes a state of a system collection; answers as [`put`].
pub async fn put_fields(
    shards: &Shards,
    collection: CollectionId,
    key: &str,
    fields: Vec<Field>,
    condition: Condition,
) -> Result<Option<u64>, Error> {
    let write = write(collection, key, condition);
    match shards.propose(META_SHARD, Command::Put(Put { write, fields })).await? {
        Reply::Written { version, .. } => Ok(Some(version)),
        Reply::Conflict { .. } => Ok(None),
        other => Err(Error::Invalid(format!("catalog write of {key:?} answered {other:?}"))),
    }
}

/// Deletes a row if the condition holds; if it does not, that is fine.
pub async fn delete(
    shards: &Shards,
    collection: CollectionId,
    key: &str,
    condition: Condition,
) -> Result<(), Error> {
    let write = write(collection, key, condition);
    shards.propose(META_SHARD, Command::Delete(Delete { write })).await?;
    Ok(())
}

fn write(collection: CollectionId, key: &str, condition: Condition) -> Write {
    // A proposal whose answer got lost is made again: it has one effect.
    let request = RequestTag { id: rand::random(), fingerprint: 0 };
    Write {
        target: Target { collection, key: Bytes::copy_from_slice(key.as_bytes()) },
        condition,
        request: Some(request),
        expiry: Expiry::Never,
        writer: 0,
        model: None,
        limits: LIMITS,
        answer: Bytes::new(),
    }
}
