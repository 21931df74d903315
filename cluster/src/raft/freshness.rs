//! How replicas that do not lead learn how old their state may be: they ask those that lead.
//!
//! A leader's commit index alone proves nothing about age: the message that carries it may have
//! waited anywhere, the follower may have stood still before it took it up, and its sender may have
//! been replaced. So the question goes the other way. Each interval a node notes the time on its
//! own clock, looks at its promises (`confirm.rs`), and asks each node that leads groups of its own
//! replicas up to which entry everything lies that was acknowledged so far. When the answer comes,
//! however late, it proves something about the moment before the question, and nothing later.
//!
//! Who leads answers with the entry it has applied, if that is of its own term: what it has
//! acknowledged, it has applied before, and what former leaders have, lies below the first entry of
//! its term. It answers only once it is certain that there was no newer leader when the question
//! was asked. The asker's promise is a voter's confirmation at that very moment; with the leader's
//! own that is a quorum of three. Where it is none (five voters, or a learner that asks) the leader
//! asks the others as for a linearizable read.
//!
//! One question and one answer for each pair of nodes and interval, for all groups together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_store::ReplicaId;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::group::Group;
use super::groups::Groups;
use crate::NodeId;
use crate::transport::Peer;

/// How long an answer is waited for: one that comes later proves little.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a leader asks other voters before it answers without the groups that they left open.
const CONFIRM_WAIT_MAX: Duration = Duration::from_millis(100);

/// A node's questions to one other node.
#[derive(Default)]
struct Questions {
    /// Weak: a replica may be destroyed while its question is under way.
    groups: Vec<Weak<Group>>,
    claims: Vec<v1::Claim>,
}

/// Asks for all replicas of a node that do not lead, until the groups are gone.
pub(super) async fn ask(groups: Weak<Groups>) {
    let Some(every) = groups.upgrade().map(|groups| groups.config().heartbeat_interval) else {
        return;
    };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way: HashMap<NodeId, JoinHandle<()>> = HashMap::new();
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        under_way.retain(|_, question| !question.is_finished());
        // Before any promise is looked at: a promise that is newer by then rules out less.
        let moment = Instant::now();
        let mut questions: BTreeMap<NodeId, Questions> = BTreeMap::new();
        for group in groups.all() {
            let Some(leader) = group.leader() else { continue };
            if leader.replica == group.replica() || under_way.contains_key(&leader.node) {
                continue;
            }
            let questions = questions.entry(leader.node).or_default();
            questions.claims.push(group.freshness_claim(leader.replica));
            questions.groups.push(Arc::downgrade(&group));
        }
        for (node, questions) in questions {
            let asked = ask_node(groups.peers().peer(node), moment, questions);
            under_way.insert(node, tokio::spawn(asked));
        }
    }
}

async fn ask_node(peer: Arc<Peer>, moment: Instant, questions: Questions) {
    let ask = Ask::Freshness(v1::FreshnessAsk { claims: questions.claims });
    let answer = timeout(ANSWER_WAIT_MAX, peer.talk.ask(None, ask, false)).await;
    let Ok(Ok(Answer::Freshness(answer))) = answer else { return };
    for (group, index) in questions.groups.iter().zip(answer.indexes) {
        if index > 0
            && let Some(group) = group.upgrade()
        {
            group.prove(moment, index);
        }
    }
}

impl Groups {
    /// Up to which entry everything lies that was acknowledged before the question was asked, for
    /// each of its claims; 0 where that is not certain.
    pub(super) async fn freshness(&self, ask: v1::FreshnessAsk) -> v1::FreshnessAnswer {
        let indexes = ask.claims.into_iter().map(|claim| {
            let group = self.addressed_by(&claim);
            async move {
                let Some((group, route)) = group else { return 0 };
                group.known_through(ReplicaId(route.from_replica), claim.term).await.unwrap_or(0)
            }
        });
        v1::FreshnessAnswer { indexes: join_all(indexes).await }
    }
}

impl Group {
    /// Takes a proof of how old the applied state is at most (`lag.rs`).
    pub(super) fn prove(&self, moment: Instant, index: u64) {
        self.lag.lock().prove(moment, index, self.applied.borrow().index);
    }

    fn freshness_claim(&self, leader: ReplicaId) -> v1::Claim {
        let route = v1::PeerRoute {
            shard: self.shard.0.into(),
            from_replica: self.replica.0,
            to_replica: leader.0,
        };
        v1::Claim { route: Some(route), term: self.promise.term() }
    }

    /// The entry through which everything lies that was acknowledged before `asker` had promised
    /// nothing newer than `promised`; `None` if this replica did not lead then for certain.
    async fn known_through(self: &Arc<Self>, asker: ReplicaId, promised: u64) -> Option<u64> {
        let term = self.leading_term()?;
        let applied = *self.applied.borrow();
        if applied.term < term {
            return None;
        }
        let confirmed = |voter: u64| {
            (voter == self.replica.0 && self.promise.allows(term))
                || (voter == asker.0 && promised <= term)
        };
        if !self.is_quorum(confirmed) {
            let others = self.confirmer.confirm(self, term);
            timeout(CONFIRM_WAIT_MAX, others).await.ok()?.ok()?;
        }
        Some(applied.index)
    }

    /// Whether the voters for which something holds are a quorum of every part of the membership.
    fn is_quorum(&self, holds: impl Fn(u64) -> bool) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let parts = metrics.membership_config.membership().get_joint_config();
        let majority = |part: &BTreeSet<u64>| {
            part.iter().filter(|voter| holds(**voter)).count() > part.len() / 2
        };
        !parts.is_empty() && parts.iter().all(majority)
    }
}
