//! How far uploads are, and whether one has expired.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::Reader;
use crate::db::Walk;
use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::upload::{Kept, UploadId};

/// How much there is of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadProgress {
    /// Bytes, from the beginning.
    pub bytes: u64,
    /// Unix milliseconds; each part puts it off.
    pub expires_at_ms: u64,
}

impl Reader {
    /// Whether an upload has expired. There are few.
    pub(super) fn upload_expired(&self, now_ms: u64) -> Result<bool, Error> {
        let mut expired = false;
        let family = &self.generation().family;
        self.disk.db.walk(family, keys::all_uploads(), Walk::Few, &mut |_, row| {
            let upload = Kept::decode(Bytes::copy_from_slice(row));
            expired = upload.map_err(|e| Error::corrupt("upload row", e))?.expired(now_ms);
            Ok(if expired { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(expired)
    }

    /// How much there is of an upload that has not expired. May wait for the disk.
    pub fn upload(
        &self,
        collection: CollectionId,
        id: &UploadId,
        now_ms: u64,
    ) -> Result<Option<UploadProgress>, Error> {
        self.replica.check()?;
        let family = &self.generation().family;
        let Some(row) = self.disk.db.fetch(family, &keys::upload(collection, id))? else {
            return Ok(None);
        };
        let kept = Kept::decode(row).map_err(|error| Error::corrupt("upload row", error))?;
        let progress = UploadProgress { bytes: kept.bytes(), expires_at_ms: kept.expires_at_ms };
        Ok(Some(progress).filter(|_| !kept.expired(self.now_ms(now_ms))))
    }
}
