//! Reads of what is applied: points, ranges, whole states, listings.
//!
//! A read comes in two manners. `try_…` looks in memory alone and may run anywhere; without
//! `try_` it may wait for the disk and belongs on a thread that can, such as [`crate::ReadPool`].
//! Small fields come without a copy, as slices of the cached block that holds their record.
//!
//! A large field's chunks may be deleted while it is read, when its state is replaced. A read
//! through a [`View`] (`view.rs`) never sees that; a whole read retries, and takes a view in the
//! end.

mod blobs;
mod uploads;
mod usage;
mod warm;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;
use bytes::Bytes;

use crate::cache::{Asked, Found};
use crate::command::RequestTag;
use crate::db::{Fetched, Look, Walk};
use crate::dedup;
use crate::disk::{Disk, Generation, Replica};
use crate::error::Error;
use crate::extent::BlobId;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::{Content, Record, RecordField};
use crate::reply::Reply;
use crate::requests::Remembered;
use crate::selected::{Slice, check_range, inline_part, selected};
use crate::state::{Cached, Payload, Selection, State, StateField, WholeState};
use crate::sums::AppliedSums;
use crate::value::{Field, When};
use crate::view::View;

pub use uploads::UploadProgress;
pub use usage::LargeState;
pub use warm::{Room, Warmth};

/// How often a whole read starts again before it takes a view.
const RETRIES_MAX: usize = 3;

/// What lies in memory is put together at once up to so many bytes: whoever looks must not be held
/// up.
const CACHED_BYTES_MAX: u64 = 256 << 10;

/// A field of more than this share of the block cache passes it by.
const CACHE_SHARE: u64 = 8;

/// Reads one replica. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    disk: Arc<Disk>,
    replica: Arc<Replica>,
    /// A view's: it goes on reading what it has begun with.
    pinned: Option<Arc<Generation>>,
    block_cache_bytes: u64,
}

/// Where a sweep of a shard should begin, and that there is something to sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepStart {
    /// For `Sweep::cursor`.
    pub cursor: Option<Bytes>,
}

/// What a read with a look comes to.
pub(crate) enum Outcome<T> {
    Ready(T),
    NeedsDisk,
    /// The state was replaced meanwhile.
    Gone,
}

impl Reader {
    pub(crate) fn new(disk: Arc<Disk>, replica: Arc<Replica>, block_cache_bytes: usize) -> Self {
        Reader { disk, replica, pinned: None, block_cache_bytes: block_cache_bytes as u64 }
    }

    /// Index of the last entry that reads see.
    pub fn applied_index(&self) -> u64 {
        self.replica.applied_index.load(Ordering::Acquire)
    }

    /// Returns sums over what is applied, as of some of the last entries: equal for two replicas
    /// that have applied the same.
    pub fn sums(&self) -> AppliedSums {
        self.replica.sums.lock().read()
    }

    /// A state, if it is in memory and has not expired at `now_ms` (Unix milliseconds).
    pub fn try_get(
        &self,
        collection: CollectionId,
        key: &[u8],
        now_ms: u64,
    ) -> Result<Cached<Option<State>>, Error> {
        match self.record(Look::Cached, collection, key, now_ms)? {
            Outcome::Ready(record) => {
                let now_ms = self.now_ms(now_ms);
                Ok(Cached::Ready(record.map(|record| State::of(&record, collection, now_ms))))
            }
            Outcome::NeedsDisk | Outcome::Gone => Ok(Cached::NeedsDisk),
        }
    }

    /// A state that has not expired at `now_ms`. May wait for the disk.
    pub fn get(
        &self,
        collection: CollectionId,
        key: &[u8],
        now_ms: u64,
    ) -> Result<Option<State>, Error> {
        self.get_at(Look::Disk, collection, key, now_ms)
    }

