//! The founding of a cluster: one node, the first replica of every shard.
//!
//! Each step may be taken twice: a founder that dies in between begins anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use statehouse_store::ReplicaId;

use super::Shards;
use crate::meta::{self, ClusterRow, NodeRow, PlacementRow};
use crate::{Error, FOUNDER, Identity, ShardId};

/// The first replica of a shard.
fn first_replica(shard: ShardId) -> ReplicaId {
    ReplicaId(u64::from(shard.0) + 1)
}

/// Makes the first replicas, has each lead itself, and writes down what there is.
pub(super) async fn found(shards: &Arc<Shards>, mut identity: Identity) -> Result<(), Error> {
    for shard in shards.map.all() {
        let replica = first_replica(shard);
        let group = shards.groups.create(shard, replica).await?;
        group.initialize(BTreeMap::from([(replica, FOUNDER)])).await?;
    }
    for group in shards.groups.all() {
        let mut status = group.watch();
        if status.wait_for(|status| status.leader.is_some()).await.is_err() {
            return Err(Error::Closed { reason: "a replica stopped at its start".into() });
        }
    }
    let next_replica = u64::from(shards.map.shards().get()) + 2;
    meta::found(shards, ClusterRow::new(identity.shards, identity.replicas, next_replica)).await?;
    let store = shards.store.id();
    meta::change_node(shards, FOUNDER, |row| Ok(row.is_none().then(|| NodeRow::new(store))))
        .await?;
    for shard in shards.map.all() {
        let first = PlacementRow::new(vec![(first_replica(shard), FOUNDER)]);
        meta::change_placement(shards, shard, |row| Ok(row.is_none().then(|| first.clone())))
            .await?;
    }
    identity.founding = false;
    identity.write(&shards.store).await
}
