//! statehouse-store: what one node keeps. Sharded model state on one disk, in RocksDB.
//!
//! A node holds *replicas*, one per shard. A replica has a log of *entries* and a state machine,
//! the *shard*, which applies committed entries to *states*. Synchronous and without Raft: who
//! decides what is committed drives this crate through these handles.
//!
//! ```text
//! Store -- log(id)    -> Log     append, read, truncate, purge, vote    (commit thread)
//!       -- shard(id)  -> Shard   apply(&mut ApplyBatch, &Entry)         (one owner)
//!       -- reader(id) -> Reader  get, load, scan, view, usage, largest  (any thread)
//!       -- read_pool() -> ReadPool                                      (waits for the disk)
//!       -- export(id) -> Export, receive(id) -> Incoming -> Received -> Shard::install
//! ```
//!
//! What holds, always:
//! - Applying is deterministic: the same entries give the same states, on every replica. Time is
//!   the entry's. A refusal is a [`Reply`], never an [`Error`].
//! - A shard's changes and its applied index become durable together, when its column family is
//!   flushed ([`Store::flush`], or RocksDB by itself). Until then they are in memory alone, and the
//!   log keeps their entries: a start applies again what lies behind [`Log::flushed`].
//! - `Log::append`'s callback fires after the sync. One sync serves all replicas that wait.
//! - A replica's rows are replaced by a received view as a whole: whatever interrupts that, it is
//!   the old one or the new one, and readers of the old one go on.
//! - A large payload is written once, when its entry is appended; applying refers to it.
//! - After a failed write or sync the store takes nothing more ([`Store::failure`]).
//! - A read sees every write that was applied before it, from memory or from disk alike.
//! - Every queue and cache has a limit in [`Config`] or a named constant.
//! - Every row starts with a format number (`keys.rs` has the table of rows).
//!
//! Not done, on purpose: no clock, no network, no election, no routing of keys to shards, no
//! admission (the caller asks [`Store::check_space`]), no compression, no encryption at rest, no
//! resuming of a transfer that broke off. A dropped collection's id must not come back: the store
//! keeps no tombstone of it.

mod absolute;
mod applied;
mod apply;
mod batch;
mod blob;
mod block;
mod cache;
mod codec;
mod command;
mod commit;
mod config;
mod crc32c;
mod damage;
mod db;
mod dedup;
mod directory;
mod disk;
mod encoding;
mod error;
mod expiry;
mod export;
mod extent;
mod facts;
mod failure;
mod files;
mod freeing;
mod garbage;
mod ids;
mod inspect;
mod install;
mod keys;
mod ledger;
mod log;
mod opening;
mod overlay;
mod patch;
mod payload;
mod plan;
mod pool;
mod proof;
mod read;
mod receive;
mod reclaim;
mod record;
mod released;
mod repair;
mod replicas;
mod reply;
mod requests;
mod reuse;
mod salvage;
mod scrub;
mod selected;
mod set_aside;
mod shard;
mod space;
mod state;
mod stats;
mod store;
mod stream;
mod sums;
mod tables;
mod tail;
mod unflushed;
mod upload;
mod usage;
mod value;
mod view;
mod wal;
mod watch;
mod witness;

pub use apply::Moment;
pub use batch::ApplyBatch;
pub use block::TRANSFER_FORMAT;
pub use codec::Malformed;
pub use command::{
    ANSWER_BYTES_MAX, Body, COMMANDS_PER_ENTRY_MAX, Command, CommandBatch, Condition, Delete,
    EDITS_MAX, Edit, Entry, Expiry, FIELD_NAME_BYTES_MAX, FIELDS_MAX, KEY_BYTES_MAX,
    MODEL_NAME_BYTES_MAX, ModelTag, OutOfBounds, Patch, Put, RequestTag, Sweep, Target, Write,
    WriteLimits,
};
pub use commit::Callback;
pub use config::Config;
pub use damage::{Damage, DamageHook, DamagePolicy};
pub use encoding::ENTRY_FORMAT;
pub use error::{Error, ReplicaProblem, TransferProblem};
pub use export::Export;
pub use extent::CHUNK_BYTES;
pub use failure::FailureHook;
pub use ids::{CollectionId, EntryId, ReplicaId};
pub use inspect::Census;
pub use keys::STORE_FORMAT;
pub use log::Log;
pub use plan::{CachePart, CachePlan, CachePoint};
pub use pool::{Read, ReadPool};
pub use read::{LargeState, Reader, Room, SweepStart, UploadProgress, Warmth};
pub use receive::{Incoming, Received};
pub use repair::{Accepted, Loss, accept_loss, damage_policy, inspect_damage};
pub use reply::Reply;
pub use requests::{REQUEST_BYTES_MAX, REQUESTS_MAX, REQUESTS_MIN, Remembered};
pub use salvage::{Lost, LostRows, salvage_tables};
pub use scrub::{Pace, ScrubReport};
pub use selected::Slice;
pub use shard::Shard;
#[doc(hidden)]
pub use shard::Tamper;
pub use space::DiskLevel;
pub use state::{
    BlobHandle, Cached, FieldRange, Part, Payload, Selection, State, StateField, WholeState,
};
pub use stats::{CommitStats, HISTOGRAM_BUCKETS, Histogram, MemoryStats, Stats, WrittenStats};
pub use store::Store;
pub use stream::FieldStream;
pub use sums::AppliedSums;
pub use upload::{
    PutUpload, UPLOAD_PARTS_MAX, UPLOADS_MAX, Upload, UploadId, UploadStep, UploadedField,
};
pub use usage::Totals;
pub use value::{AXES_MAX, DType, Field, FieldType, Value, When};
pub use view::View;
