//! Whether replicas of a shard that have applied the same entries hold the same: each leader
//! compares the sums that its group's replicas keep (the store's `sums.rs`), every minute by
//! default.
//!
//! Of replicas that differ, those that a majority of the voters disagrees with are damaged: they
//! are reported to their own nodes as if a read had found it (`raft/quarantine.rs`), and rebuilt.
//! If no majority agrees nobody knows who is right: that is told in the audit log, and nothing is
//! done.
//!
//! Finds what was applied differently. What rots at rest is found by checksums, when it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use statehouse_store::{AppliedSums, ReplicaId};
use tokio::time::{MissedTickBehavior, interval};

use crate::raft::Group;
use crate::{NodeId, ShardId, Shards};

/// The sums of a group's replicas as of one entry, and since which entry each counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Compared {
    index: u64,
    /// `since`, and the sum.
    sums: BTreeMap<ReplicaId, (u64, u64)>,
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// All that could be compared agree.
    Same,
    /// A majority of the voters agrees, and these do not.
    Differ(BTreeSet<ReplicaId>),
    /// They differ, and no majority agrees.
    Split,
}

/// Compares, for every shard that this node leads, until the shards are gone.
pub(crate) async fn run(shards: Weak<Shards>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: BTreeMap<ShardId, Compared> = BTreeMap::new();
    loop {
        ticks.tick().await;
        let Some(shards) = shards.upgrade() else { return };
        let led: Vec<Arc<Group>> =
            shards.groups().into_iter().filter(|group| group.leads()).collect();
        before.retain(|shard, _| led.iter().any(|group| group.shard() == *shard));
        let found = sums(&shards, &led).await;
        for group in led {
            let status = group.status();
            let members: BTreeMap<ReplicaId, NodeId> =
                status.voters.iter().chain(&status.learners).map(|(id, at)| (*id, *at)).collect();
            let theirs = found.iter().filter(|(replica, _)| members.contains_key(replica));
            let theirs = theirs.map(|(replica, sums)| (*replica, sums.clone())).collect();
            let Some(now) = at_one_entry(&theirs) else { continue };
            let voters = status.voters.keys().copied().collect();
            let last = before.insert(group.shard(), now.clone());
            let verdicts = [absolute(&voters, &now), grown(&voters, &now, last.as_ref())];
            for verdict in verdicts {
                act(&shards, group.shard(), &members, (verdict, now.index)).await;
            }
        }
    }
}

