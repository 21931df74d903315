//! Whether replicas of this node still lead: asked of the peers, for all groups in one message.
//!
//! A linearizable read at a leader must know that there was no newer leader when it began. Each
//! voter keeps its *promise*: the newest term in which it has voted or followed. The promise is
//! raised before the vote is written, and so before anybody can hear of it. A quorum of voters that
//! have promised nothing newer rules a newer leader out: that one would have needed a vote of one
//! of them. No clock is involved, and neither are the groups' thread and Raft's own messages.
//!
//! Readers gather while a round is under way; the next round is for all of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_store::ReplicaId;
use tokio::sync::oneshot;

use super::group::Group;
use crate::transport::Peers;
use crate::{Error, NodeId};

/// Rounds under way at a time: a read waits for half a round less than with one.
const ROUNDS_MAX: usize = 2;

/// A round that takes longer no longer counts: other groups must not wait for a silent peer.
const ROUND_WAIT: Duration = Duration::from_millis(10);

/// The newest term in which a replica has voted or followed.
#[derive(Debug, Default)]
pub struct Promise(AtomicU64);

impl Promise {
    /// As it was kept.
    pub fn of(term: u64) -> Self {
        Promise(AtomicU64::new(term))
    }

    /// To be called before a vote of the term is written.
    pub fn raise(&self, term: u64) {
        self.0.fetch_max(term, Ordering::SeqCst);
    }

    /// The newest term promised.
    pub fn term(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether nothing newer than a term was promised.
    pub fn allows(&self, term: u64) -> bool {
        self.term() <= term
    }
}

type Waiter = oneshot::Sender<Result<(), Error>>;

/// Asks for all groups of a node.
pub struct Confirmer {
    peers: Arc<Peers>,
    /// How long a round may take.
    patience: Duration,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    claims: HashMap<(ReplicaId, u64), Claim>,
    rounds: usize,
}

/// That a replica leads in a term.
struct Claim {
    group: Arc<Group>,
    term: u64,
    waiters: Vec<Waiter>,
}

impl Confirmer {
    /// For the groups of a node.
    pub fn new(peers: Arc<Peers>, patience: Duration) -> Arc<Self> {
        Arc::new(Confirmer { peers, patience, waiting: Mutex::default() })
    }

    /// Returns if there was no newer leader than this replica in this term when it was called.
    pub async fn confirm(self: &Arc<Self>, group: &Arc<Group>, term: u64) -> Result<(), Error> {
        let (waiter, answer) = oneshot::channel();
        let starts = {
            let mut waiting = self.waiting.lock();
            let claim = waiting.claims.entry((group.replica(), term));
            let new = || Claim { group: group.clone(), term, waiters: Vec::new() };
            claim.or_insert_with(new).waiters.push(waiter);
            let starts = waiting.rounds < ROUNDS_MAX;
            waiting.rounds += usize::from(starts);
            starts
        };
        if starts {
            self.peers.runtime().spawn(self.clone().rounds());
        }
        answer.await.unwrap_or_else(|_| Err(group.stopped()))
    }

    /// Rounds until nobody waits.
    async fn rounds(self: Arc<Self>) {
        loop {
            let claims = {
                let mut waiting = self.waiting.lock();
                if waiting.claims.is_empty() {
                    waiting.rounds -= 1;
                    return;
                }
                std::mem::take(&mut waiting.claims)
            };
            let mut round = Box::pin(self.clone().round(claims.into_values().collect()));
            if tokio::time::timeout(ROUND_WAIT, &mut round).await.is_err() {
                tokio::spawn(round);
            }
        }
    }

