//! Values as reads find them: where they lie in the database's memory, without a copy.
//!
//! Part of the door in `db.rs`.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::DBPinnableSlice;

use super::Db;

/// Values up to here are copied out: cheaper than pinning a block and the owner around it.
const COPIED_BYTES_MAX: usize = 512;

/// What a read found.
pub(crate) enum Fetched {
    Found(Pinned),
    Absent,
    /// Not in memory, and the read may not go further.
    NeedsDisk,
}

/// A value where it lies in memory.
pub(crate) enum Pinned {
    /// In the database's.
    Block(Block),
    /// In a batch that is not written yet.
    Owned(Bytes),
}

/// A value in the database's memory.
pub(crate) struct Block {
    /// Before `_db`: releasing the block needs the database.
    pub(super) slice: ManuallyDrop<DBPinnableSlice<'static>>,
    pub(super) _db: Arc<Db>,
}

impl Pinned {
    /// The value as `Bytes`: without a copy, unless it is very small.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Pinned::Owned(bytes) => bytes,
            Pinned::Block(block) if block.slice.len() <= COPIED_BYTES_MAX => {
                Bytes::copy_from_slice(&block.slice)
            }
            Pinned::Block(block) => Bytes::from_owner(block),
        }
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Pinned::Block(block) => &block.slice,
            Pinned::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.slice
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: dropped here alone, once, and before the database.
        unsafe { ManuallyDrop::drop(&mut self.slice) }
    }
}
