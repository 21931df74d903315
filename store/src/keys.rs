//! Every row on disk: its key, its value, who writes it. The one place that spells them.
//!
//! Column family `r<replica>`, one per replica, everything of that shard. When a view of another
//! node's replica takes its place, the family is replaced by `r<replica>.<generation>`.
//!
//! | key | value | written by |
//! |---|---|---|
//! | `S` collection u64, key | state record (`record.rs`) | apply |
//! | `C` collection u64, blob, chunk u32 | at most 256 KiB of a blob | append; apply |
//! | `D` bucket u32, request id 16 bytes | what a repeat is answered (`dedup.rs`) | apply |
//! | `X` expires_ms u64, collection u64, key | nothing: what of that state expires next | apply |
//! | `G` release index u64, version u64, number u32 | chunk rows to delete (`garbage.rs`) | apply |
//! | `U` collection u64, upload id 16 bytes | what there is of an upload (`upload.rs`) | apply |
//! | `T` | u8: how the next two are counted (`usage.rs`) | apply; open |
//! | `T` collection u64 | how much the collection holds (`usage.rs`) | apply |
//! | `L` collection u64, size step u16 descending, key | nothing: the state has chunks | apply |
//! | `A` | what is applied (`applied.rs`) | apply |
//! | `H` | a sum over what is applied, to compare replicas by (`sums.rs`) | apply |
//! | `W` | commit number u64 (LE): the last commit that wrote here | commit thread |
//!
//! A blob is `index u64, position u16, number u16` of the payload that it came with.
//!
//! Column family `log`: replica u64, index u64 -> entry (`encoding.rs`), and `W` as above.
//!
//! Column family `meta`:
//!
//! | key | value |
//! |---|---|
//! | `format` | u8: the format of this table |
//! | `store` | 16 bytes: which store this is |
//! | `replica/` replica u64 | the replica exists: u8 1, or u8 2 and its generation u64 (LE) |
//! | `vote/` replica u64 | the vote, opaque |
//! | `purged/` replica u64 | index u64, term u64 (little endian): the last entry purged |
//! | `node/` name | a small fact of the node, opaque |
//! | `W` | commit number u64, number of the newest commit synced before it u64 (little endian) |
//!
//! `W` is part of every commit: of `meta`, and of each other family that it writes to. What it is
//! compared with after a crash is in `witness.rs`.
//!
//! Integers in keys are big endian, so that rows sort by them.

use crate::extent::BlobId;
use crate::ids::{CollectionId, ReplicaId};

/// The format of the rows above. A store of a newer one is refused.
pub const STORE_FORMAT: u8 = 3;

/// The column family of all replicas' entries.
pub(crate) const LOG_FAMILY: &str = "log";
/// The column family of the store's own rows.
pub(crate) const META_FAMILY: &str = "meta";

pub(crate) const FORMAT: &[u8] = b"format";
pub(crate) const STORE_ID: &[u8] = b"store";
pub(crate) const APPLIED: &[u8] = b"A";
pub(crate) const USAGE: &[u8] = b"T";
/// The last commit that wrote to a family. In `log` it lies behind all entries: see
/// [`REPLICA_IDS_END`].
pub(crate) const COMMIT: &[u8] = b"W";
pub(crate) const SUMS: &[u8] = b"H";

/// Bytes in front of the key in an `S` row.
pub(crate) const RECORD_PREFIX: usize = 9;

/// The column family of a replica's generation.
pub(crate) fn family(replica: ReplicaId, generation: u64) -> String {
    match generation {
        0 => format!("r{}", replica.0),
        _ => format!("r{}.{generation}", replica.0),
    }
}

/// The replica and generation of a column family, if it is a replica's.
pub(crate) fn parse_family(family: &str) -> Option<(ReplicaId, u64)> {
    let name = family.strip_prefix('r')?;
    let (replica, generation) = name.split_once('.').unwrap_or((name, "0"));
    Some((ReplicaId(replica.parse().ok()?), generation.parse().ok()?))
}

