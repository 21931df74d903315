//! Which node serves a call: this one if it leads the key's shard, else the one that does.
//!
//! Every node takes every call. What it doesn't lead it forwards once, over a few streams that it
//! keeps to each other node; what was forwarded to it and is not its own it refuses, saying who
//! leads. Who that is: the shard's group here, if there is one; else who was last heard to lead;
//! else those with a replica, in turn (`route.rs`). Nobody is asked twice in the same moment, and
//! everything ends with the call's deadline.
//!
//! Does not know what calls say: the services send them (`grpc/routed.rs`, `grpc/scatter.rs`).

mod links;
mod route;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statehouse_client::retry::Effect;
use statehouse_cluster::{NodeId, ShardId, Shards};

use crate::failure::{Failure, LEADER_ADDRESS};
use crate::metrics::RoutingMetrics;

use links::Links;
pub use route::{Place, Route};

/// How calls are forwarded.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a call without a deadline looks for its leader.
    pub forward_timeout: Duration,
    /// Streams to each other node.
    pub streams_per_node: usize,
    /// How long a connection to another node may take.
    pub connect_timeout: Duration,
    /// How often a connection with calls under way is asked whether it lives.
    pub keepalive: Duration,
    /// Bytes of one message.
    pub message_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            forward_timeout: Duration::from_secs(10),
            streams_per_node: 2,
            connect_timeout: Duration::from_secs(1),
            keepalive: Duration::from_secs(1),
            message_bytes_max: 64 << 20,
        }
    }
}

/// Finds who serves what. Cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    shards: Arc<Shards>,
    links: Links,
    /// Who was last heard to lead, by shard; 0: nobody.
    heard: Vec<AtomicU64>,
    config: Config,
    counted: RoutingMetrics,
}

impl Router {
    /// Over the shards as this node sees them.
    pub fn new(shards: Arc<Shards>, config: Config, counted: RoutingMetrics) -> Self {
        let heard = shards.map().all().map(|_| AtomicU64::new(0)).collect();
        let links = Links::new(&config, shards.cluster());
        Router(Arc::new(Inner { shards, links, heard, config, counted }))
    }

    /// The shards beneath.
    pub fn shards(&self) -> &Arc<Shards> {
        &self.0.shards
    }

    /// What is counted.
    pub fn counted(&self) -> &RoutingMetrics {
        &self.0.counted
    }

    /// The shard that holds a key.
    pub fn shard_of(&self, key: &[u8]) -> ShardId {
        self.0.shards.map().shard_of(key)
    }

    /// Whether there is no other node to ask.
    pub fn is_alone(&self) -> bool {
        self.0.shards.topology().nodes.len() <= 1
    }

    /// A search for a shard's leader, until the deadline or for as long as is configured.
    pub fn route(&self, shard: ShardId, deadline: Option<Instant>, effect: Effect) -> Route {
        let until = deadline.unwrap_or_else(|| Instant::now() + self.0.config.forward_timeout);
        Route::new(self.clone(), shard, until, effect)
    }

    /// Who leads a shard, as far as this node knows.
    pub fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        let group = self.0.shards.group(shard);
        group.and_then(|group| group.leader()).map_or_else(|| self.heard(shard), |l| Some(l.node))
    }

    /// The refusal of a call that this node may not forward, with all that it knows.
    pub fn refusal(&self, shard: ShardId) -> Failure {
        self.0.counted.refused.inc();
        let leader = self.leader_of(shard).filter(|node| *node != self.0.shards.me());
        let failure = Failure::not_leader(shard, leader);
        let topology = self.0.shards.topology();
        match leader.and_then(|node| topology.nodes.get(&node)) {
            Some(member) => failure.with(LEADER_ADDRESS, &member.address),
            None => failure,
        }
    }

    fn heard(&self, shard: ShardId) -> Option<NodeId> {
        let node = self.0.heard.get(usize::from(shard.0))?.load(Ordering::Relaxed);
        (node != 0).then_some(NodeId(node))
    }

    fn hear(&self, shard: ShardId, node: NodeId) {
        if let Some(heard) = self.0.heard.get(usize::from(shard.0)) {
            heard.store(node.0, Ordering::Relaxed);
        }
    }
}
