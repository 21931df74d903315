//! A node tells its cluster where it is, each time that it starts.
//!
//! One that has just joined has no replica yet, and asks a node that it was told of.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shards;
use crate::meta::{self, NodeState};
use crate::placement::Refusal;
use crate::{Error, NodeId};

/// The wait between two tries.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// For clients: `host:port`.
    pub client: String,
    /// For other nodes: `host:port`.
    pub peer: String,
}

/// Tells the cluster until it knows.
pub(super) async fn run(shards: Weak<Shards>, addresses: Addresses) {
    let mut last = String::new();
    loop {
        let Some(here) = shards.upgrade() else { return };
        match announce(&here, &addresses).await {
            Ok(true) => return,
            // A node alone elects itself first: no news.
            Ok(false) => {}
            Err(Error::Refused(_)) => {
                here.removed.send_replace(true);
                return;
            }
            Err(error) => {
                let error = error.to_string();
                if error != last {
                    tracing::info!(error, "the cluster does not know yet where this node is");
                    last = error;
                }
            }
        }
        drop(here);
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

/// Tells whoever can be told; answers whether there was anybody.
async fn announce(shards: &Arc<Shards>, addresses: &Addresses) -> Result<bool, Error> {
    let me = shards.me();
    if shards.meta().is_ok_and(|meta| meta.leader().is_some()) {
        return note(shards, me, addresses).await.map(|_| true);
    }
    let peers = shards.groups.peers();
    let mut outcome = Ok(false);
    for node in peers.known().into_iter().filter(|node| *node != me) {
        match shards.control.announce(node, addresses).await {
            Ok(book) => {
                peers.set_addresses(book);
                return Ok(true);
            }
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// Writes down where a node is; answers where all are.
pub(crate) async fn note(
    shards: &Shards,
    node: NodeId,
    addresses: &Addresses,
) -> Result<BTreeMap<NodeId, String>, Error> {
    meta::change_node(shards, node, |row| {
        let unknown = || Error::Unknown { kind: "node", name: node.to_string() };
        let mut row = row.ok_or_else(unknown)?;
        if row.state == NodeState::Removed {
            return Err(Refusal::UnknownNode(node).into());
        }
        let known = row.address == addresses.client && row.peer_address == addresses.peer;
        row.address.clone_from(&addresses.client);
        row.peer_address.clone_from(&addresses.peer);
        Ok((!known).then_some(row))
    })
    .await?;
    let nodes = meta::nodes(shards)?.into_iter();
    let known =
        nodes.filter(|(_, row)| row.state != NodeState::Removed && !row.peer_address.is_empty());
    Ok(known.map(|(node, row)| (node, row.peer_address)).collect())
}
