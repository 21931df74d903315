//! The nodes that a client knows: connects to any of its endpoints, keeps the shard map fresh,
//! and says whom to ask.
//!
//! The map is fetched again after a lost connection and on a hint at an unknown node, by one
//! caller at a time and at most every [`REFRESH_INTERVAL`]. A cluster of one has no map to speak
//! of: everything goes to the endpoint that answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use statehouse_proto::v1;
use statehouse_proto::v1::cluster_client::ClusterClient;
use tonic::Code;

use crate::call_metadata::CallMetadata;
use crate::lanes::{self, Lanes};
use crate::map::Map;
use crate::{Config, Error};

/// Maps are fetched no more often.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);

/// How long one node may take to answer the map.
const MAP_PATIENCE: Duration = Duration::from_millis(1_000);

/// How often a quiet connection with calls under way is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// The metadata of a refusal that say who leads.
const LEADER_NODE: &str = "leader_node";

/// Every node that may be asked.
pub struct Nodes {
    pub config: Config,
    seeds: Vec<Arc<Lanes>>,
    /// The seed that answered last.
    home: AtomicUsize,
    map: RwLock<Arc<Map>>,
    known: Mutex<HashMap<u64, Arc<Lanes>>>,
    refreshed: tokio::sync::Mutex<Instant>,
}

/// Whom to ask.
#[derive(Clone)]
pub struct Target {
    /// Which node; 0: whoever is at that endpoint.
    pub node: u64,
    /// How.
    pub lanes: Arc<Lanes>,
}

