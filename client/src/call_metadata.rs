//! Metadata that goes with each request to a node: whether it was forwarded, and which cluster it
//! is for.
//!
//! A node that has lost its disk may be started again at its old address and found a cluster of
//! its own. The others, and clients with an older map, still send it what its old cluster should
//! answer. It refuses that, because the metadata names another cluster than its own.

use std::sync::{Arc, OnceLock};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// The metadata that marks the calls of a stream as forwarded once: they go no further.
pub const HOP: &str = "statehouse-hop";

/// The metadata that names the cluster that a call is for, by its id in hexadecimal digits.
pub const CLUSTER: &str = "statehouse-cluster";

/// Connection that adds the metadata to each request.
pub type Connection = InterceptedService<Channel, CallMetadata>;

/// The id of the cluster that calls are for, once it is known. Clones share it; it never changes.
#[derive(Debug, Clone, Default)]
pub struct ClusterPin(Arc<OnceLock<MetadataValue<Ascii>>>);

impl ClusterPin {
    /// Creates a pin to a cluster that is known already, by its id in hexadecimal digits.
    pub fn new(cluster: &str) -> Self {
        let pin = ClusterPin::default();
        pin.pin_or_check(cluster);
        pin
    }

    /// Pins the first id that it is given, and returns whether a later one is the same. An empty
    /// id, of a node that does not name its cluster, passes and pins nothing.
    pub fn pin_or_check(&self, cluster: &str) -> bool {
        let Ok(id) = MetadataValue::try_from(cluster) else { return false };
        id.is_empty() || *self.0.get_or_init(|| id.clone()) == id
    }
}

/// The metadata of all requests over one connection.
#[derive(Debug, Clone, Default)]
pub struct CallMetadata {
    /// Whether the calls come from another node: the one asked must not pass them on.
    pub hop: bool,
    /// The cluster that the calls are for.
    pub cluster: ClusterPin,
}

impl Interceptor for CallMetadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if self.hop {
            metadata.insert(HOP, MetadataValue::from_static("1"));
        }
        if let Some(cluster) = self.cluster.0.get() {
            metadata.insert(CLUSTER, cluster.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    use super::*;

    fn stamped(metadata: &CallMetadata) -> MetadataMap {
        metadata.clone().call(Request::new(())).unwrap().metadata().clone()
    }

    #[test]
    fn calls_name_the_cluster_that_was_heard_of_first_and_no_other() {
        let (cluster, hop) = (ClusterPin::default(), false);
        let metadata = CallMetadata { hop, cluster: cluster.clone() };
        assert!(cluster.pin_or_check(""), "an older node's map has none");
        assert!(stamped(&metadata).is_empty());
        assert!(cluster.pin_or_check("ab"));
        assert!(!cluster.pin_or_check("cd"));
        assert_eq!(stamped(&metadata).get(CLUSTER).unwrap(), "ab");
        assert!(stamped(&metadata).get(HOP).is_none());
        let forwarded = CallMetadata { hop: true, cluster };
        assert_eq!(stamped(&forwarded).get(HOP).unwrap(), "1");
    }
}