/// The sums of all replicas of the nodes that have some of these groups. Who does not answer is
/// left out.
async fn sums(shards: &Arc<Shards>, led: &[Arc<Group>]) -> BTreeMap<ReplicaId, AppliedSums> {
    let statuses = led.iter().map(|group| group.status());
    let nodes: BTreeSet<NodeId> = statuses
        .flat_map(|status| status.voters.into_values().chain(status.learners.into_values()))
        .collect();
    if nodes.len() <= 1 {
        return BTreeMap::new();
    }
    let asked = nodes.into_iter().map(|node| async move {
        let answer = shards.control().sums(node).await;
        answer.inspect_err(|error| tracing::debug!(%node, %error, "no sums")).unwrap_or_default()
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Takes the sums as of the entry that most replicas have one of, the latest of those.
fn at_one_entry(theirs: &BTreeMap<ReplicaId, AppliedSums>) -> Option<Compared> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (index, _) in theirs.values().flat_map(|sums| &sums.points) {
        *counts.entry(*index).or_default() += 1;
    }
    let (index, count) = counts.into_iter().max_by_key(|(index, count)| (*count, *index))?;
    if count < 2 {
        return None;
    }
    let at = |sums: &AppliedSums| {
        let point = sums.points.iter().find(|(at, _)| *at == index)?;
        Some((sums.since, point.1))
    };
    let sums = theirs.iter().filter_map(|(replica, sums)| Some((*replica, at(sums)?))).collect();
    Some(Compared { index, sums })
}

/// Compares the sums of those that began to count at the same entry.
fn absolute(voters: &BTreeSet<ReplicaId>, now: &Compared) -> Verdict {
    let mut verdict = Verdict::Same;
    let begun: BTreeSet<u64> = now.sums.values().map(|(since, _)| *since).collect();
    for since in begun {
        let of = now.sums.iter().filter(|(_, sums)| sums.0 == since);
        let found = judge(voters, &of.map(|(replica, sums)| (*replica, sums.1)).collect());
        // A minority that agrees with itself says nothing.
        if found != Verdict::Same {
            verdict = found;
        }
    }
    verdict
}

/// Compares what the sums have grown by since the last comparison.
fn grown(voters: &BTreeSet<ReplicaId>, now: &Compared, last: Option<&Compared>) -> Verdict {
    let Some(last) = last else { return Verdict::Same };
    let by = now.sums.iter().filter_map(|(replica, (since, sum))| {
        let (began, before) = last.sums.get(replica)?;
        (began == since).then(|| (*replica, sum.wrapping_sub(*before)))
    });
    judge(voters, &by.collect())
}

fn judge(voters: &BTreeSet<ReplicaId>, values: &BTreeMap<ReplicaId, u64>) -> Verdict {
    let mut classes: BTreeMap<u64, BTreeSet<ReplicaId>> = BTreeMap::new();
    for (replica, value) in values {
        classes.entry(*value).or_default().insert(*replica);
    }
    if classes.len() <= 1 {
        return Verdict::Same;
    }
    let is_majority =
        |class: &BTreeSet<ReplicaId>| class.intersection(voters).count() * 2 > voters.len();
    match classes.values().any(is_majority) {
        true => {
            let others = classes.into_values().filter(|class| !is_majority(class));
            Verdict::Differ(others.flatten().collect())
        }
        false => Verdict::Split,
    }
}

async fn act(
    shards: &Arc<Shards>,
    shard: ShardId,
    members: &BTreeMap<ReplicaId, NodeId>,
    (verdict, index): (Verdict, u64),
) {
    match verdict {
        Verdict::Same => {}
        Verdict::Split => tracing::error!(
            target: "audit", %shard, index,
            "replicas differ that have applied the same entries, and no majority of them agrees"
        ),
        Verdict::Differ(replicas) => {
            for replica in replicas {
                let Some(node) = members.get(&replica).copied() else { continue };
                tracing::error!(
                    target: "audit", %shard, %replica, %node, index,
                    "a replica differs from the others that have applied the same entries"
                );
                let detail = format!(
                    "it differs from a majority of the shard's replicas as of entry {index}"
                );
                if let Err(error) = shards.control().report_damage(node, replica, &detail).await {
                    tracing::warn!(%shard, %replica, %node, %error, "it is not told so");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(index: u64, sums: &[(u64, u64, u64)]) -> Compared {
        let sums = sums.iter().map(|(id, since, sum)| (ReplicaId(*id), (*since, *sum))).collect();
        Compared { index, sums }
    }

    fn ids(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    #[test]
    fn the_minority_is_the_damaged_one_and_without_a_majority_nobody_is() {
        let voters = ids(&[1, 2, 3]);
        let same = compared(9, &[(1, 0, 7), (2, 0, 7), (3, 0, 7)]);
        assert_eq!(absolute(&voters, &same), Verdict::Same);
        let one = compared(9, &[(1, 0, 7), (2, 0, 8), (3, 0, 7)]);
        assert_eq!(absolute(&voters, &one), Verdict::Differ(ids(&[2])));
        let all = compared(9, &[(1, 0, 7), (2, 0, 8), (3, 0, 9)]);
        assert_eq!(absolute(&voters, &all), Verdict::Split);
        let two = compared(9, &[(1, 0, 7), (2, 0, 8)]);
        assert_eq!(absolute(&voters, &two), Verdict::Split, "one of them is silent");
        let learner = compared(9, &[(1, 0, 7), (2, 0, 7), (4, 0, 8)]);
        assert_eq!(absolute(&voters, &learner), Verdict::Differ(ids(&[4])));
    }

    #[test]
    fn those_that_began_at_other_entries_are_compared_by_what_they_grow() {
        let voters = ids(&[1, 2, 3]);
        let last = compared(64, &[(1, 0, 100), (2, 0, 100), (3, 50, 5)]);
        let good = compared(128, &[(1, 0, 130), (2, 0, 130), (3, 50, 35)]);
        assert_eq!(absolute(&voters, &good), Verdict::Same);
        assert_eq!(grown(&voters, &good, Some(&last)), Verdict::Same);
        assert_eq!(grown(&voters, &good, None), Verdict::Same, "nothing to compare with");
        let bad = compared(128, &[(1, 0, 130), (2, 0, 130), (3, 50, 36)]);
        assert_eq!(absolute(&voters, &bad), Verdict::Same);
        assert_eq!(grown(&voters, &bad, Some(&last)), Verdict::Differ(ids(&[3])));
        let anew = compared(128, &[(1, 0, 130), (2, 0, 130), (3, 70, 36)]);
        assert_eq!(grown(&voters, &anew, Some(&last)), Verdict::Same, "it began to count anew");
    }

    #[test]
    fn the_entry_is_the_latest_that_most_have() {
        let sums = |since, points: &[(u64, u64)]| AppliedSums { since, points: points.to_vec() };
        let theirs = BTreeMap::from([
            (ReplicaId(1), sums(0, &[(64, 1), (128, 2), (140, 3)])),
            (ReplicaId(2), sums(0, &[(64, 1), (128, 2), (140, 3)])),
            (ReplicaId(3), sums(0, &[(64, 1), (128, 9), (130, 3)])),
        ]);
        let now = at_one_entry(&theirs).unwrap();
        assert_eq!(now, compared(128, &[(1, 0, 2), (2, 0, 2), (3, 0, 9)]));
        let far = BTreeMap::from([
            (ReplicaId(1), sums(0, &[(64, 1)])),
            (ReplicaId(2), sums(0, &[(128, 1)])),
        ]);
        assert_eq!(at_one_entry(&far), None);
    }
}
