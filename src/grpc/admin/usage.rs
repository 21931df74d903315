//! How much a cluster holds, and which requests were large, as the `Admin` service says it.

use std::collections::BTreeMap;

use statehouse_cluster::catalog::Catalog;
use statehouse_cluster::usage::{ReplicaUsage, Usage, Wanted, usage};
use statehouse_cluster::{META_SHARD, Shards};
use statehouse_proto::v1;
use statehouse_store::{CollectionId, Totals};

use crate::failure::{Failure, Reason};
use crate::large::{LargeRequest, LargeRequests};

/// Large states in one answer.
const LARGEST_MAX: u32 = 1_000;

/// The id under which the catalog's own states are shown.
const CATALOG: u64 = 0;

/// Asks every node how much it holds.
pub async fn get(
    shards: &Shards,
    catalog: &Catalog,
    request: v1::GetUsageRequest,
) -> Result<v1::Usage, Failure> {
    if request.largest > LARGEST_MAX {
        let message = format!("largest is at most {LARGEST_MAX}, got {}", request.largest);
        return Err(Failure::new(Reason::InvalidRequest, message));
    }
    let collection = match request.collection.as_str() {
        "" => None,
        name => Some(catalog.find_collection(name).await?.id),
    };
    let wanted = Wanted { collection, largest: request.largest as usize };
    let counted = usage(shards, wanted).await?;
    let collections = catalog.collections();
    let names = collections.values().map(|it| (it.id.0, it.name.as_str())).collect();
    Ok(message(&counted, wanted, &names))
}

fn message(counted: &Usage, wanted: Wanted, names: &BTreeMap<u64, &str>) -> v1::Usage {
    let mut collections: BTreeMap<u64, v1::Holdings> = BTreeMap::new();
    // Asked for by name, it's shown though it's empty.
    collections.extend(wanted.collection.map(|collection| (collection.0, Default::default())));
    let (mut shards, mut largest) = (Vec::new(), Vec::new());
    for shard in &counted.shards {
        let Some((node, replica)) = counted.of_shard(*shard) else {
            shards.push(v1::ShardUsage { shard: shard.0.into(), ..Default::default() });
            continue;
        };
        shards.push(v1::ShardUsage {
            shard: shard.0.into(),
            node: node.0,
            leads: replica.leads,
            holdings: Some(all(replica)),
            disk_bytes: replica.disk_bytes,
        });
        for (collection, totals) in &replica.totals {
            let id = if *shard == META_SHARD { CATALOG } else { collection.0 };
            add(collections.entry(id).or_default(), totals);
        }
        if *shard != META_SHARD {
            largest.extend(large_states(replica, names));
        }
    }
    largest.sort_by_key(|state| std::cmp::Reverse(state.bytes));
    largest.truncate(wanted.largest);
    let mut total = v1::Holdings::default();
    shards.iter().filter_map(|shard| shard.holdings).for_each(|it| join(&mut total, it));
    let name = |id| names.get(&id).copied().unwrap_or_default().to_owned();
    let collections = collections.into_iter();
    let mut collections: Vec<_> = collections
        .map(|(id, it)| v1::CollectionUsage { name: name(id), id, holdings: Some(it) })
        .collect();
    let bytes = |it: &v1::CollectionUsage| it.holdings.map_or(0, |it| it.state_bytes);
    collections.sort_by_key(|it| std::cmp::Reverse(bytes(it)));
    v1::Usage { total: Some(total), collections, shards, nodes: nodes(counted), largest }
}

fn nodes(counted: &Usage) -> Vec<v1::NodeUsage> {
    let node = |(node, replicas): (&_, &Option<Vec<ReplicaUsage>>)| {
        let statehouse_cluster::NodeId(node) = *node;
        let Some(replicas) = replicas else {
            return v1::NodeUsage { node, ..Default::default() };
        };
        let mut holdings = v1::Holdings::default();
        replicas.iter().for_each(|replica| join(&mut holdings, all(replica)));
        v1::NodeUsage {
            node,
            answers: true,
            replicas: replicas.len() as u32,
            holdings: Some(holdings),
            disk_bytes: replicas.iter().map(|replica| replica.disk_bytes).sum(),
        }
    };
    counted.nodes.iter().map(node).collect()
}

fn large_states(replica: &ReplicaUsage, names: &BTreeMap<u64, &str>) -> Vec<v1::LargeState> {
    let state = |it: &statehouse_store::LargeState| {
        let CollectionId(id) = it.collection;
        // Without a name it is being dropped.
        let collection = (*names.get(&id)?).to_owned();
        let (key, bytes, expires_at_ms) = (it.key.clone(), it.bytes, it.expires_at_ms);
        let shard = replica.shard.0.into();
        Some(v1::LargeState { collection, key, bytes, shard, expires_at_ms })
    };
    replica.largest.iter().filter_map(state).collect()
}

fn all(replica: &ReplicaUsage) -> v1::Holdings {
    let mut holdings = v1::Holdings::default();
    replica.totals.iter().for_each(|(_, totals)| add(&mut holdings, totals));
    holdings
}

fn add(to: &mut v1::Holdings, totals: &Totals) {
    let Totals { states, state_bytes, uploads, upload_bytes } = *totals;
    join(to, v1::Holdings { states, state_bytes, uploads, upload_bytes });
}

fn join(to: &mut v1::Holdings, other: v1::Holdings) {
    to.states += other.states;
    to.state_bytes += other.state_bytes;
    to.uploads += other.uploads;
    to.upload_bytes += other.upload_bytes;
}

/// What this node has noted.
pub fn large(node: u64, large: &LargeRequests, limit: u32) -> v1::ListLargeRequestsResponse {
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let (requests, noted) = large.list(limit);
    let requests = requests.into_iter().map(request).collect();
    let large_request_bytes = large.bytes();
    v1::ListLargeRequestsResponse { node, requests, noted, large_request_bytes }
}

fn request(noted: LargeRequest) -> v1::LargeRequest {
    let reason = match noted.state_bytes {
        Some(_) => v1::LargeReason::State,
        None => v1::LargeReason::Message,
    };
    v1::LargeRequest {
        at_ms: noted.at_ms,
        kind: noted.kind.name().to_owned(),
        collection: noted.collection,
        key: noted.key,
        request_bytes: noted.request_bytes,
        answer_bytes: noted.answer_bytes,
        micros: noted.took.as_micros() as u64,
        outcome: noted.outcome.to_owned(),
        reason: reason as i32,
        state_bytes: noted.state_bytes.unwrap_or(0),
        items: u32::try_from(noted.items).unwrap_or(u32::MAX),
    }
}
