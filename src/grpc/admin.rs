//! `statehouse.v1.Admin`: what a cluster is, and how it is changed.
//!
//! Any node answers: what is decided is written to shard 0 wherever that is led.

mod convert;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use statehouse_cluster::catalog::Catalog;
use statehouse_cluster::controller::{Loads, observe::Observed};
use statehouse_cluster::{Error, NodeId, ShardId, Shards, admin, control};
use statehouse_proto::v1;
use statehouse_proto::v1::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::status::status;
use crate::failure::{Failure, Reason};
use crate::large::LargeRequests;

/// Rates are told over this long at least, so that the first answer has some.
const RATE_WINDOW: Duration = Duration::from_millis(500);

/// Rates older than this are taken anew.
const RATE_AGE_MAX: Duration = Duration::from_secs(30);

/// Serves the administration of a cluster.
pub struct AdminService {
    shards: Arc<Shards>,
    catalog: Arc<Catalog>,
    large: LargeRequests,
    loads: Mutex<(Loads, Option<Instant>)>,
}

type Answer<T> = Result<Response<T>, Status>;

fn answered<T>(outcome: Result<T, Error>) -> Answer<T> {
    outcome.map(Response::new).map_err(|error| status(Failure::from(error)))
}

fn shard_of(number: u32) -> Result<ShardId, Status> {
    u16::try_from(number).map(ShardId).map_err(|_| {
        let message = format!("shard {number} does not exist");
        status(Failure::new(Reason::ShardNotFound, message))
    })
}

impl AdminService {
    /// Over the shards of a node, and what it has noted.
    pub fn new(shards: Arc<Shards>, catalog: Arc<Catalog>, large: LargeRequests) -> Self {
        AdminService { shards, catalog, large, loads: Mutex::default() }
    }

    async fn look(&self) -> Result<(Observed, BTreeMap<ShardId, f64>), Status> {
        let look = || async {
            admin::look(&self.shards).await.map_err(|error| status(Failure::from(error)))
        };
        let mut seen = look().await?;
        let stale = {
            let mut loads = self.loads.lock();
            let stale = loads.1.is_none_or(|at| at.elapsed() > RATE_AGE_MAX);
            let fresh = loads.1.is_some_and(|at| at.elapsed() < RATE_WINDOW);
            if !fresh {
                loads.0.note(&seen.reports, Instant::now());
                loads.1 = Some(Instant::now());
            }
            stale
        };
        if stale {
            tokio::time::sleep(RATE_WINDOW).await;
            seen = look().await?;
            let mut loads = self.loads.lock();
            loads.0.note(&seen.reports, Instant::now());
            loads.1 = Some(Instant::now());
        }
        let rates = self.loads.lock().0.per_second();
        Ok((seen, rates))
    }

    async fn cluster(&self) -> Answer<v1::ClusterStatus> {
        let seen = admin::look(&self.shards).await;
        let seen = seen.map_err(|error| status(Failure::from(error)))?;
        Ok(Response::new(convert::cluster(&self.shards, &seen)))
    }