/// The replica that a row of a column family belongs to; `None` if it is of no single one.
pub(crate) fn replica_of_row(family: &str, row: &[u8]) -> Option<ReplicaId> {
    match family {
        LOG_FAMILY => Some(ReplicaId(u64::from_be_bytes(*row.first_chunk()?))),
        _ => parse_family(family).map(|(replica, _)| replica),
    }
}

/// The row of a state.
pub(crate) fn record(collection: CollectionId, key: &[u8]) -> Vec<u8> {
    [&record_prefix(collection)[..], key].concat()
}

/// What the rows of a collection's states begin with.
pub(crate) fn record_prefix(collection: CollectionId) -> [u8; RECORD_PREFIX] {
    let mut prefix = [b'S'; RECORD_PREFIX];
    prefix[1..].copy_from_slice(&collection.0.to_be_bytes());
    prefix
}

/// Whether a row is a state's.
pub(crate) fn is_record(row: &[u8]) -> bool {
    row.first() == Some(&b'S')
}

/// The key of a state, from its row's key.
pub(crate) fn key_of_record(row: &[u8]) -> &[u8] {
    &row[RECORD_PREFIX..]
}

/// The collection of a state, chunk, upload or usage row, from its row's key.
pub(crate) fn collection_of(row: &[u8]) -> CollectionId {
    let bytes = row[1..RECORD_PREFIX].try_into().expect("the slice has 8 bytes");
    CollectionId(u64::from_be_bytes(bytes))
}

/// All states of a collection: start and end.
pub(crate) fn records(collection: CollectionId) -> (Vec<u8>, Vec<u8>) {
    (record(collection, &[]), after(b'S', collection.0))
}

/// All states of a replica.
pub(crate) fn all_records() -> (Vec<u8>, Vec<u8>) {
    (vec![b'S'], vec![b'S' + 1])
}

/// The row of a chunk.
pub(crate) fn chunk(collection: CollectionId, blob: BlobId, chunk: u32) -> Vec<u8> {
    let parts: [&[u8]; 5] = [
        &collection.0.to_be_bytes(),
        &blob.index.to_be_bytes(),
        &blob.position.to_be_bytes(),
        &blob.number.to_be_bytes(),
        &chunk.to_be_bytes(),
    ];
    build(b'C', &parts)
}

/// Collection, blob and number of a chunk, from its row's key.
pub(crate) fn parse_chunk(row: &[u8]) -> Option<(CollectionId, BlobId, u32)> {
    let (collection, rest) = row.get(1..)?.split_first_chunk()?;
    let (index, rest) = rest.split_first_chunk()?;
    let (position, rest) = rest.split_first_chunk()?;
    let (number, chunk) = rest.split_first_chunk()?;
    let blob = BlobId {
        index: u64::from_be_bytes(*index),
        position: u16::from_be_bytes(*position),
        number: u16::from_be_bytes(*number),
    };
    let chunk = u32::from_be_bytes(chunk.try_into().ok()?);
    Some((CollectionId(u64::from_be_bytes(*collection)), blob, chunk))
}

/// Whether a row is a chunk.
pub(crate) fn is_chunk(row: &[u8]) -> bool {
    row.first() == Some(&b'C')
}

/// Whether a row remembers a request.
pub(crate) fn is_request(row: &[u8]) -> bool {
    row.first() == Some(&b'D')
}

/// Whether a row is garbage.
pub(crate) fn is_garbage(row: &[u8]) -> bool {
    row.first() == Some(&b'G')
}

/// Whether a row is part of what one replica sends to another.
pub(crate) fn travels(row: &[u8]) -> bool {
    row == APPLIED || matches!(row.first(), Some(b'C' | b'D' | b'L' | b'S' | b'T' | b'U' | b'X'))
}

/// All rows of a replica.
pub(crate) fn everything() -> (Vec<u8>, Vec<u8>) {
    (Vec::new(), vec![u8::MAX])
}

/// All chunks of a collection whose blobs lie before `end`.
pub(crate) fn chunks_before(collection: CollectionId, end: BlobId) -> (Vec<u8>, Vec<u8>) {
    (build(b'C', &[&collection.0.to_be_bytes()]), chunk(collection, end, 0))
}

