//! One connection to a peer: where it is, how it begins, when it is tried again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_client::PeerClient;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::peers::{Book, Peers};
use super::{Config, Lost, PROTOCOL_FORMAT};
use crate::{ClusterId, NodeId};

/// HTTP/2 windows: one large append is on its way while the next is made.
pub(super) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// The largest HTTP/2 frame.
pub(super) const FRAME_BYTES_MAX: u32 = 256 << 10;

/// How whatever a node sends to another begins.
pub(super) fn hello(cluster: ClusterId, from: NodeId, to: NodeId) -> v1::PeerHello {
    v1::PeerHello {
        format: PROTOCOL_FORMAT,
        cluster_id: Bytes::copy_from_slice(&cluster.0),
        from_node: from.0,
        to_node: to.0,
    }
}

/// Makes one connection to one peer, again and again.
pub(super) struct Link {
    pub node: NodeId,
    me: NodeId,
    cluster: ClusterId,
    book: watch::Receiver<Book>,
    pub config: Config,
    wait: Duration,
    pub peers: Weak<Peers>,
}

impl Link {
    pub fn new(peers: &Arc<Peers>, node: NodeId) -> Self {
        Link {
            node,
            me: peers.node,
            cluster: peers.cluster,
            book: peers.book(),
            config: peers.config.clone(),
            wait: Duration::ZERO,
            peers: Arc::downgrade(peers),
        }
    }

    pub fn hello(&self) -> v1::PeerHello {
        hello(self.cluster, self.me, self.node)
    }

    /// Waits its turn, then connects.
    pub async fn connect(&mut self) -> Result<PeerClient<Channel>, Lost> {
        if !self.wait.is_zero() {
            tokio::time::sleep(self.wait).await;
        }
        let longer = (self.wait * 2).max(self.config.reconnect_wait_min);
        self.wait = longer.min(self.config.reconnect_wait_max);
        let address = loop {
            if let Some(address) = self.book.borrow_and_update().get(&self.node) {
                break address.clone();
            }
            self.book.changed().await.map_err(|_| Lost::Unreachable)?;
        };
        if self.is_cut() {
            return Err(Lost::Unreachable);
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| Lost::Unreachable)?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = timeout(self.config.connect_timeout, endpoint.connect()).await;
        let channel = channel.map_err(|_| Lost::Unreachable)?.map_err(|_| Lost::Unreachable)?;
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(self.config.message_bytes_max)
            .max_encoding_message_size(usize::MAX))
    }

    /// A stream stands: the next try after it breaks is made at once.
    pub fn stands(&mut self) {
        self.wait = Duration::ZERO;
    }

    /// Resolves when the peer's address is another one.
    pub async fn moved(&self) {
        let mut book = self.book.clone();
        let address = book.borrow().get(&self.node).cloned();
        let gone = book.wait_for(|book| book.get(&self.node) != address.as_ref()).await.is_err();
        if gone {
            // The peers are gone, and with them whoever could move.
            std::future::pending::<()>().await;
        }
    }

    pub fn is_cut(&self) -> bool {
        self.peers.upgrade().is_some_and(|peers| peers.is_cut(self.node))
    }

    pub fn is_closed(&self) -> bool {
        self.peers.upgrade().is_none_or(|peers| peers.is_closed())
    }
}