    async fn node(&self, node: NodeId) -> Answer<v1::Node> {
        let (seen, rates) = self.look().await?;
        let row = seen.nodes.get(&node);
        let row = row.ok_or_else(|| {
            let message = format!("node {node} is not a member of this cluster");
            status(Failure::new(Reason::NodeNotFound, message))
        })?;
        Ok(Response::new(convert::node(&self.shards, &seen, &rates, (node, row))))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_cluster(&self, _: Request<v1::GetClusterRequest>) -> Answer<v1::ClusterStatus> {
        self.cluster().await
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Answer<v1::ListNodesResponse> {
        let all = request.into_inner().all;
        let (seen, rates) = self.look().await?;
        let nodes = convert::nodes(&self.shards, &seen, &rates, all);
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    async fn list_shards(
        &self,
        request: Request<v1::ListShardsRequest>,
    ) -> Answer<v1::ListShardsResponse> {
        let wanted = request.into_inner().shards;
        let (seen, rates) = self.look().await?;
        let mut shards = Vec::new();
        for id in seen.placements.keys() {
            if wanted.is_empty() || wanted.contains(&u32::from(id.0)) {
                shards.push(convert::shard(&seen, &rates, *id));
            }
        }
        for number in wanted {
            if !seen.placements.contains_key(&shard_of(number)?) {
                let message = format!("shard {number} does not exist");
                return Err(status(Failure::new(Reason::ShardNotFound, message)));
            }
        }
        Ok(Response::new(v1::ListShardsResponse { shards }))
    }

    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Answer<v1::Usage> {
        let usage = usage::get(&self.shards, &self.catalog, request.into_inner()).await;
        usage.map(Response::new).map_err(status)
    }

    async fn list_large_requests(
        &self,
        request: Request<v1::ListLargeRequestsRequest>,
    ) -> Answer<v1::ListLargeRequestsResponse> {
        let limit = request.into_inner().limit;
        Ok(Response::new(usage::large(self.shards.me().0, &self.large, limit)))
    }

    async fn move_shard(&self, request: Request<v1::MoveShardRequest>) -> Answer<v1::Task> {
        let asked = request.into_inner();
        let (from, to) = (NodeId(asked.from), NodeId(asked.to));
        let begun = admin::move_shard(&self.shards, shard_of(asked.shard)?, from, to).await;
        answered(begun.map(|task| convert::task(&task, None)))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Answer<v1::TransferLeaderResponse> {
        let asked = request.into_inner();
        let shard = shard_of(asked.shard)?;
        let done = admin::transfer_leader(&self.shards, shard, NodeId(asked.to)).await;
        answered(done.map(|()| v1::TransferLeaderResponse { leader: asked.to }))
    }

    async fn rebalance(
        &self,
        request: Request<v1::RebalanceRequest>,
    ) -> Answer<v1::RebalanceResponse> {
        let asked = request.into_inner();
        let by = convert::by(asked.by());
        let (_, rates) = self.look().await?;
        let plan = admin::rebalance(&self.shards, by, &rates, asked.simulate).await;
        answered(plan.map(|plan| convert::plan(&plan, by)))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Answer<v1::Node> {
        let node = NodeId(request.into_inner().node);
        answered(admin::set_draining(&self.shards, node, true).await)?;
        self.node(node).await
    }

    async fn resume_node(&self, request: Request<v1::ResumeNodeRequest>) -> Answer<v1::Node> {
        let node = NodeId(request.into_inner().node);
        answered(admin::set_draining(&self.shards, node, false).await)?;
        self.node(node).await
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let node = NodeId(request.into_inner().node);
        let removed = admin::remove_node(&self.shards, node).await;
        answered(removed.map(|()| v1::RemoveNodeResponse {}))
    }

    async fn replace_node(
        &self,
        request: Request<v1::ReplaceNodeRequest>,
    ) -> Answer<v1::ReplaceNodeResponse> {
        let asked = request.into_inner();
        let (node, with) = (NodeId(asked.node), NodeId(asked.with));
        let tasks = admin::replace_node(&self.shards, node, with).await;
        answered(tasks.map(|tasks| v1::ReplaceNodeResponse { tasks }))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Answer<v1::ListTasksResponse> {
        let all = request.into_inner().all;
        answered(self.shards.catch_up().await)?;
        let seen = admin::look(&self.shards).await;
        let seen = seen.map_err(|error| status(Failure::from(error)))?;
        let newest = seen.tasks.values().rev().filter(|task| all || !task.is_over());
        let tasks = newest.map(|task| convert::task(task, Some(&seen))).collect();
        Ok(Response::new(v1::ListTasksResponse { tasks }))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Answer<v1::Task> {
        let task = admin::task(&self.shards, request.into_inner().id).await;
        let task = task.map_err(|error| status(Failure::from(error)))?;
        let seen = admin::look(&self.shards).await.ok();
        Ok(Response::new(convert::task(&task, seen.as_ref())))
    }

    async fn cancel_task(&self, request: Request<v1::CancelTaskRequest>) -> Answer<v1::Task> {
        let task = admin::cancel(&self.shards, request.into_inner().id).await;
        answered(task.map(|task| convert::task(&task, None)))
    }

    async fn pause(&self, _: Request<v1::PauseRequest>) -> Answer<v1::ClusterStatus> {
        answered(admin::set_paused(&self.shards, true).await)?;
        self.cluster().await
    }

    async fn resume(&self, _: Request<v1::ResumeRequest>) -> Answer<v1::ClusterStatus> {
        answered(admin::set_paused(&self.shards, false).await)?;
        self.cluster().await
    }

    async fn plan_cache(&self, _: Request<v1::PlanCacheRequest>) -> Answer<v1::PlanCacheResponse> {
        let plans = control::cache_plans(&self.shards).await;
        let node = |(node, plans): (NodeId, _)| v1::NodeCachePlan {
            node: node.0,
            parts: control::plans_out(plans),
        };
        answered(
            plans.map(|plans| v1::PlanCacheResponse {
                nodes: plans.into_iter().map(node).collect(),
            }),
        )
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let store = request.into_inner().store_id;
        let Ok(store) = <[u8; 16]>::try_from(&store[..]) else {
            let message = format!("a store's id has 16 bytes, got {}", store.len());
            return Err(status(Failure::new(Reason::InvalidRequest, message)));
        };
        answered(admin::join(&self.shards, store).await.map(convert::joined))
    }
}