/// Bytes of the key of a row that remembers a request.
pub(crate) const REQUEST_BYTES: usize = 21;

/// The row that remembers a request.
pub(crate) fn request(bucket: u32, id: &[u8; 16]) -> Vec<u8> {
    build(b'D', &[&bucket.to_be_bytes(), id])
}

/// All remembered requests of buckets before `end`.
pub(crate) fn requests_before(end: u32) -> (Vec<u8>, Vec<u8>) {
    (vec![b'D'], build(b'D', &[&end.to_be_bytes()]))
}

/// The row of an upload.
pub(crate) fn upload(collection: CollectionId, id: &[u8; 16]) -> Vec<u8> {
    build(b'U', &[&collection.0.to_be_bytes(), id])
}

/// All uploads of a collection.
pub(crate) fn uploads(collection: CollectionId) -> (Vec<u8>, Vec<u8>) {
    (build(b'U', &[&collection.0.to_be_bytes()]), after(b'U', collection.0))
}

/// All uploads of a replica.
pub(crate) fn all_uploads() -> (Vec<u8>, Vec<u8>) {
    (vec![b'U'], vec![b'U' + 1])
}

/// The row of how much a collection holds.
pub(crate) fn usage(collection: CollectionId) -> Vec<u8> {
    build(b'T', &[&collection.0.to_be_bytes()])
}

/// How much each collection holds, without the mark in front.
pub(crate) fn usages() -> (Vec<u8>, Vec<u8>) {
    (usage(CollectionId(0)), vec![b'T' + 1])
}

/// The same with the mark.
pub(crate) fn all_usage() -> (Vec<u8>, Vec<u8>) {
    (USAGE.to_vec(), vec![b'T' + 1])
}

/// The row of a large state. Larger steps come first.
pub(crate) fn large(collection: CollectionId, step: u16, key: &[u8]) -> Vec<u8> {
    build(b'L', &[&collection.0.to_be_bytes(), &(!step).to_be_bytes(), key])
}

/// All large states of a collection.
pub(crate) fn large_of(collection: CollectionId) -> (Vec<u8>, Vec<u8>) {
    (build(b'L', &[&collection.0.to_be_bytes()]), after(b'L', collection.0))
}

/// All large states of a replica.
pub(crate) fn all_large() -> (Vec<u8>, Vec<u8>) {
    (vec![b'L'], vec![b'L' + 1])
}

/// What large states of several collections are sorted by, the largest first.
pub(crate) fn step_of_large(row: &[u8]) -> &[u8] {
    &row[RECORD_PREFIX..RECORD_PREFIX + 2]
}

/// The key of a large state, from its row's key.
pub(crate) fn key_of_large(row: &[u8]) -> &[u8] {
    &row[RECORD_PREFIX + 2..]
}

/// The row of the expiry index.
pub(crate) fn expiry(expires_at_ms: u64, collection: CollectionId, key: &[u8]) -> Vec<u8> {
    build(b'X', &[&expires_at_ms.to_be_bytes(), &collection.0.to_be_bytes(), key])
}

/// The expiry index from a cursor (a row's key without its first byte) up to and with a time.
pub(crate) fn expiries(cursor: &[u8], until_ms: u64) -> (Vec<u8>, Vec<u8>) {
    (build(b'X', &[cursor]), after(b'X', until_ms))
}

/// Time, collection and key of a row of the expiry index.
pub(crate) fn parse_expiry(row: &[u8]) -> Option<(u64, CollectionId, &[u8])> {
    let expires_at_ms = u64::from_be_bytes(row.get(1..9)?.try_into().ok()?);
    let collection = u64::from_be_bytes(row.get(9..17)?.try_into().ok()?);
    Some((expires_at_ms, CollectionId(collection), &row[17..]))
}

/// The row of chunk rows that wait to be deleted until the log is purged through `release`.
pub(crate) fn garbage(release: u64, version: u64, number: u32) -> Vec<u8> {
    let parts: [&[u8]; 3] = [&release.to_be_bytes(), &version.to_be_bytes(), &number.to_be_bytes()];
    build(b'G', &parts)
}

