//! Hears of compactions that met damaged files, so that one bad block does not stop the database.
//!
//! RocksDB takes a compaction that reads a corrupt block for a reason to refuse all writes from
//! then on, in every column family. Here such a failure is noted with its family and taken back:
//! the inputs stay as they are, the other families go on. Failed flushes and writes stay failures.
//!
//! Part of the door in `db.rs`.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use librocksdb_sys as sys;
use parking_lot::Mutex;
use rocksdb::{AsRawPtr, Options};

use super::message::{self, Lost};

/// RocksDB's `BackgroundErrorReason::kCompaction`.
const COMPACTION: u32 = 1;

/// What was heard.
#[derive(Default)]
pub(crate) struct Heard {
    spoiled: Mutex<Vec<Spoiled>>,
    forgiven: AtomicU64,
    /// The first failure that was not taken back, as RocksDB says it.
    failure: OnceLock<String>,
}

/// A compaction that met lost rows.
pub(crate) struct Spoiled {
    pub family: String,
    pub lost: Lost,
}

impl Heard {
    /// Takes the compactions that failed since the last call.
    pub fn take_spoiled(&self) -> Vec<Spoiled> {
        std::mem::take(&mut *self.spoiled.lock())
    }

    /// Returns the first failure that was not taken back, as RocksDB says it.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Returns how many failures were taken back.
    pub fn forgiven(&self) -> u64 {
        self.forgiven.load(Ordering::Acquire)
    }
}

/// Has a database with these options tell what it meets.
pub(super) fn listen(options: &mut Options, heard: &Arc<Heard>) {
    let state = Arc::into_raw(heard.clone()).cast_mut().cast::<c_void>();
    // SAFETY: the listener owns one count of `heard` and gives it back when it is destroyed; the
    // options own the listener from here on. All callbacks are given, since each is called.
    unsafe {
        let listener = sys::rocksdb_eventlistener_create(
            state,
            Some(release),
            Some(flush_begins),
            Some(flush_ends),
            Some(compaction_begins),
            Some(compaction_ends),
            Some(part_begins),
            Some(part_ends),
            Some(ingested),
            Some(failed),
            Some(stalled),
            Some(sealed),
        );
        sys::rocksdb_options_add_eventlistener(options.as_raw_ptr(), listener);
    }
}

/// Takes a message that RocksDB has allocated.
///
/// # Safety
/// `text` is null or a string allocated by RocksDB, which nobody uses afterwards.
unsafe fn take(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as the caller promises; the text is not used any more.
    unsafe { sys::rocksdb_free(text.cast()) };
    Some(owned)
}

unsafe extern "C" fn release(state: *mut c_void) {
    // SAFETY: this is the count that `listen` gave away, given back once.
    drop(unsafe { Arc::from_raw(state.cast::<Heard>().cast_const()) });
}

unsafe extern "C" fn compaction_ends(
    state: *mut c_void,
    _: *mut sys::rocksdb_t,
    job: *const sys::rocksdb_compactionjobinfo_t,
) {
    // SAFETY: the state lives as long as the listener, and the job as long as this call.
    let (heard, text, family) = unsafe {
        let mut text = std::ptr::null_mut();
        sys::rocksdb_compactionjobinfo_status(job, &mut text);
        let mut length = 0;
        let name = sys::rocksdb_compactionjobinfo_cf_name(job, &mut length);
        let name = std::slice::from_raw_parts(name.cast::<u8>(), length);
        (&*state.cast::<Heard>(), take(text), String::from_utf8_lossy(name).into_owned())
    };
    if let Some(lost) = text.as_deref().and_then(message::lost) {
        heard.spoiled.lock().push(Spoiled { family, lost });
    }
}

unsafe extern "C" fn failed(
    state: *mut c_void,
    reason: u32,
    status: *mut sys::rocksdb_status_ptr_t,
) {
    // SAFETY: the state lives as long as the listener, and the status as long as this call.
    let (heard, text) = unsafe {
        let mut text = std::ptr::null_mut();
        sys::rocksdb_status_ptr_get_error(status, &mut text);
        (&*state.cast::<Heard>(), take(text))
    };
    if reason == COMPACTION && text.as_deref().and_then(message::lost).is_some() {
        heard.forgiven.fetch_add(1, Ordering::AcqRel);
        // SAFETY: as above.
        unsafe { sys::rocksdb_reset_status(status) };
    } else if let Some(text) = text {
        heard.failure.get_or_init(|| text);
    }
}

unsafe extern "C" fn flush_begins(
    _: *mut c_void,
    _: *mut sys::rocksdb_t,
    _: *const sys::rocksdb_flushjobinfo_t,
) {
}

unsafe extern "C" fn flush_ends(
    _: *mut c_void,
    _: *mut sys::rocksdb_t,
    _: *const sys::rocksdb_flushjobinfo_t,
) {
}

unsafe extern "C" fn compaction_begins(
    _: *mut c_void,
    _: *mut sys::rocksdb_t,
    _: *const sys::rocksdb_compactionjobinfo_t,
) {
}

unsafe extern "C" fn part_begins(_: *mut c_void, _: *const sys::rocksdb_subcompactionjobinfo_t) {}

unsafe extern "C" fn part_ends(_: *mut c_void, _: *const sys::rocksdb_subcompactionjobinfo_t) {}

unsafe extern "C" fn ingested(
    _: *mut c_void,
    _: *mut sys::rocksdb_t,
    _: *const sys::rocksdb_externalfileingestioninfo_t,
) {
}

unsafe extern "C" fn stalled(_: *mut c_void, _: *const sys::rocksdb_writestallinfo_t) {}

unsafe extern "C" fn sealed(_: *mut c_void, _: *const sys::rocksdb_memtableinfo_t) {}
