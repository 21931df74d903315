//! How much the replicas of a node hold, asked of it. Counted by each as it applies; see the
//! store's `usage.rs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::usage_report as wire;
use statehouse_store::{CollectionId, LargeState, Reader, Totals};

use super::{Control, convert, limited, local, lost};
use crate::raft::{Groups, Role};
use crate::{Error, NodeId, ShardId};

/// How long a node may take: a few reads of each replica, all of them cold perhaps.
const USAGE_WAIT_MAX: Duration = Duration::from_secs(3);

/// How much one replica holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaUsage {
    /// Of which shard it is.
    pub shard: ShardId,
    /// It leads, as far as it knows.
    pub leads: bool,
    /// The term that it knows of.
    pub term: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// On disk.
    pub disk_bytes: u64,
    /// What each collection holds.
    pub totals: Vec<(CollectionId, Totals)>,
    /// Of a leader: the largest states.
    pub largest: Vec<LargeState>,
}

/// What of it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: all.
    pub collection: Option<CollectionId>,
    /// Large states to list at most.
    pub largest: usize,
}

impl Control {
    /// How much a node's replicas hold.
    pub async fn usage(&self, node: NodeId, wanted: Wanted) -> Result<Vec<ReplicaUsage>, Error> {
        if self.is_here(node) {
            return here(&self.groups, wanted).await;
        }
        let ask = v1::UsageAsk {
            hello: Some(self.groups.peers().hello(node)),
            largest: u32::try_from(wanted.largest).unwrap_or(u32::MAX),
            collection: wanted.collection.map(|collection| collection.0),
        };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.usage(limited(ask, USAGE_WAIT_MAX)).await;
        let report = answer.map_err(|status| lost(node, &status))?.into_inner();
        if let Some(refusal) = report.refusal {
            let reason = refusal.detail;
            return Err(Error::Peer { node, reason, passes: true });
        }
        report.replicas.into_iter().map(replica).collect()
    }
}

/// How much this node's replicas hold.
async fn here(groups: &Arc<Groups>, wanted: Wanted) -> Result<Vec<ReplicaUsage>, Error> {
    let groups = groups.clone();
    // The disk may have to be waited for.
    let read = tokio::task::spawn_blocking(move || {
        let mut replicas = Vec::new();
        for group in groups.all() {
            let (status, reader) = (group.status(), group.reader());
            let leads = status.role == Role::Leader;
            let largest = if leads { wanted.largest } else { 0 };
            replicas.push(ReplicaUsage {
                shard: group.shard(),
                leads,
                term: status.term,
                applied: reader.applied_index(),
                disk_bytes: local::bytes_of(groups.store(), &group),
                totals: totals(reader, wanted.collection)?,
                largest: reader.largest(wanted.collection, largest)?,
            });
        }
        Ok(replicas)
    });
    let ended = |_| Error::Closed { reason: "the node is stopping".to_owned() };
    read.await.map_err(ended)?
}

fn totals(
    reader: &Reader,
    wanted: Option<CollectionId>,
) -> Result<Vec<(CollectionId, Totals)>, Error> {
    let mut totals = reader.usage()?;
    totals.retain(|(collection, _)| wanted.is_none_or(|wanted| wanted == *collection));
    Ok(totals)
}

/// What this node answers another one.
pub async fn answer(groups: &Arc<Groups>, ask: v1::UsageAsk) -> v1::UsageReport {
    let (collection, largest) = (ask.collection.map(CollectionId), ask.largest as usize);
    match here(groups, Wanted { collection, largest }).await {
        Ok(replicas) => {
            let replicas = replicas.into_iter().map(message).collect();
            v1::UsageReport { replicas, refusal: None }
        }
        Err(error) => {
            let refusal = convert::answer(Err(error)).refusal;
            v1::UsageReport { replicas: Vec::new(), refusal }
        }
    }
}

fn message(replica: ReplicaUsage) -> wire::Replica {
    let totals = replica.totals.into_iter().map(|(collection, totals)| wire::Totals {
        collection: collection.0,
        states: totals.states,
        state_bytes: totals.state_bytes,
        uploads: totals.uploads,
        upload_bytes: totals.upload_bytes,
    });
    let largest = replica.largest.into_iter().map(|state| wire::State {
        collection: state.collection.0,
        key: state.key,
        bytes: state.bytes,
        expires_at_ms: state.expires_at_ms,
    });
    wire::Replica {
        shard: replica.shard.0.into(),
        leads: replica.leads,
        term: replica.term,
        applied: replica.applied,
        disk_bytes: replica.disk_bytes,
        totals: totals.collect(),
        largest: largest.collect(),
    }
}

fn replica(message: wire::Replica) -> Result<ReplicaUsage, Error> {
    let totals = message.totals.into_iter().map(|it| {
        let totals = Totals {
            states: it.states,
            state_bytes: it.state_bytes,
            uploads: it.uploads,
            upload_bytes: it.upload_bytes,
        };
        (CollectionId(it.collection), totals)
    });
    let largest = message.largest.into_iter().map(|it| LargeState {
        collection: CollectionId(it.collection),
        // Of its own: what is kept must not hold on to the whole answer.
        key: Bytes::copy_from_slice(&it.key),
        bytes: it.bytes,
        expires_at_ms: it.expires_at_ms,
    });
    Ok(ReplicaUsage {
        shard: convert::shard(message.shard)?,
        leads: message.leads,
        term: message.term,
        applied: message.applied,
        disk_bytes: message.disk_bytes,
        totals: totals.collect(),
        largest: largest.collect(),
    })
}