/// All garbage from a release index up to and with another.
pub(crate) fn garbage_between(from: u64, through: u64) -> (Vec<u8>, Vec<u8>) {
    (build(b'G', &[&from.to_be_bytes()]), after(b'G', through))
}

/// Release index and version of a garbage row.
pub(crate) fn parse_garbage(row: &[u8]) -> Option<(u64, u64)> {
    let release = u64::from_be_bytes(row.get(1..9)?.try_into().ok()?);
    let version = u64::from_be_bytes(row.get(9..17)?.try_into().ok()?);
    Some((release, version))
}

/// The row of an entry.
pub(crate) fn entry(replica: ReplicaId, index: u64) -> Vec<u8> {
    [replica.0.to_be_bytes(), index.to_be_bytes()].concat()
}

/// The replica and index of an entry, if a row's key has the shape of one.
pub(crate) fn parse_entry(row: &[u8]) -> Option<(ReplicaId, u64)> {
    let (replica, index) = row.split_first_chunk::<8>()?;
    let index = u64::from_be_bytes(index.try_into().ok()?);
    let replica = u64::from_be_bytes(*replica);
    // The keys of `meta` are text, and a replica's id is given out one after the other.
    (replica < REPLICA_IDS_END).then_some((ReplicaId(replica), index))
}

/// No replica has an id from here on: tells an entry's key from one that begins with text.
const REPLICA_IDS_END: u64 = 1 << 56;

/// The index of an entry, from its row's key.
pub(crate) fn index_of_entry(row: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(row.get(8..16)?.try_into().ok()?))
}

/// The descriptor of a replica.
pub(crate) fn descriptor(replica: ReplicaId) -> Vec<u8> {
    [b"replica/", replica.0.to_be_bytes().as_slice()].concat()
}

/// All descriptors.
pub(crate) fn descriptors() -> (Vec<u8>, Vec<u8>) {
    (b"replica/".to_vec(), b"replica0".to_vec())
}

/// The replica of a descriptor.
pub(crate) fn replica_of_descriptor(row: &[u8]) -> Option<ReplicaId> {
    replica_behind(b"replica/", row)
}

/// The replica of a vote.
pub(crate) fn replica_of_vote(row: &[u8]) -> Option<ReplicaId> {
    replica_behind(b"vote/", row)
}

/// The replica of a purge point.
pub(crate) fn replica_of_purged(row: &[u8]) -> Option<ReplicaId> {
    replica_behind(b"purged/", row)
}

fn replica_behind(prefix: &[u8], row: &[u8]) -> Option<ReplicaId> {
    let bytes = row.strip_prefix(prefix)?.try_into().ok()?;
    Some(ReplicaId(u64::from_be_bytes(bytes)))
}

/// The vote of a replica.
pub(crate) fn vote(replica: ReplicaId) -> Vec<u8> {
    [b"vote/", replica.0.to_be_bytes().as_slice()].concat()
}

/// The last entry purged from a replica's log.
pub(crate) fn purged(replica: ReplicaId) -> Vec<u8> {
    [b"purged/", replica.0.to_be_bytes().as_slice()].concat()
}

/// A fact of the node.
pub(crate) fn node(name: &str) -> Vec<u8> {
    [b"node/", name.as_bytes()].concat()
}

/// The name of a fact of the node, by its row.
pub(crate) fn name_of_fact(row: &[u8]) -> Option<&str> {
    std::str::from_utf8(row.strip_prefix(b"node/")?).ok()
}

/// All facts of the node.
pub(crate) fn facts() -> (Vec<u8>, Vec<u8>) {
    (b"node/".to_vec(), b"node0".to_vec())
}

/// Whether a row is a fact of the node, its format or its id: what it can't do without.
pub(crate) fn is_fact(row: &[u8]) -> bool {
    row.starts_with(b"node/") || row == FORMAT || row == STORE_ID
}

/// The value of `meta`'s row of the last commit: its number, and the newest one synced before it.
pub(crate) fn commit_value(number: u64, synced: u64) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&number.to_le_bytes());
    value[8..].copy_from_slice(&synced.to_le_bytes());
    value
}

