//! The streams to other nodes, made when first needed.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use statehouse_client::call_metadata::{CallMetadata, ClusterPin};
use statehouse_client::lanes::{self, Lanes};
use statehouse_cluster::{ClusterId, NodeId, Topology};

/// Streams to each node that was forwarded to.
pub struct Links {
    config: lanes::Config,
    nodes: Mutex<HashMap<NodeId, Arc<Lanes>>>,
}

impl Links {
    /// Creates the links of a node of this cluster. None is connected yet.
    pub fn new(config: &super::Config, cluster: ClusterId) -> Self {
        let cluster = ClusterPin::new(&cluster.to_string());
        let config = lanes::Config {
            streams: config.streams_per_node,
            connect_timeout: config.connect_timeout,
            keepalive: config.keepalive,
            message_bytes_max: config.message_bytes_max,
            metadata: CallMetadata { hop: true, cluster },
        };
        Links { config, nodes: Mutex::default() }
    }

    /// The streams to a node; `None` if it isn't a member, or its address is none.
    pub fn to(&self, node: NodeId, topology: &Topology) -> Option<Arc<Lanes>> {
        let address = &topology.nodes.get(&node)?.address;
        let mut nodes = self.nodes.lock();
        if let Some(lanes) = nodes.get(&node).filter(|lanes| is_at(lanes, address)) {
            return Some(lanes.clone());
        }
        nodes.retain(|known, _| topology.nodes.contains_key(known));
        let lanes = match Lanes::new(&format!("http://{address}"), self.config.clone()) {
            Ok(lanes) => Arc::new(lanes),
            Err(error) => {
                tracing::warn!(%node, address, %error, "a member's address can't be used");
                return None;
            }
        };
        nodes.insert(node, lanes.clone());
        Some(lanes)
    }
}

fn is_at(lanes: &Lanes, address: &str) -> bool {
    lanes.endpoint().strip_prefix("http://") == Some(address)
}