    /// Bytes of a field, if they are in memory.
    pub fn try_load(&self, field: &StateField, range: Range<u64>) -> Result<Cached<Bytes>, Error> {
        match self.load_at(Look::Cached, field, range)? {
            Outcome::Ready(bytes) => Ok(Cached::Ready(bytes)),
            Outcome::NeedsDisk => Ok(Cached::NeedsDisk),
            Outcome::Gone => Err(Error::Replaced),
        }
    }

    /// Bytes of a field. May wait for the disk. `Replaced` if the state was replaced since it
    /// was read and the bytes are gone; `RangePastEnd` if the field is shorter.
    pub fn load(&self, field: &StateField, range: Range<u64>) -> Result<Bytes, Error> {
        self.loaded(Look::Disk, field, range)
    }

    /// Some or all fields of a state with their bytes, if all of that is in memory.
    pub fn try_get_whole(
        &self,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
    ) -> Result<Cached<Option<WholeState>>, Error> {
        match self.whole_at(Look::Cached, collection, key, selection, now_ms)? {
            Outcome::Ready(state) => Ok(Cached::Ready(state)),
            Outcome::NeedsDisk | Outcome::Gone => Ok(Cached::NeedsDisk),
        }
    }

    /// Some or all fields of a state with their bytes, all of one version. May wait for the
    /// disk. `UnknownField` and `RangePastEnd` if the selection does not fit the state.
    pub fn get_whole(
        &self,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
    ) -> Result<Option<WholeState>, Error> {
        for _ in 0..RETRIES_MAX {
            let outcome = self.whole_at(Look::Disk, collection, key, selection, now_ms)?;
            if let Outcome::Ready(state) = outcome {
                return Ok(state);
            }
        }
        self.view()?.get_whole(collection, key, selection, now_ms)
    }

    /// The replica as it is now.
    pub fn view(&self) -> Result<View, Error> {
        self.replica.check()?;
        // In this order: the view has at least what the index says.
        let applied_index = self.applied_index();
        let pinned = Some(Guard::into_inner(self.generation()));
        Ok(View::new(Reader { pinned, ..self.clone() }, applied_index, self.disk.db.view()))
    }