/// Number, and newest commit synced before, of `meta`'s row of the last commit.
pub(crate) fn parse_commit(value: &[u8]) -> Option<(u64, u64)> {
    let (number, synced) = value.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), u64::from_le_bytes(synced.try_into().ok()?)))
}

fn build(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut row = Vec::with_capacity(len);
    row.push(tag);
    for part in parts {
        row.extend_from_slice(part);
    }
    row
}

/// The first key behind all rows of a tag whose first integer is `value`.
fn after(tag: u8, value: u64) -> Vec<u8> {
    match value.checked_add(1) {
        Some(next) => build(tag, &[&next.to_be_bytes()]),
        None => vec![tag + 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobId = BlobId { index: 7, position: 3, number: 1 };

    #[test]
    fn rows_sort_by_their_integers() {
        let five = CollectionId(5);
        assert!(record(CollectionId(5), b"z") < record(CollectionId(256), b"a"));
        assert!(chunk(five, BLOB, 255) < chunk(five, BLOB, 256));
        assert!(chunk(five, BLOB, 9) < chunk(five, BlobId { index: 256, ..BLOB }, 0));
        assert!(entry(ReplicaId(1), u64::MAX) < entry(ReplicaId(2), 0));
        assert!(expiry(255, five, b"z") < expiry(256, five, b"a"));
        assert!(request(1, &[255; 16]) < request(2, &[0; 16]));
    }

    #[test]
    fn rows_give_back_what_they_were_built_from() {
        let five = CollectionId(5);
        assert_eq!(key_of_record(&record(five, b"key")), b"key");
        assert_eq!(collection_of(&record(five, b"key")), five);
        assert_eq!(collection_of(&chunk(five, BLOB, 9)), five);
        assert_eq!(parse_expiry(&expiry(9, five, b"key")), Some((9, five, &b"key"[..])));
        assert_eq!(parse_garbage(&garbage(9, 7, 1)), Some((9, 7)));
        assert_eq!(index_of_entry(&entry(ReplicaId(4), 6)), Some(6));
        assert_eq!(replica_of_descriptor(&descriptor(ReplicaId(4))), Some(ReplicaId(4)));
        assert_eq!(parse_chunk(&chunk(five, BLOB, 9)), Some((five, BLOB, 9)));
        for generation in [0, 1, 300] {
            let name = family(ReplicaId(4), generation);
            assert_eq!(parse_family(&name), Some((ReplicaId(4), generation)));
        }
        assert_eq!(family(ReplicaId(4), 0), "r4");
        assert_eq!(parse_family("meta"), None);
    }

    #[test]
    fn ranges_hold_their_rows_and_no_others() {
        let holds = |(start, end): (Vec<u8>, Vec<u8>), row: Vec<u8>| start <= row && row < end;
        let last = CollectionId(u64::MAX);
        assert!(holds(records(CollectionId(5)), record(CollectionId(5), &[255; 512])));
        assert!(!holds(records(CollectionId(5)), record(CollectionId(6), &[])));
        assert!(holds(records(last), record(last, b"k")));
        assert!(holds(all_records(), record(last, b"k")));
        assert!(holds(uploads(last), upload(last, &[255; 16])));
        assert!(!holds(uploads(CollectionId(5)), upload(CollectionId(6), &[0; 16])));
        assert!(holds(all_uploads(), upload(last, &[255; 16])));
        assert!(holds(expiries(&[], 9), expiry(9, last, b"k")));
        assert!(!holds(expiries(&[], 9), expiry(10, CollectionId(0), &[])));
        assert!(holds(garbage_between(9, 9), garbage(9, 0, 0)));
        assert!(holds(garbage_between(0, 9), garbage(9, u64::MAX, u32::MAX)));
        assert!(!holds(garbage_between(0, 9), garbage(10, 0, 0)));
        assert!(holds(requests_before(9), request(8, &[255; 16])));
        assert!(!holds(requests_before(9), request(9, &[0; 16])));
        let other = BlobId { number: 0, position: 4, ..BLOB };
        assert!(holds(chunks_before(last, other), chunk(last, BLOB, u32::MAX)));
        assert!(!holds(chunks_before(last, other), chunk(last, other, 0)));
    }
}
