//! What we say on the wire: the services of `statehouse.v1` over the use cases.
//!
//! Generated types stop at `convert.rs`; failures become statuses in `status.rs`. A service here
//! only unwraps, calls and wraps; `pipeline.rs` runs the same calls multiplexed on one stream.
//! `routed.rs` and `scatter.rs` send what this node doesn't lead to those who do.

mod admin;
mod arriving;
mod caller;
mod calls;
mod cluster;
mod cluster_check;
mod convert;
mod damaged;
mod leaving;
mod models;
mod observed;
mod path;
mod pipeline;
mod prefetch;
mod read;
mod routed;
mod scatter;
mod score;
mod state;
mod status;
mod transfers;
mod under_way;
mod upload;
mod write;

pub use admin::AdminService;
pub use arriving::Arriving;
pub use calls::Calls;
pub use cluster::ClusterService;
pub use cluster_check::ClusterCheck;
pub use leaving::Leaving;
pub use models::ModelsService;
pub use pipeline::{CALLS_IN_FLIGHT_MAX_DEFAULT, PIPELINE_REQUEST_BYTES_MAX, PipelineService};
pub use score::ScoreService;
pub use state::StateService;
pub use transfers::{STREAMS_MAX, Transfers};
pub use under_way::UnderWay;
