//! Why a change of where replicas are is refused.

use crate::{NodeId, ShardId};

/// Why a move that somebody asked for is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such node.
    #[error("node {0} is not a member of this cluster")]
    UnknownNode(NodeId),
    /// There is no such shard.
    #[error("shard {0} does not exist")]
    UnknownShard(ShardId),
    /// A second change during a change.
    #[error("shard {0} is being changed: wait for the task or cancel it")]
    Busy(ShardId),
    /// Two replicas of a shard on one node.
    #[error("node {node} has a replica of shard {shard} already")]
    Occupied {
        /// The shard's number.
        shard: ShardId,
        /// The node's id.
        node: NodeId,
    },
    /// No replica there.
    #[error("node {node} has no replica of shard {shard}")]
    Absent {
        /// The shard's number.
        shard: ShardId,
        /// The node's id.
        node: NodeId,
    },
    /// It does not answer, drains, or has a full disk.
    #[error(
        "node {0} takes no replicas, nor leads: it does not answer, is being drained or is short \
         of disk space"
    )]
    Closed(NodeId),
    /// Without it no majority of the rest answers.
    #[error(
        "shard {shard} would be left with {alive} of {left} replicas that answer: too few for a \
         majority"
    )]
    LastGood {
        /// The shard's number.
        shard: ShardId,
        /// Replicas that answer after the move.
        alive: usize,
        /// Replicas after the move.
        left: usize,
    },
    /// A node that still has replicas.
    #[error("node {node} has {replicas} replicas: drain it first")]
    Full {
        /// The node's id.
        node: NodeId,
        /// The number of its replicas.
        replicas: usize,
    },
    /// A disk that can't join.
    #[error("{0}")]
    Disk(String),
    /// A task that can't be undone.
    #[error("task {task} can't be undone any more: its step is {step}")]
    TooLate {
        /// The task's id.
        task: u64,
        /// The step that the task is at.
        step: String,
    },
    /// Nowhere to go.
    #[error("no node that is open lacks a replica of shard {0}")]
    NoRoom(ShardId),
}
