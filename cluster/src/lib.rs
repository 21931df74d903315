//! How we agree: shards, their replicas, and the catalog that all nodes share.
//!
//! A node keeps one replica of each shard it holds. A write is *proposed* to the shard's replica,
//! batched with its neighbours into one log entry, *appended* (and fsynced) by the store's one
//! commit thread, then *applied* by the driver thread, and only then answered.
//!
//! | file | concept |
//! |---|---|
//! | `shard_map.rs` * | key → slot → shard |
//! | `proposals.rs` * | which waiting commands ride in the next entry |
//! | `replica.rs` | one shard's copy here: propose, read |
//! | `driver.rs` | the thread that applies what is durable |
//! | `checkpointer.rs` | the thread that has replicas flushed |
//! | `shards.rs` | all replicas of a node: open, locate, close |
//! | `placement.rs` * | where replicas should be |
//! | `task.rs` * | a change of one shard, step by step |
//! | `catalog.rs` | collections and models, kept as states of shard 0 |
//! | `ids.rs` * | the names of a cluster's parts |
//!
//! Files marked * are pure. Placement and tasks are ready and driven by nobody yet.
//!
//! Not done: replication. A replica is its own quorum; what is durable here is committed. The
//! path is the one that Raft drives: `Log::append` with a callback, then `Shard::apply`.

pub mod catalog;
mod checkpointer;
mod driver;
mod error;
mod ids;
pub mod placement;
mod proposals;
mod replica;
mod shard_map;
mod shards;
pub mod task;

pub use checkpointer::Limits as CheckpointLimits;
pub use error::Error;
pub use ids::NodeId;
pub use replica::{Done, Replica};
pub use shard_map::{META_SHARD, SLOTS, ShardId, ShardMap, slot_of};
pub use shards::{Config, Shards};