impl Nodes {
    /// Connects to the first endpoint that answers, and gets its map.
    pub async fn connect(config: Config) -> Result<Nodes, Error> {
        // All connections share the pin: the first map that comes says which cluster it is.
        let metadata = CallMetadata::default();
        let lanes_config = |streams| lanes::Config {
            streams,
            connect_timeout: config.connect_timeout,
            keepalive: KEEPALIVE,
            message_bytes_max: config.message_bytes_max,
            metadata: metadata.clone(),
        };
        let seeds = config
            .endpoints
            .iter()
            .map(|endpoint| Lanes::new(endpoint, lanes_config(config.pipelines)).map(Arc::new))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut last = Error::Unreachable {
            endpoint: String::new(),
            message: "no endpoint is named".to_owned(),
            reached: false,
        };
        for (at, seed) in seeds.iter().enumerate() {
            match fetch(seed, config.connect_timeout + MAP_PATIENCE).await {
                Ok(map) => {
                    return Ok(Nodes {
                        config,
                        seeds,
                        home: AtomicUsize::new(at),
                        map: RwLock::new(Arc::new(map)),
                        known: Mutex::default(),
                        refreshed: tokio::sync::Mutex::new(Instant::now()),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The map as last fetched.
    pub fn map(&self) -> Arc<Map> {
        self.map.read().clone()
    }

    /// The endpoint that answered last.
    pub fn home(&self) -> &Arc<Lanes> {
        &self.seeds[self.home.load(Ordering::Relaxed)]
    }

    /// The next endpoint becomes home, if it's still this one.
    pub fn leave(&self, endpoint: &str) {
        let home = self.home.load(Ordering::Relaxed);
        if self.seeds[home].endpoint() == endpoint {
            let next = (home + 1) % self.seeds.len();
            let _ = self.home.compare_exchange(home, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whom to ask for a shard's states; not the one to avoid, nor one that is down, if there is
    /// another.
    pub fn target(&self, map: &Map, place: usize, avoid: Option<u64>) -> Target {
        let mut second = None;
        for (node, endpoint) in map.candidates(place) {
            let Some(lanes) = self.lanes(node, endpoint) else { continue };
            let target = Target { node, lanes };
            if avoid != Some(node) && !target.lanes.is_down() {
                return target;
            }
            // Of those that are left, one that is not to be avoided.
            if second.as_ref().is_none_or(|other: &Target| Some(other.node) == avoid) {
                second = Some(target);
            }
        }
        second.unwrap_or_else(|| Target { node: 0, lanes: self.home().clone() })
    }

    fn lanes(&self, node: u64, endpoint: &str) -> Option<Arc<Lanes>> {
        if endpoint.is_empty() {
            return Some(self.home().clone());
        }
        let mut known = self.known.lock();
        if let Some(lanes) = known.get(&node).filter(|lanes| lanes.endpoint() == endpoint) {
            return Some(lanes.clone());
        }
        // What was connected for the map serves calls too.
        let seed = self.seeds.iter().find(|seed| seed.endpoint() == endpoint).cloned();
        let lanes = match seed {
            Some(seed) => seed,
            None => Arc::new(Lanes::new(endpoint, self.home().config().clone()).ok()?),
        };
        known.insert(node, lanes.clone());
        Some(lanes)
    }

    /// A node said that another one leads a shard.
    pub async fn learn(self: &Arc<Self>, map: &Map, place: usize, node: u64) {
        if !map.learn(place, node) {
            self.refresh(map.epoch()).await;
        }
    }

    /// What an error tells of whom to ask next.
    pub async fn learn_from(self: &Arc<Self>, map: &Map, place: usize, error: &Error, at: &Target) {
        match error {
            error if error.node_is_away() => {
                at.lanes.mark_down();
                self.leave(at.lanes.endpoint());
                self.refresh(map.epoch()).await;
            }
            Error::Refused { metadata, .. } => {
                let leader = metadata.get(LEADER_NODE).and_then(|node| node.parse().ok());
                if let Some(leader) = leader {
                    self.learn(map, place, leader).await;
                }
            }
            Error::Unreachable { .. } | Error::Unexpected(_) => {}
        }
    }

    /// Fetches the map again, unless somebody just did; `epoch` is of the map that was used.
    pub async fn refresh(&self, epoch: u64) {
        self.refresh_from(epoch, |_| true).await;
    }

    /// The same, from other nodes than the one that is slow to answer if there are any.
    pub async fn refresh_from_others(&self, epoch: u64, slow: &Target) {
        self.refresh_from(epoch, |lanes| !Arc::ptr_eq(lanes, &slow.lanes)).await;
    }

    async fn refresh_from(&self, epoch: u64, first: impl Fn(&Arc<Lanes>) -> bool) {
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.elapsed() < REFRESH_INTERVAL || self.map.read().epoch() > epoch {
            return;
        }
        let older = self.map();
        let nodes = older.nodes().filter_map(|(node, endpoint)| self.lanes(node, endpoint));
        let all: Vec<Arc<Lanes>> = nodes.chain(self.seeds.iter().cloned()).collect();
        let (first, last): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|lanes| first(lanes) && !lanes.is_down());
        for lanes in first.into_iter().chain(last) {
            match fetch(&lanes, MAP_PATIENCE).await {
                Ok(map) => {
                    map.inherit(&older);
                    self.adopt(map);
                    break;
                }
                Err(_) => lanes.mark_down(),
            }
        }
        *refreshed = Instant::now();
    }

    fn adopt(&self, map: Map) {
        self.known.lock().retain(|node, _| map.nodes().any(|(known, _)| known == *node));
        *self.map.write() = Arc::new(map);
    }
}

/// Asks a node for its map. One that knows no maps stands alone.
async fn fetch(lanes: &Lanes, patience: Duration) -> Result<Map, Error> {
    let cluster = &lanes.config().metadata.cluster;
    let mut client = ClusterClient::new(lanes.connection());
    let answer = tokio::time::timeout(patience, client.get_map(v1::GetMapRequest {})).await;
    let late = || Error::Unreachable {
        endpoint: lanes.endpoint().to_owned(),
        message: format!("no answer within {} ms", patience.as_millis()),
        reached: true,
    };
    match answer.map_err(|_| late())? {
        Ok(map) if !cluster.pin_or_check(&map.get_ref().cluster_id) => {
            Err(Error::Unexpected("the shard map of another cluster"))
        }
        Ok(map) => Map::of(map.into_inner())
            .ok_or(Error::Unexpected("a shard map that does not cover every slot")),
        Err(status) if status.code() == Code::Unimplemented => Ok(Map::default()),
        Err(status) => Err(Error::from_status(lanes.endpoint(), &status)),
    }
}
