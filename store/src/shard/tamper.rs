//! For tests: a state's row changed behind the log's back, as a fault of the disk, of memory or of
//! the program would.
//!
//! The row is written as any other, so that RocksDB's checksums hold: what is wrong with it is not
//! what a scrub looks for.

use bytes::Bytes;

use super::Shard;
use crate::db::Batch;
use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::{Content, Record};

/// What becomes of the row.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub enum Tamper {
    /// It can't be decoded any more.
    Cut,
    /// The first field has these bytes, inline.
    Replace(Bytes),
}

impl Shard {
    /// Changes a state's row. The state must be there.
    #[doc(hidden)]
    pub fn tamper(&self, collection: CollectionId, key: &[u8], how: Tamper) -> Result<(), Error> {
        let generation = self.replica.generation();
        let row = keys::record(collection, key);
        let missing = || Error::corrupt("state", "there is none to tamper with");
        let value = self.disk.db.fetch(&generation.family, &row)?.ok_or_else(missing)?;
        let value = match how {
            Tamper::Cut => value.slice(..value.len().min(3)),
            Tamper::Replace(bytes) => {
                let record = Record::decode(value);
                let mut record = record.map_err(|error| Error::corrupt("state record", error))?;
                record.fields.first_mut().ok_or_else(missing)?.content = Content::Inline(bytes);
                record.encode().into()
            }
        };
        let mut batch = Batch::default();
        batch.put(&generation.family, &row, &value);
        self.disk.db.write_unlogged(batch)?;
        let (start, end) = keys::all_records();
        self.disk.cache.forget(generation.space, &start, &end);
        Ok(())
    }
}
