//! One call's search for the node that leads its shard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use statehouse_client::lanes::Lanes;
use statehouse_client::retry::{Attempts, Backoff, Effect, Fate};
use statehouse_cluster::raft::Group;
use statehouse_cluster::{NodeId, ShardId};

use super::Router;
use crate::failure::{Failure, LEADER_NODE, SHARD};
use crate::states::Freshness;

/// Who is to serve a call.
pub enum Place {
    /// This node.
    Here(Arc<Group>),
    /// Another one.
    There(NodeId, Arc<Lanes>),
    /// Nobody is known to.
    Nowhere,
}

/// A search, with what it learned so far.
pub struct Route {
    router: Router,
    shard: ShardId,
    until: Instant,
    effect: Effect,
    backoff: Backoff,
    attempts: Attempts<Failure>,
    /// Who was tried last.
    at: Option<NodeId>,
    /// That one did not serve the call.
    failed: bool,
    /// Who leads, as the one that was tried last says.
    hint: Option<NodeId>,
    /// How many were tried for want of anything known.
    turns: usize,
}

/// What is known of who leads a shard, at one moment.
struct Known<'a> {
    me: NodeId,
    leads_here: bool,
    /// Who was tried last, in vain.
    failed: Option<NodeId>,
    /// Who leads: as the one that was tried last says, as the group here says, as last heard.
    said: [Option<NodeId>; 3],
    replicas: &'a [NodeId],
    turns: usize,
}

impl Route {
    pub(super) fn new(router: Router, shard: ShardId, until: Instant, effect: Effect) -> Self {
        let (backoff, attempts) = (Backoff::default(), Attempts::default());
        let (at, failed, hint, turns) = (None, false, None, 0);
        Route { router, shard, until, effect, backoff, attempts, at, failed, hint, turns }
    }

    /// For a call that goes to a node chosen already.
    #[must_use]
    pub fn to(self, node: NodeId) -> Self {
        Route { at: Some(node), ..self }
    }

    /// Which shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// What a second run of the call would change.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// What is left for an attempt.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whom to try next, for a read of that freshness or a write (`Linearizable`).
    pub fn next(&mut self, freshness: Freshness) -> Place {
        let shards = self.router.shards();
        let (me, group, topology) = (shards.me(), shards.group(self.shard), shards.topology());
        let failed = self.at.filter(|_| self.failed);
        let leads_here = group.as_ref().is_some_and(|group| group.leads());
        if let Some(group) = &group
            && failed != Some(me)
            && freshness.may_be_served_by(group)
        {
            return self.go(Place::Here(group.clone()), me);
        }
        let led_by = group.as_ref().and_then(|group| group.leader()).map(|leader| leader.node);
        let replicas: Vec<NodeId> = topology.nodes_of(self.shard).collect();
        let said = [self.hint.take(), led_by, self.router.heard(self.shard)];
        let turns = self.turns;
        let chosen = choose(&Known { me, leads_here, failed, said, replicas: &replicas, turns });
        let Some((node, in_turn)) = chosen else {
            self.failed = false;
            return Place::Nowhere;
        };
        self.turns += usize::from(in_turn);
        match (group, node == me) {
            (Some(group), true) => self.go(Place::Here(group), me),
            (None, true) => Place::Nowhere,
            (_, false) => match self.router.0.links.to(node, &topology) {
                Some(lanes) => self.go(Place::There(node, lanes), node),
                None => self.go(Place::Nowhere, node),
            },
        }
    }

    fn go(&mut self, place: Place, node: NodeId) -> Place {
        (self.at, self.failed) = (Some(node), false);
        place
    }

    /// The one that was tried last has served the call.
    pub fn served(&self) {
        if let Some(node) = self.at.filter(|node| *node != self.router.shards().me()) {
            self.router.hear(self.shard, node);
        }
    }

    /// Whether another node than the one that was asked is known to lead by now.
    pub fn leads_elsewhere(&self) -> bool {
        let group = self.router.shards().group(self.shard);
        let leader = group.and_then(|group| group.leader()).map(|leader| leader.node);
        leader.is_some() && leader != self.at
    }

    /// Takes why the call was not served: answers how long to wait before the next attempt, or the
    /// failure if there shall be none.
    pub fn failed(&mut self, failure: Failure) -> Result<Duration, Failure> {
        let mut attempts = std::mem::take(&mut self.attempts);
        let again = self.failed_with(failure, self.effect, &mut attempts);
        self.attempts = attempts;
        again
    }

