//! Raft: one group per shard, driven by openraft over the store and the transport.
//!
//! The only room that names openraft. What others use is [`Group`] (one replica of one shard) and
//! [`Groups`] (all of a node); neither shows an openraft type.
//!
//! | file | concept |
//! |---|---|
//! | `groups.rs` | all replicas of a node: opened, created, found, destroyed |
//! | `group.rs` | one replica, as the rest of the node sees it |
//! | `proposing.rs` | how commands become entries |
//! | `reads.rs`, `confirm.rs` | linearizable reads; whether a leader still leads |
//! | `apart.rs` | tells those who wait at a leader that has lost its quorum |
//! | `members.rs` | who belongs to a group; hand-over of the lead |
//! | `room.rs` | what replicas on nearly full disks take, and their leader admits |
//! | `status.rs` | what a group says of itself |
//! | `heard.rs` * | when a follower last heard its leader |
//! | `freshness.rs`, `lag.rs` * | how a replica learns how old its state may be |
//! | `thread.rs` | the thread that all groups run on |
//! | `pulse.rs` | heartbeats and elections of all groups |
//! | `purger.rs`, `retained.rs` * | purges logs; how many bytes of one are kept |
//! | `transfers.rs`, `snapshot.rs`, `throttle.rs` * | whole replicas on their way to other nodes |
//! | `descriptor.rs` | a replica's row on disk |
//! | `fault.rs` * | why a replica no longer takes part |
//! | `quarantine.rs` | replicas that have stopped: out of service, kept out, reported |
//! | `inbound.rs`, `network.rs`, `session.rs` | what comes from peers, what goes to them |
//! | `sound.rs` * | whether what a peer says can be true |
//! | `acknowledged.rs` * | what followers have acknowledged, so that a loss is noticed |
//! | `landed.rs` | through which entry the log is durable here |
//! | `log_storage.rs` | openraft's log over the store's |
//! | `state_machine.rs` | openraft's state machine over the apply thread |
//! | `convert.rs` | openraft's structs ↔ the peer protocol and the bytes on disk |
//! | `types.rs` | the types that openraft is instantiated with |
//!
//! Files marked * are pure.

mod acknowledged;
mod apart;
mod config;
mod confirm;
#[cfg(test)]
mod conformance;
mod convert;
mod descriptor;
mod fault;
mod freshness;
mod group;
mod groups;
mod heard;
mod inbound;
mod lag;
mod landed;
mod log_storage;
mod members;
mod network;
mod proposing;
mod pulse;
mod purger;
mod quarantine;
mod reads;
mod retained;
mod room;
mod session;
mod snapshot;
mod sound;
mod state_machine;
mod status;
mod thread;
mod throttle;
mod transfers;
mod types;

pub use config::Config;
pub(crate) use descriptor::{put as put_row, replicas_of};
pub use group::{Done, Group, Leader};
pub use groups::Groups;
pub use quarantine::Stopped;
pub use status::{GroupStatus, Role};
pub use transfers::{Direction, Transfer};
