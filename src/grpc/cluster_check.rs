//! Refuses calls that are for another cluster than the node's.
//!
//! The address of a node that has lost its disk may belong to a cluster of one by now, founded when
//! the node was started again. What is sent there by an older map must neither be written nor be
//! answered.

use statehouse_client::CLUSTER;
use statehouse_cluster::ClusterId;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::caller::is_hop;
use super::status::status;
use crate::failure::{Failure, Reason};

/// Interceptor that lets calls pass that name the node's cluster, or none.
#[derive(Clone)]
pub struct ClusterCheck {
    /// The cluster's id in hexadecimal digits.
    cluster: String,
}

impl ClusterCheck {
    /// Creates the check of a node that belongs to this cluster.
    pub fn new(cluster: ClusterId) -> Self {
        ClusterCheck { cluster: cluster.to_string() }
    }
}

impl Interceptor for ClusterCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata();
        match metadata.get(CLUSTER) {
            Some(named) if named.as_bytes() != self.cluster.as_bytes() => {
                // The node that forwarded the call is of its caller's cluster: to the caller, one
                // of its nodes can't be reached.
                let reason = match is_hop(metadata) {
                    true => Reason::Unavailable,
                    false => Reason::WrongCluster,
                };
                let message = format!(
                    "the call is for cluster {}, and this node belongs to cluster {}",
                    named.to_str().unwrap_or("of no valid id"),
                    self.cluster
                );
                Err(status(Failure::new(reason, message)))
            }
            _ => Ok(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use statehouse_client::HOP;

    use super::*;

    /// Returns the reason with which a call is refused that names a cluster.
    fn refused(named: Option<&'static str>, hop: bool) -> Option<String> {
        let mut request = Request::new(());
        if let Some(named) = named {
            request.metadata_mut().insert(CLUSTER, named.parse().unwrap());
        }
        if hop {
            request.metadata_mut().insert(HOP, "1".parse().unwrap());
        }
        let passed = ClusterCheck::new(ClusterId([0xab; 16])).call(request);
        let error = statehouse_client::Error::from_status("", &passed.err()?);
        error.reason().map(str::to_owned)
    }

    #[test]
    fn a_call_for_another_cluster_is_refused() {
        let (own, other) = ("abababababababababababababababab", "abababababababababababababababac");
        assert_eq!(refused(None, false), None, "clients need not name it");
        assert_eq!(refused(Some(own), false), None);
        assert_eq!(refused(Some(own), true), None);
        assert_eq!(refused(Some(other), false).unwrap(), "WRONG_CLUSTER");
        assert_eq!(refused(Some(other), true).unwrap(), "UNAVAILABLE");
        assert_eq!(refused(Some("ab"), false).unwrap(), "WRONG_CLUSTER");
    }
}