    /// Takes why one of many calls that went the same way was not served, as [`Route::failed`]
    /// does; each has attempts of its own. After the first of them there's nothing more to learn,
    /// or to wait for.
    pub fn failed_with(
        &mut self,
        failure: Failure,
        effect: Effect,
        attempts: &mut Attempts<Failure>,
    ) -> Result<Duration, Failure> {
        let fate = Fate::of_reason(failure.reason.name());
        if !fate.allows(effect) || self.left().is_zero() {
            return Err(std::mem::take(attempts).end(fate, failure));
        }
        let wait = self.learn(&failure);
        attempts.failed(fate, effect, failure);
        Ok(wait)
    }

    /// Takes what a failure says of who leads. Returns how long to wait before the next attempt.
    fn learn(&mut self, failure: &Failure) -> Duration {
        if std::mem::replace(&mut self.failed, true) {
            return Duration::ZERO;
        }
        self.router.counted().retries.inc();
        // The catalog's shard may be without a leader too: that says nothing of this one.
        let ours = failure.value(SHARD).is_some_and(|shard| shard == self.shard.to_string());
        let hint = failure.value(LEADER_NODE).filter(|_| ours);
        let hint = hint.and_then(|node| node.parse().ok()).map(NodeId);
        self.hint = hint.filter(|node| Some(*node) != self.at);
        let wait = self.backoff.next(rand::random());
        if let Some(node) = self.hint
            && self.router.heard(self.shard) != Some(node)
        {
            // News: worth an attempt at once.
            self.router.hear(self.shard, node);
            return Duration::ZERO;
        }
        wait.min(self.left())
    }
}

/// Whom to try, and whether for want of anything better.
fn choose(known: &Known<'_>) -> Option<(NodeId, bool)> {
    let can = |node: &NodeId| *node != known.me || known.leads_here;
    let other = |node: &NodeId| can(node) && known.failed != Some(*node);
    if let Some(node) = known.said.into_iter().flatten().find(other) {
        return Some((node, false));
    }
    let others: Vec<NodeId> = known.replicas.iter().copied().filter(other).collect();
    if !others.is_empty() {
        return Some((others[known.turns % others.len()], true));
    }
    let again = known.said.into_iter().flatten().chain(known.replicas.iter().copied()).find(can);
    again.map(|node| (node, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICAS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn known(said: [Option<u64>; 3], failed: Option<u64>, turns: usize) -> Known<'static> {
        Known {
            me: NodeId(1),
            leads_here: false,
            failed: failed.map(NodeId),
            said: said.map(|node| node.map(NodeId)),
            replicas: &REPLICAS,
            turns,
        }
    }

    #[track_caller]
    fn chooses(known: &Known<'_>, node: u64, in_turn: bool) {
        assert_eq!(choose(known), Some((NodeId(node), in_turn)));
    }

    #[test]
    fn what_is_said_last_goes_first() {
        chooses(&known([Some(3), Some(2), Some(2)], None, 0), 3, false);
        chooses(&known([None, Some(2), Some(3)], None, 0), 2, false);
        chooses(&known([None, None, Some(3)], None, 0), 3, false);
    }

    #[test]
    fn who_failed_is_passed_over_while_there_are_others() {
        chooses(&known([None, Some(2), Some(3)], Some(2), 0), 3, false);
        chooses(&known([None, Some(2), None], Some(2), 0), 3, true);
        let alone = Known { replicas: &[NodeId(2)], ..known([None, Some(2), None], Some(2), 0) };
        chooses(&alone, 2, false);
    }

    #[test]
    fn those_with_a_replica_are_tried_in_turn_and_never_this_node() {
        chooses(&known([None; 3], None, 0), 2, true);
        chooses(&known([None; 3], None, 1), 3, true);
        chooses(&known([Some(1), Some(1), None], None, 0), 2, true);
    }

    #[test]
    fn this_node_is_tried_when_it_leads() {
        let leads = Known { leads_here: true, ..known([Some(1), None, None], None, 0) };
        chooses(&leads, 1, false);
        let again = Known { leads_here: true, ..known([None, Some(1), None], Some(1), 0) };
        assert_ne!(choose(&again), Some((NodeId(1), false)), "others first after a failure here");
    }

    #[test]
    fn there_may_be_nobody_to_try() {
        let nobody = Known { replicas: &[], ..known([None; 3], None, 0) };
        assert_eq!(choose(&nobody), None);
    }
}