    async fn round(self: Arc<Self>, claims: Vec<Claim>) {
        // Before any promise is looked at: that there was no newer leader holds of this moment.
        let moment = Instant::now();
        let mut ballots: Vec<Ballot> =
            claims.into_iter().map(|claim| Ballot::new(claim, moment)).collect();
        let mut asked: HashMap<NodeId, Vec<(usize, v1::Claim)>> = HashMap::new();
        for (at, ballot) in ballots.iter_mut().enumerate() {
            for (node, claim) in ballot.to_ask() {
                asked.entry(node).or_default().push((at, claim));
            }
            ballot.settle();
        }
        let mut answers: FuturesUnordered<_> =
            asked.into_iter().map(|(node, claims)| self.ask(node, claims)).collect();
        let settled = async {
            while ballots.iter().any(Ballot::is_open)
                && let Some(confirmed) = answers.next().await
            {
                for (at, replica) in confirmed {
                    ballots[at].confirmed.insert(replica);
                    ballots[at].settle();
                }
            }
        };
        // Whoever is left open has no quorum within its reach.
        let _ = tokio::time::timeout(self.patience, settled).await;
        ballots.into_iter().for_each(Ballot::fail);
    }

    /// Which of the claims a peer's replicas confirm.
    async fn ask(&self, node: NodeId, claims: Vec<(usize, v1::Claim)>) -> Vec<(usize, u64)> {
        let replica = |claim: &v1::Claim| claim.route.map_or(0, |route| route.to_replica);
        let whose: Vec<_> = claims.iter().map(|(at, claim)| (*at, replica(claim))).collect();
        let ask = v1::ConfirmAsk { claims: claims.into_iter().map(|(_, claim)| claim).collect() };
        match self.peers.peer(node).talk.ask(None, Ask::Confirm(ask), true).await {
            Ok(Answer::Confirm(answer)) => {
                let confirmed = whose.into_iter().zip(answer.confirmed);
                confirmed.filter(|(_, yes)| *yes).map(|(whose, _)| whose).collect()
            }
            Ok(_) | Err(_) => Vec::new(),
        }
    }
}

/// A claim, and who has confirmed it.
struct Ballot {
    claim: Claim,
    /// Voters of each part of the membership: a quorum of every part is needed.
    parts: Vec<BTreeSet<u64>>,
    nodes: HashMap<u64, NodeId>,
    confirmed: BTreeSet<u64>,
    /// When the round began.
    moment: Instant,
}

impl Ballot {
    fn new(claim: Claim, moment: Instant) -> Self {
        let metrics = claim.group.raft.server_metrics();
        let (parts, nodes) = {
            // Published a step late at most, and one part of any two steps is the same.
            let membership = metrics.borrow_watched().membership_config.membership().clone();
            let nodes = membership.nodes().map(|(replica, it)| (*replica, NodeId(it.node)));
            (membership.get_joint_config().clone(), nodes.collect())
        };
        let mut confirmed = BTreeSet::new();
        if claim.group.promise.allows(claim.term) {
            confirmed.insert(claim.group.replica().0);
        }
        Ballot { claim, parts, nodes, confirmed, moment }
    }

    /// What to ask of whom.
    fn to_ask(&self) -> Vec<(NodeId, v1::Claim)> {
        let ours = self.claim.group.replica().0;
        let others: BTreeSet<u64> =
            self.parts.iter().flatten().copied().filter(|voter| *voter != ours).collect();
        let claim = |to_replica| {
            let shard = self.claim.group.shard().0.into();
            let route = v1::PeerRoute { shard, from_replica: ours, to_replica };
            v1::Claim { route: Some(route), term: self.claim.term }
        };
        let found = others.into_iter().filter_map(|it| Some((*self.nodes.get(&it)?, claim(it))));
        found.collect()
    }

    fn is_open(&self) -> bool {
        !self.claim.waiters.is_empty()
    }

    /// Tells everyone who waits once there is a quorum.
    fn settle(&mut self) {
        let quorum =
            |part: &BTreeSet<u64>| part.intersection(&self.confirmed).count() > part.len() / 2;
        if self.is_open() && !self.parts.is_empty() && self.parts.iter().all(quorum) {
            // What it has acknowledged so far, it has applied.
            let applied = *self.claim.group.applied.borrow();
            if applied.term >= self.claim.term {
                self.claim.group.prove(self.moment, applied.index);
            }
            for waiter in self.claim.waiters.drain(..) {
                // Who gave up waiting does not mind.
                let _ = waiter.send(Ok(()));
            }
        }
    }

    fn fail(self) {
        for waiter in self.claim.waiters {
            let _ = waiter.send(Err(self.claim.group.not_leader()));
        }
    }
}