    /// The keys of a collection in order, behind `after`, at most `limit`. Those of expired
    /// states are among them. May wait for the disk.
    pub fn scan(
        &self,
        collection: CollectionId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, Error> {
        self.replica.check()?;
        let (mut start, end) = keys::records(collection);
        if let Some(after) = after {
            start = keys::record(collection, after);
            start.push(0);
        }
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        let family = &self.generation().family;
        self.disk.db.walk(family, (start, end), Walk::Few, &mut |row, _| {
            found.push(Bytes::copy_from_slice(keys::key_of_record(row)));
            Ok(match found.len() == limit {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        Ok(found)
    }

    /// What a request was answered, if it was done within the last minutes: its repeat can be
    /// answered without proposing it. May wait for the disk.
    pub fn answer(&self, tag: &RequestTag, now_ms: u64) -> Result<Option<Reply>, Error> {
        self.replica.check()?;
        let live = self.replica.applied.lock().requests.live(self.now_ms(now_ms));
        for bucket in live {
            let key = keys::request(bucket, &tag.id);
            if let Some(row) = self.disk.db.fetch(&self.generation().family, &key)? {
                let reply = dedup::decode(row, tag);
                let reply = reply.map(Some).map_err(|e| Error::corrupt("request row", e));
                return self.disk.seen(self.replica.id, reply);
            }
        }
        Ok(None)
    }

    /// Whether a sweep at `now_ms` has something to do, and where it should begin. May wait for
    /// the disk.
    pub fn sweep_start(&self, now_ms: u64) -> Result<Option<SweepStart>, Error> {
        self.replica.check()?;
        if let Some(row) = self.first_expiry(now_ms)? {
            let cursor = Some(Bytes::from(row).slice(1..));
            return Ok(Some(SweepStart { cursor }));
        }
        let old = self.replica.applied.lock().requests.retirable(now_ms);
        let requests = self.first_row(keys::requests_before(old))?;
        let sweepable = requests.is_some() || self.upload_expired(now_ms)?;
        Ok(sweepable.then_some(SweepStart { cursor: None }))
    }

    /// How many requests are remembered, so that their repeats are recognised.
    pub fn remembered(&self) -> Remembered {
        self.replica.applied.lock().requests.remembered()
    }

    /// The shard's time: the latest that an entry applied here carried, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.replica.time_ms.load(Ordering::Acquire)
    }

    /// The first row of the expiry index up to a time. Begins where the last walk ended: in front
    /// of it lies what sweeps have deleted.
    fn first_expiry(&self, now_ms: u64) -> Result<Option<Vec<u8>>, Error> {
        let from = &self.replica.expiries_from_ms;
        let from_ms = from.swap(u64::MAX, Ordering::AcqRel);
        let row = match from_ms <= now_ms {
            true => self.first_row(keys::expiries(&from_ms.to_be_bytes(), now_ms)),
            false => Ok(None),
        };
        let none_before_ms = match &row {
            Ok(None) => from_ms.max(now_ms.saturating_add(1)),
            Ok(Some(row)) => keys::parse_expiry(row).map_or(from_ms, |(at_ms, ..)| at_ms),
            Err(_) => from_ms,
        };
        from.fetch_min(none_before_ms, Ordering::AcqRel);
        row
    }

    fn first_row(&self, range: (Vec<u8>, Vec<u8>)) -> Result<Option<Vec<u8>>, Error> {
        let mut first = None;
        self.disk.db.walk(&self.generation().family, range, Walk::Few, &mut |row, _| {
            first = Some(row.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(first)
    }

    /// Where the rows are that this reads.
    fn generation(&self) -> Guard<Arc<Generation>> {
        match &self.pinned {
            Some(generation) => Guard::from_inner(generation.clone()),
            None => self.replica.generation(),
        }
    }

    /// A shard's time never runs backwards, whatever a reader's clock says.
    fn now_ms(&self, now_ms: u64) -> u64 {
        now_ms.max(self.time_ms())
    }

    fn record(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        key: &[u8],
        now_ms: u64,
    ) -> Result<Outcome<Option<Arc<Record>>>, Error> {
        // A read looks in memory first.
        let asked = if matches!(look, Look::Cached) { Asked::First } else { Asked::Again };
        self.record_for(asked, look, collection, (key, now_ms))
    }

    fn record_for(
        &self,
        asked: Asked,
        look: Look<'_>,
        collection: CollectionId,
        (key, now_ms): (&[u8], u64),
    ) -> Result<Outcome<Option<Arc<Record>>>, Error> {
        self.replica.check()?;
        let generation = self.generation();
        let place = self.disk.cache.place_of(generation.space, collection, key);
        let alive = |record: &Arc<Record>| !record.expired(self.now_ms(now_ms));
        let vacancy = match look {
            Look::View(_) | Look::Passing(_) => None,
            Look::Cached | Look::Disk => match self.disk.cache.find(&place, asked) {
                Found::Kept(record) => return Ok(Outcome::Ready(Some(record).filter(alive))),
                Found::Vacant(vacancy) => Some(vacancy),
                Found::Busy => None,
            },
        };
        let pinned = match self.disk.db.get(&generation.family, place.row(), look)? {
            Fetched::Found(pinned) => pinned,
            Fetched::Absent => return Ok(Outcome::Ready(None)),
            Fetched::NeedsDisk => return Ok(Outcome::NeedsDisk),
        };
        let row = match vacancy {
            // A copy: what is kept must not hold on to a block.
            Some(_) => Bytes::copy_from_slice(&pinned),
            None => pinned.into_bytes(),
        };
        let record = Record::decode(row).map_err(|error| Error::corrupt("state record", error));
        let record = Arc::new(self.disk.seen(self.replica.id, record)?);
        if let Some(vacancy) = vacancy {
            vacancy.keep(record.clone());
        }
        Ok(Outcome::Ready(Some(record).filter(alive)))
    }

    pub(crate) fn get_at(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        key: &[u8],
        now_ms: u64,
    ) -> Result<Option<State>, Error> {
        match self.record(look, collection, key, now_ms)? {
            Outcome::Ready(record) => {
                let now_ms = self.now_ms(now_ms);
                Ok(record.map(|record| State::of(&record, collection, now_ms)))
            }
            Outcome::NeedsDisk | Outcome::Gone => Ok(None),
        }
    }

    pub(crate) fn whole_at(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
    ) -> Result<Outcome<Option<WholeState>>, Error> {
        let record = match self.record(look, collection, key, now_ms)? {
            Outcome::Ready(Some(record)) => record,
            Outcome::Ready(None) => return Ok(Outcome::Ready(None)),
            Outcome::NeedsDisk => return Ok(Outcome::NeedsDisk),
            Outcome::Gone => return Ok(Outcome::Gone),
        };
        let mut fields = Vec::with_capacity(record.fields.len());
        let now_ms = self.now_ms(now_ms);
        let slices = selected(
            &record.fields,
            selection,
            |field| (&field.name, &field.field_type, field.content.len()),
            |field| !field.expired(now_ms),
        )?;
        if let Look::Cached = look
            && copied_bytes(&slices) > CACHED_BYTES_MAX
        {
            return Ok(Outcome::NeedsDisk);
        }
        for Slice { field, range, field_type } in slices {
            let loaded = match &field.content {
                Content::Inline(bytes) => Outcome::Ready(inline_part(&field.name, bytes, range)?),
                Content::Blobs(extents) => {
                    check_range(&field.name, field.content.len(), &range)?;
                    self.load_checked(look, collection, extents, range)?
                }
            };
            match loaded {
                Outcome::Ready(bytes) => {
                    let value = field_type.with(bytes);
                    let (name, expires) = (field.name.clone(), field.expires_at_ms.map(When::At));
                    fields.push(Field { name, value, expires });
                }
                Outcome::NeedsDisk => return Ok(Outcome::NeedsDisk),
                Outcome::Gone => return Ok(Outcome::Gone),
            }
        }
        Ok(Outcome::Ready(Some(WholeState::of(&record, fields))))
    }

    pub(crate) fn loaded(
        &self,
        look: Look<'_>,
        field: &StateField,
        range: Range<u64>,
    ) -> Result<Bytes, Error> {
        match self.load_at(look, field, range)? {
            Outcome::Ready(bytes) => Ok(bytes),
            Outcome::NeedsDisk | Outcome::Gone => Err(Error::Replaced),
        }
    }

    fn load_at(
        &self,
        look: Look<'_>,
        field: &StateField,
        range: Range<u64>,
    ) -> Result<Outcome<Bytes>, Error> {
        self.replica.check()?;
        match &field.payload {
            Payload::Inline(bytes) => Ok(Outcome::Ready(inline_part(&field.name, bytes, range)?)),
            Payload::Blob(handle) => {
                check_range(&field.name, field.bytes_len, &range)?;
                self.load_checked(look, handle.collection, &handle.extents, range)
            }
        }
    }

    /// A chunk of a blob as a look sees it.
    pub(crate) fn chunk(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        blob: BlobId,
        number: u32,
    ) -> Result<Fetched, Error> {
        self.disk.db.get(&self.generation().family, &keys::chunk(collection, blob, number), look)
    }

    /// Whether so many bytes may displace others from the block cache.
    pub(crate) fn is_worth_keeping(&self, bytes: u64) -> bool {
        bytes <= self.block_cache_bytes / CACHE_SHARE
    }
}

/// Bytes that are put together from chunks.
fn copied_bytes(slices: &[Slice<'_, RecordField>]) -> u64 {
    let of_blobs =
        |slice: &&Slice<'_, RecordField>| matches!(slice.field.content, Content::Blobs(_));
    slices
        .iter()
        .filter(of_blobs)
        .map(|slice| slice.range.end.saturating_sub(slice.range.start))
        .sum()
}
