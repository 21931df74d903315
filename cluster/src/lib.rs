//! How we agree: shards, their replicas, and the catalog that all nodes share.
//!
//! A node keeps replicas of shards. The replicas of one shard are a Raft group: a write is
//! *proposed* to the one that leads, batched with its neighbours into one log entry, *appended*
//! (and fsynced) by a quorum, *committed*, then *applied* by each node's apply thread, and only
//! then answered. A node that stands alone is a quorum of one and goes the same way.
//!
//! | file | concept |
//! |---|---|
//! | `shard_map.rs` * | key → slot → shard |
//! | `proposals.rs` * | which waiting commands ride in the next entry |
//! | `clock.rs`, `clock/` | what time it is, for shards and for people |
//! | `raft.rs`, `raft/` | groups: propose, read, change members; the only door to openraft |
//! | `transport.rs`, `transport/` | what nodes say to each other |
//! | `applier.rs` | the thread that applies what is committed |
//! | `foreground.rs` | whether callers wait too long |
//! | `checkpointer.rs` | the thread that has replicas flushed |
//! | `shards.rs` | the shards as a node sees them |
//! | `identity.rs` | whose disk it is |
//! | `meta.rs`, `rows.rs` | what all nodes share, kept as states of shard 0 |
//! | `format.rs` * | the format number of those rows |
//! | `control.rs` | what nodes ask of each other |
//! | `controller.rs` | keeps the cluster as it should be |
//! | `admin.rs` | what people ask of it |
//! | `divergence.rs` | whether replicas that have applied the same hold the same |
//! | `reverted.rs` | reports followers that have lost what they acknowledged |
//! | `usage.rs` | how much it holds |
//! | `topology.rs` * | which nodes there are, and where replicas are |
//! | `placement.rs` * | where replicas should be |
//! | `task.rs` * | a change of one shard, step by step |
//! | `catalog.rs` | collections and models, kept as states of shard 0 |
//! | `ids.rs` * | names of nodes and clusters |
//!
//! Files marked * are pure.
//!
//! Not done: no leases (a linearizable read asks a quorum), no sleep of quiet groups, no split or
//! merge of shards.

pub mod admin;
mod applier;
pub mod catalog;
mod checkpointer;
pub mod clock;
pub mod control;
pub mod controller;
mod divergence;
mod error;
mod foreground;
mod format;
mod identity;
mod ids;
pub mod meta;
pub mod placement;
mod proposals;
pub mod raft;
mod reverted;
mod rows;
mod shard_map;
mod shards;
pub mod task;
mod topology;
pub mod transport;
pub mod usage;

pub use checkpointer::{Checkpointer, Limits as CheckpointLimits};
pub use error::{Error, MembersProblem};
pub use foreground::Foreground;
pub use identity::{FOUNDER, Identity};
pub use ids::{ClusterId, NodeId};
pub use proposals::Limits;
pub use raft::Done;
pub use shard_map::{META_SHARD, SLOTS, ShardId, ShardMap, slot_of};
pub use shards::{Addresses, Config, Shards};
pub use topology::{Member, Topology};
