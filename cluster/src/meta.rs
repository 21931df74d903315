//! What all nodes share of the cluster itself: its counters, its nodes, where replicas are, what
//! is being changed. Rows of shard 0, each changed by compare-and-swap.
//!
//! Ids come from counters that only grow: whoever takes one and dies has wasted it.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use statehouse_store::{CollectionId, Condition, ReplicaId};

use crate::format::Format;
use crate::rows::{self, Row};
use crate::task::{Task, TaskId};
use crate::{Error, Member, NodeId, ShardId, Shards, Topology};

/// System collections have fixed ids below every id that a version can be; 1 to 3 are the
/// catalog's.
const NODES: CollectionId = CollectionId(4);
const PLACEMENTS: CollectionId = CollectionId(5);
const TASKS: CollectionId = CollectionId(6);
const CLUSTER: CollectionId = CollectionId(7);

/// The one row of [`CLUSTER`].
const CLUSTER_KEY: &str = "cluster";

/// Whether a node takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It has replicas, or may get some.
    Active,
    /// Its replicas go elsewhere.
    Draining,
    /// It was a member.
    Removed,
}

/// A node, as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    format: Format<1>,
    /// The random id of its disk.
    pub store: [u8; 16],
    /// Where clients reach it; empty before it first ran.
    pub address: String,
    /// Where other nodes reach it; empty before it first ran.
    pub peer_address: String,
    /// Whether it takes part.
    pub state: NodeState,
}

impl NodeRow {
    /// A node that has not run yet.
    pub fn new(store: [u8; 16]) -> Self {
        let (address, peer_address) = (String::new(), String::new());
        NodeRow { format: Format, store, address, peer_address, state: NodeState::Active }
    }

    /// The same, taking part in another way.
    #[must_use]
    pub fn with_state(self, state: NodeState) -> Self {
        NodeRow { state, ..self }
    }
}

/// Where the replicas of a shard are that vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRow {
    format: Format<1>,
    /// Replica and node.
    pub replicas: Vec<(u64, u64)>,
    /// The task that changes them.
    pub task: Option<TaskId>,
}

impl PlacementRow {
    /// Replicas of a shard that nothing changes.
    pub fn new(replicas: Vec<(ReplicaId, NodeId)>) -> Self {
        let replicas = replicas.into_iter().map(|(replica, node)| (replica.0, node.0)).collect();
        PlacementRow { format: Format, replicas, task: None }
    }

    /// Replica and node of each.
    pub fn replicas(&self) -> impl Iterator<Item = (ReplicaId, NodeId)> {
        self.replicas.iter().map(|(replica, node)| (ReplicaId(*replica), NodeId(*node)))
    }
}

/// What the cluster knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRow {
    format: Format<1>,
    /// Shards that hold states.
    pub shards: NonZeroU16,
    /// Replicas that each shard should have.
    pub replicas: NonZeroU16,
    /// Nothing is moved.
    pub paused: bool,
    next_node: u64,
    next_replica: u64,
    next_task: TaskId,
}

impl ClusterRow {
    /// A new cluster of one node, whose replicas have the ids below `next_replica`.
    pub fn new(shards: NonZeroU16, replicas: NonZeroU16, next_replica: u64) -> Self {
        ClusterRow {
            format: Format,
            shards,
            replicas,
            paused: false,
            next_node: crate::FOUNDER.0 + 1,
            next_replica,
            next_task: 1,
        }
    }
}

/// What the cluster knows of itself; `None` before it was founded.
pub fn cluster(shards: &Shards) -> Result<Option<ClusterRow>, Error> {
    Ok(rows::get(shards, CLUSTER, CLUSTER_KEY.as_bytes())?.map(|row| row.value))
}

/// Changes what the cluster knows of itself.
pub async fn change_cluster(
    shards: &Shards,
    mut make: impl FnMut(&mut ClusterRow),
) -> Result<ClusterRow, Error> {
    let changed = rows::change(shards, CLUSTER, CLUSTER_KEY, |row: Option<ClusterRow>| {
        let mut row = row.ok_or_else(not_founded)?;
        make(&mut row);
        Ok(Some(row))
    });
    changed.await?.ok_or_else(not_founded)
}

/// Writes the first row, unless there is one.
pub async fn found(shards: &Shards, first: ClusterRow) -> Result<(), Error> {
    let write = |row: Option<ClusterRow>| Ok(row.is_none().then(|| first.clone()));
    rows::change(shards, CLUSTER, CLUSTER_KEY, write).await.map(|_| ())
}

