//! What nodes' caches do and would do: asked of each, and between the messages and their own types.

use futures::future::join_all;
use statehouse_proto::v1;
use statehouse_store::{CachePart, CachePlan, CachePoint};

use super::{Control, REPORT_WAIT_MAX, limited, lost};
use crate::meta::{self, NodeState};
use crate::{Error, NodeId, Shards};

impl Control {
    /// What a node's cache of decoded states does, and would do at other sizes.
    pub async fn cache_plan(&self, node: NodeId) -> Result<Vec<CachePlan>, Error> {
        if self.is_here(node) {
            return Ok(self.groups.store().cache_plan());
        }
        let ask = v1::PlanNodeCacheAsk { hello: Some(self.groups.peers().hello(node)) };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.plan_node_cache(limited(ask, REPORT_WAIT_MAX)).await;
        let answer = answer.map_err(|status| lost(node, &status))?.into_inner();
        Ok(answer.parts.into_iter().map(plan).collect())
    }
}

/// The same of every member; nothing of one that does not answer.
pub async fn cache_plans(shards: &Shards) -> Result<Vec<(NodeId, Vec<CachePlan>)>, Error> {
    let nodes = meta::nodes(shards)?.into_iter();
    let members = nodes.filter(|(_, row)| row.state != NodeState::Removed);
    let asks = members.map(|(node, _)| async move {
        let plans = shards.control().cache_plan(node).await;
        let plans = plans.inspect_err(|error| tracing::debug!(%node, %error, "no cache plan"));
        (node, plans.unwrap_or_default())
    });
    Ok(join_all(asks).await)
}

/// Plans as they go out.
pub fn plans_out(plans: Vec<CachePlan>) -> Vec<v1::CachePlan> {
    let out = |plan: CachePlan| v1::CachePlan {
        pinned: plan.part == CachePart::Pinned,
        capacity_bytes: plan.capacity_bytes,
        used_bytes: plan.used_bytes,
        hits: plan.hits,
        misses: plan.misses,
        estimated_now: plan.estimated_now,
        points: plan.points.into_iter().map(point_out).collect(),
        sampled_share: plan.sampled_share,
        sampled_keys: plan.sampled_keys,
        sampled_lookups: plan.sampled_lookups,
    };
    plans.into_iter().map(out).collect()
}

fn point_out(CachePoint { bytes, hit_rate }: CachePoint) -> v1::CachePoint {
    v1::CachePoint { bytes, hit_rate }
}

fn plan(plan: v1::CachePlan) -> CachePlan {
    let point = |v1::CachePoint { bytes, hit_rate }| CachePoint { bytes, hit_rate };
    CachePlan {
        part: if plan.pinned { CachePart::Pinned } else { CachePart::Shared },
        capacity_bytes: plan.capacity_bytes,
        used_bytes: plan.used_bytes,
        hits: plan.hits,
        misses: plan.misses,
        estimated_now: plan.estimated_now,
        points: plan.points.into_iter().map(point).collect(),
        sampled_share: plan.sampled_share,
        sampled_keys: plan.sampled_keys,
        sampled_lookups: plan.sampled_lookups,
    }
}
