//! Sums over what a node's replicas have applied, asked of it; and word that one of them differs.

use statehouse_proto::v1;
use statehouse_proto::v1::sums_report as wire;
use statehouse_store::{AppliedSums, Damage, ReplicaId};

use super::{Control, REPORT_WAIT_MAX, convert, limited, lost};
use crate::raft::Groups;
use crate::{Error, META_SHARD, NodeId};

impl Control {
    /// Asks a node for the sums of its replicas.
    pub async fn sums(&self, node: NodeId) -> Result<Vec<(ReplicaId, AppliedSums)>, Error> {
        if self.is_here(node) {
            return Ok(here(&self.groups));
        }
        let ask = v1::SumsAsk { hello: Some(self.groups.peers().hello(node)) };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.sums(limited(ask, REPORT_WAIT_MAX)).await;
        let report = answer.map_err(|status| lost(node, &status))?.into_inner();
        let sums = report.replicas.into_iter().map(|it| {
            let points = it.points.into_iter().map(|point| (point.index, point.sum)).collect();
            (ReplicaId(it.replica), AppliedSums { since: it.since, points })
        });
        Ok(sums.collect())
    }

    /// Tells a node that a replica of its is damaged.
    pub async fn report_damage(
        &self,
        node: NodeId,
        replica: ReplicaId,
        detail: &str,
    ) -> Result<(), Error> {
        if self.is_here(node) {
            return damaged(&self.groups, replica, detail).await;
        }
        let hello = Some(self.groups.peers().hello(node));
        let ask = v1::DamageAsk { hello, replica: replica.0, detail: detail.to_owned() };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.report_damage(limited(ask, super::ANSWER_WAIT_MAX)).await;
        convert::done(answer.map_err(|status| lost(node, &status))?.into_inner(), node, META_SHARD)
    }
}

fn here(groups: &Groups) -> Vec<(ReplicaId, AppliedSums)> {
    let groups = groups.all().into_iter();
    groups.map(|group| (group.replica(), group.reader().sums())).collect()
}

/// Returns this node's sums, as another node is answered that asks for them.
pub fn report(groups: &Groups) -> v1::SumsReport {
    let replicas = here(groups).into_iter().map(|(replica, sums)| wire::Replica {
        replica: replica.0,
        since: sums.since,
        points: sums.points.into_iter().map(|(index, sum)| wire::Point { index, sum }).collect(),
    });
    v1::SumsReport { replicas: replicas.collect() }
}

/// Takes note that a replica of this node is damaged.
pub async fn damaged(groups: &Groups, replica: ReplicaId, detail: &str) -> Result<(), Error> {
    let Ok(group) = groups.replica(replica) else { return Ok(()) };
    let damage =
        Damage { replica: Some(replica), file: None, offset: None, detail: detail.to_owned() };
    groups.store().report_damage(&damage);
    group.report_damage(detail).await;
    Ok(())
}
