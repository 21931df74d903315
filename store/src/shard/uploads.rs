//! The rows of uploads: brought to a decision of `upload.rs`, and changed as it says.

use super::Applier;
use crate::apply::{self, Away, Decision, Moment};
use crate::command::Command;
use crate::error::Error;
use crate::extent::{Extent, unreferenced};
use crate::garbage::Garbage;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::Record;
use crate::reply::Reply;
use crate::upload::{self, Kept, Next, PutUpload, Stepped, UPLOADS_MAX, Upload, UploadStep};

impl Applier<'_> {
    /// Begins, continues or ends an upload.
    pub(super) fn upload(
        &mut self,
        command: &Command,
        upload: &Upload,
        moment: Moment,
    ) -> Result<Reply, Error> {
        if let UploadStep::Begin { request, .. } = &upload.step
            && let Some(reply) = self.remembered(request.as_ref(), moment)?
        {
            return Ok(reply);
        }
        let collection = upload.target.collection;
        let row = keys::upload(collection, &upload.id);
        let kept = self.kept(&row)?;
        let full = match (&upload.step, &kept) {
            (UploadStep::Begin { .. }, None) => {
                self.keys(keys::all_uploads(), UPLOADS_MAX)?.len() == UPLOADS_MAX
            }
            _ => false,
        };
        let part = Away::of(command, moment).find(0);
        let before = kept.as_ref().map(Kept::bytes);
        let stepped = upload::step(upload, kept, part, moment, || full);
        self.keep(row, (collection, before), stepped, moment)
    }

    /// Makes a state of an upload.
    pub(super) fn put_upload(
        &mut self,
        put: &PutUpload,
        stored: Option<&Record>,
        moment: Moment,
    ) -> Result<Decision, Error> {
        let collection = put.write.target.collection;
        let row = keys::upload(collection, &put.id);
        let kept = self.kept(&row)?;
        let before = kept.as_ref().map(Kept::bytes);
        let kept = match upload::complete(put, kept, moment) {
            Ok(kept) => kept,
            Err(stepped) => {
                let reply = self.keep(row, (collection, before), stepped, moment)?;
                return Ok(Away::default().refused(reply));
            }
        };
        let mut load = |extent: &Extent| self.load(collection, extent);
        let decision = apply::put_upload(put, &kept.parts, stored, moment, &mut load)?;
        if !matches!(decision.reply, Reply::Conflict { .. }) {
            self.part.overlay.delete(row);
            self.count_upload(collection, before, None)?;
        }
        Ok(decision)
    }

    /// Removes uploads that expired; answers how many.
    pub(super) fn sweep_uploads(
        &mut self,
        until_ms: u64,
        limit: usize,
        moment: Moment,
    ) -> Result<u64, Error> {
        let mut swept = 0;
        for row in self.keys(keys::all_uploads(), UPLOADS_MAX)? {
            let Some(kept) = self.kept(&row)?.filter(|kept| kept.expired(until_ms)) else {
                continue;
            };
            if swept == limit as u64 {
                break;
            }
            let collection = keys::collection_of(&row);
            let before = Some(kept.bytes());
            let gone = Stepped { reply: Reply::UploadAborted, next: Next::Gone, freed: kept.parts };
            self.keep(row, (collection, before), gone, moment)?;
            swept += 1;
        }
        Ok(swept)
    }

    fn kept(&self, row: &[u8]) -> Result<Option<Kept>, Error> {
        let kept = self.fetch(row)?.map(Kept::decode).transpose();
        kept.map_err(|error| Error::corrupt("upload row", error))
    }

    /// Turns what a step comes to into row changes. `before` is how much there was.
    fn keep(
        &mut self,
        row: Vec<u8>,
        (collection, before): (CollectionId, Option<u64>),
        stepped: Stepped,
        moment: Moment,
    ) -> Result<Reply, Error> {
        match stepped.next {
            Next::Same => {}
            Next::Keep(kept) => {
                self.count_upload(collection, before, Some(kept.bytes()))?;
                self.part.overlay.put(row, kept.encode().into());
            }
            Next::Gone => {
                self.count_upload(collection, before, None)?;
                self.part.overlay.delete(row);
            }
        }
        for span in unreferenced(&stepped.freed, &[]) {
            self.discard(Garbage::Span(collection, span), moment);
        }
        Ok(stepped.reply)
    }
}