fn not_founded() -> Error {
    Error::Invalid("the cluster's row is missing".to_owned())
}

/// A replica id that nobody has had.
pub async fn take_replica_id(shards: &Shards) -> Result<ReplicaId, Error> {
    let row = change_cluster(shards, |row| row.next_replica += 1).await?;
    Ok(ReplicaId(row.next_replica - 1))
}

/// A node id that nobody has had.
pub async fn take_node_id(shards: &Shards) -> Result<NodeId, Error> {
    let row = change_cluster(shards, |row| row.next_node += 1).await?;
    Ok(NodeId(row.next_node - 1))
}

/// A task id that nobody has had.
pub async fn take_task_id(shards: &Shards) -> Result<TaskId, Error> {
    let row = change_cluster(shards, |row| row.next_task += 1).await?;
    Ok(row.next_task - 1)
}

/// All nodes there ever were.
pub fn nodes(shards: &Shards) -> Result<BTreeMap<NodeId, NodeRow>, Error> {
    Ok(numbered(rows::scan(shards, NODES)?)?
        .into_iter()
        .map(|(id, row)| (NodeId(id), row))
        .collect())
}

/// Changes a node's row, or makes it.
pub async fn change_node(
    shards: &Shards,
    node: NodeId,
    make: impl FnMut(Option<NodeRow>) -> Result<Option<NodeRow>, Error>,
) -> Result<Option<NodeRow>, Error> {
    rows::change(shards, NODES, &node.to_string(), make).await
}

/// Where all replicas are.
pub fn placements(shards: &Shards) -> Result<BTreeMap<ShardId, PlacementRow>, Error> {
    let rows = numbered(rows::scan(shards, PLACEMENTS)?)?;
    Ok(rows.into_iter().map(|(id, row)| (ShardId(id as u16), row)).collect())
}

/// Changes where a shard's replicas are.
pub async fn change_placement(
    shards: &Shards,
    shard: ShardId,
    make: impl FnMut(Option<PlacementRow>) -> Result<Option<PlacementRow>, Error>,
) -> Result<Option<PlacementRow>, Error> {
    rows::change(shards, PLACEMENTS, &shard.to_string(), make).await
}

/// All tasks that are remembered, the oldest first.
pub fn tasks(shards: &Shards) -> Result<BTreeMap<TaskId, Task>, Error> {
    numbered(rows::scan(shards, TASKS)?)
}

/// Changes a task, or writes a new one.
pub async fn change_task(
    shards: &Shards,
    task: TaskId,
    make: impl FnMut(Option<Task>) -> Result<Option<Task>, Error>,
) -> Result<Option<Task>, Error> {
    rows::change(shards, TASKS, &task.to_string(), make).await
}

/// Forgets a task.
pub async fn forget_task(shards: &Shards, task: TaskId) -> Result<(), Error> {
    rows::delete(shards, TASKS, &task.to_string(), Condition::Any).await
}

fn numbered<T>(rows: Vec<Row<T>>) -> Result<BTreeMap<u64, T>, Error> {
    let number = |row: Row<T>| match row.key.parse() {
        Ok(id) => Ok((id, row.value)),
        Err(_) => Err(Error::Invalid(format!("row {:?}: expected a number", row.key))),
    };
    rows.into_iter().map(number).collect()
}

/// The nodes and placements as this node's replica has them.
pub fn topology(shards: &Shards) -> Result<(Topology, Vec<NodeId>), Error> {
    let nodes: Vec<Row<NodeRow>> = rows::scan(shards, NODES)?;
    let placements: Vec<Row<PlacementRow>> = rows::scan(shards, PLACEMENTS)?;
    let versions = nodes.iter().map(|row| row.version);
    let epoch = versions.chain(placements.iter().map(|row| row.version)).max().unwrap_or(0);
    let mut topology = Topology { epoch, ..Topology::default() };
    let mut removed = Vec::new();
    for (id, row) in numbered(nodes)? {
        if row.state == NodeState::Removed {
            removed.push(NodeId(id));
            continue;
        }
        let draining = row.state == NodeState::Draining;
        let (address, peer_address) = (row.address, row.peer_address);
        topology.nodes.insert(NodeId(id), Member { address, peer_address, draining });
    }
    for (id, row) in numbered(placements)? {
        topology.shards.insert(ShardId(id as u16), row.replicas().collect());
    }
    Ok((topology, removed))
}
