//! Whose disk it is: which node of which cluster. Written once, before anything else is.
//!
//! A node's id comes from its cluster and is never used again; a disk that is lost takes its id
//! with it. What a cluster has of a disk is the store's random id: whoever asks twice to join
//! with the same disk gets the same node id.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use statehouse_store::Store;

use crate::raft::put_row;
use crate::{ClusterId, Error, NodeId};

/// The row of the store's `meta` that holds it.
const ROW: &str = "node";

/// The format of that row.
const FORMAT: u32 = 1;

/// The first node of every cluster.
pub const FOUNDER: NodeId = NodeId(1);

/// Which node of which cluster a disk belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which node of it.
    pub node: NodeId,
    /// Shards of the cluster that hold states.
    pub shards: NonZeroU16,
    /// Replicas that each shard should have; what the cluster began with.
    pub replicas: NonZeroU16,
    /// The founder has yet to make the first replicas.
    pub founding: bool,
    /// Peer addresses of the nodes there were when this one joined.
    pub peers: BTreeMap<NodeId, String>,
}

/// What `meta` keeps, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct IdentityRow {
    format: u32,
    cluster: [u8; 16],
    node: u64,
    shards: NonZeroU16,
    replicas: NonZeroU16,
    founding: bool,
    peers: BTreeMap<u64, String>,
}

impl Identity {
    /// The founder of a new cluster, named by its disk.
    pub fn founder(store: &Store, shards: NonZeroU16, replicas: NonZeroU16) -> Self {
        Identity {
            cluster: ClusterId(store.id()),
            node: FOUNDER,
            shards,
            replicas,
            founding: true,
            peers: BTreeMap::new(),
        }
    }

    /// What a disk says of itself; `None` if it is fresh.
    pub fn read(store: &Store) -> Result<Option<Self>, Error> {
        let Some(row) = store.meta_get(ROW)? else { return Ok(None) };
        let row: IdentityRow = serde_json::from_slice(&row)
            .map_err(|error| Error::Invalid(format!("read whose disk it is: {error}")))?;
        if row.format != FORMAT {
            let reason = format!("the node's row has format {}, expected {FORMAT}", row.format);
            return Err(Error::Invalid(reason));
        }
        Ok(Some(Identity {
            cluster: ClusterId(row.cluster),
            node: NodeId(row.node),
            shards: row.shards,
            replicas: row.replicas,
            founding: row.founding,
            peers: row.peers.into_iter().map(|(node, at)| (NodeId(node), at)).collect(),
        }))
    }

    /// Says so on the disk, durably.
    pub async fn write(&self, store: &Store) -> Result<(), Error> {
        let row = IdentityRow {
            format: FORMAT,
            cluster: self.cluster.0,
            node: self.node.0,
            shards: self.shards,
            replicas: self.replicas,
            founding: self.founding,
            peers: self.peers.iter().map(|(node, at)| (node.0, at.clone())).collect(),
        };
        let row = serde_json::to_vec(&row).expect("plain numbers and strings become JSON");
        put_row(store, ROW, Bytes::from(row)).await
    }
}
