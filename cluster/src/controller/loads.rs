//! Commands per second of each shard, from counters that its leaders report. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::control::NodeReport;
use crate::{NodeId, ShardId};

/// Rates, and what they are counted from.
#[derive(Debug, Default)]
pub struct Loads {
    last: BTreeMap<(NodeId, ShardId), (u64, Instant)>,
    rates: BTreeMap<ShardId, f64>,
}

impl Loads {
    /// Takes up what was reported at a moment.
    pub fn note(&mut self, reports: &BTreeMap<NodeId, NodeReport>, at: Instant) {
        let mut rates: BTreeMap<ShardId, f64> = BTreeMap::new();
        let mut counted = BTreeMap::new();
        for (node, report) in reports {
            for group in &report.groups {
                let key = (*node, group.shard);
                counted.insert(key, (group.commands, at));
                let Some((before, then)) = self.last.get(&key) else { continue };
                let seconds = at.saturating_duration_since(*then).as_secs_f64();
                // A node that began anew counts from zero again.
                if seconds > 0.0 && group.commands >= *before {
                    let rate = (group.commands - before) as f64 / seconds;
                    *rates.entry(group.shard).or_default() += rate;
                }
            }
        }
        self.last = counted;
        self.rates = rates;
    }

    /// Commands per second of each shard, between the last two reports.
    pub fn per_second(&self) -> BTreeMap<ShardId, f64> {
        self.rates.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::GroupReport;
    use crate::raft::Role;
    use statehouse_store::ReplicaId;

    fn report(commands: u64) -> BTreeMap<NodeId, NodeReport> {
        let group = GroupReport {
            shard: ShardId(3),
            replica: ReplicaId(4),
            role: Role::Leader,
            term: 1,
            leader: None,
            last_index: 0,
            committed: 0,
            applied: 0,
            voters: BTreeMap::new(),
            learners: BTreeMap::new(),
            joint: false,
            matched: BTreeMap::new(),
            bytes: 0,
            commands,
            receiving: 0,
            membership_at: statehouse_store::EntryId::default(),
            membership_committed: true,
        };
        let report = NodeReport { groups: vec![group], ..NodeReport::default() };
        BTreeMap::from([(NodeId(1), report)])
    }

    #[test]
    fn rates_come_from_two_reports_and_survive_a_restart() {
        let start = Instant::now();
        let mut loads = Loads::default();
        loads.note(&report(100), start);
        assert!(loads.per_second().is_empty(), "one report is no rate");
        loads.note(&report(300), start + Duration::from_secs(2));
        assert_eq!(loads.per_second()[&ShardId(3)], 100.0);
        loads.note(&report(10), start + Duration::from_secs(3));
        assert!(loads.per_second().is_empty(), "the node began anew");
    }
}
