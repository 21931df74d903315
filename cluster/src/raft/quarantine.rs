//! Replicas of this node that have stopped: taken out of service, kept out, and reported.
//!
//! A replica stops when its Raft core ends by an error, when an entry can't be applied, or when
//! damage is found in its rows. If a quorum of the shard's other voters takes part, it is put in
//! quarantine: its descriptor says so, durably, so that it never votes again under its id, and the
//! controller replaces it by a new replica under a new id (`controller.rs`). One that nobody else
//! can rebuild keeps its descriptor: the next start may heal it.
//!
//! A damaged replica goes on while the others can't do without it: what is whole in it is all there
//! is. So of the replicas of a shard a minority is in quarantine, even if a fault of the program
//! makes all of them look damaged. Does not rebuild anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_store::{Damage, DamagePolicy, ReplicaId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::descriptor::{self, Descriptor};
use super::fault::Whose;
use super::group::Group;
use super::groups::Groups;
use super::log_storage::blocking;
use crate::{Error, NodeId, ShardId};

/// How often replicas are looked at that the others could not do without, and how long one that
/// has stopped waits for others with the same fault.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a damaged leader tries to hand over before its core is stopped.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// How long another node may take to say how its replicas are.
const ASK_MAX: Duration = Duration::from_millis(500);

/// How long a reader that found damage waits to learn whether it is to go elsewhere.
const DECIDED_MAX: Duration = Duration::from_secs(5);

/// The reason of replicas whose database is gone.
const LOST_WITH_DATABASE: &str = "its database could not be opened and was set aside";

/// A replica of this node that takes no part any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The shard that it is a replica of.
    pub shard: ShardId,
    /// The replica's id.
    pub replica: ReplicaId,
    /// The problem that stopped it.
    pub reason: String,
    /// Other replicas rebuild it, under a new id; else it waits for them, or for a restart.
    pub quarantined: bool,
}

/// The voters of a group, and where they are.
type Voters = BTreeMap<ReplicaId, NodeId>;

/// Something that may end a replica's service.
pub(super) enum Event {
    /// A group has a fault, or its core has ended.
    Fault(ReplicaId),
    /// Damage was found in a replica's rows. Told once it is decided whether it is out of service.
    Damage(ReplicaId, String, Option<oneshot::Sender<()>>),
}

/// The stopped replicas of a node, and who is told of new ones.
pub(super) struct Ward {
    stopped: Mutex<BTreeMap<ReplicaId, (Stopped, Voters)>>,
    events: UnboundedSender<Event>,
}

impl Ward {
    pub fn new(events: UnboundedSender<Event>) -> Self {
        Ward { stopped: Mutex::default(), events }
    }

    /// Tells of something that may end a replica's service. Does not block.
    pub fn tell(&self, event: Event) {
        // Nobody listens once the node stops.
        let _ = self.events.send(event);
    }

    /// Returns the stopped replicas, in the order of their ids.
    pub fn stopped(&self) -> Vec<Stopped> {
        self.stopped.lock().values().map(|(stopped, _)| stopped.clone()).collect()
    }

    fn admit(&self, stopped: Stopped, voters: Voters) {
        let Stopped { shard, replica, reason, quarantined } = &stopped;
        tracing::error!(
            target: "audit", %shard, %replica, reason, quarantined, "a replica has stopped"
        );
        self.stopped.lock().insert(stopped.replica, (stopped, voters));
    }

    /// Forgets a replica that was destroyed.
    pub fn dismiss(&self, replica: ReplicaId) {
        if let Some((Stopped { shard, .. }, _)) = self.stopped.lock().remove(&replica) {
            tracing::info!(target: "audit", %shard, %replica, "a stopped replica was destroyed");
        }
    }

    /// Those that the others could not do without when last asked.
    fn unsettled(&self) -> Vec<(Stopped, Voters)> {
        let stopped = self.stopped.lock();
        stopped.values().filter(|(stopped, _)| !stopped.quarantined).cloned().collect()
    }
}

/// Takes replicas out of service as they fail, until the groups are gone.
pub(super) async fn run(groups: Weak<Groups>, mut events: UnboundedReceiver<Event>) {
    let mut damaged: BTreeMap<ReplicaId, String> = BTreeMap::new();
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.recv() => match event {
                Some(event) => Some(event),
                None => return,
            },
            _ = ticks.tick() => None,
        };
        let Some(groups) = groups.upgrade() else { return };
        match event {
            Some(Event::Fault(replica)) => {
                groups.take_out(replica, None).await;
                ticks.reset();
            }
            Some(Event::Damage(replica, detail, told)) => {
                if groups.condemn(replica, &detail, told).await == Condemned::NotYet
                    && damaged.insert(replica, detail.clone()).is_none()
                {
                    tracing::error!(
                        target: "audit", %replica, detail,
                        "a damaged replica goes on: no quorum of others takes part"
                    );
                }
            }
            None => {
                groups.settle().await;
                for (replica, detail) in std::mem::take(&mut damaged) {
                    if groups.condemn(replica, &detail, None).await == Condemned::NotYet {
                        damaged.insert(replica, detail);
                    }
                }
            }
        }
    }
}

/// What became of a damaged replica.
#[derive(Debug, PartialEq, Eq)]
enum Condemned {
    /// It is out of service, or was before.
    Done,
    /// The others can't do without it now.
    NotYet,
}

impl Group {
    /// Reports that a read of this replica found damage; returns when it is decided whether the
    /// replica goes on. If a quorum of the shard's other voters takes part, it serves nothing from
    /// then on ([`Group::has_failed`]), and they rebuild it.
    pub async fn report_damage(&self, detail: &str) {
        if self.has_failed() {
            return;
        }
        let (told, decided) = oneshot::channel();
        self.ward.tell(Event::Damage(self.replica, detail.to_owned(), Some(told)));
        // Undecided in time: the reader is told of the damage, and the decision comes later.
        let _ = tokio::time::timeout(DECIDED_MAX, decided).await;
    }

    /// Has another voter lead, if this replica does; gives up after a while.
    async fn step_down(self: &Arc<Self>) {
        let mut status = self.status_of_raft();
        if !status.role.is_leader() {
            return;
        }
        status.matched.retain(|replica, _| status.voters.contains_key(replica));
        let Some((to, _)) = status.matched.iter().max_by_key(|(_, at)| **at) else { return };
        let handed = async {
            if self.raft.trigger().transfer_leader(to.0).await.is_err() {
                return;
            }
            let mut metrics = self.raft.metrics();
            while self.status_of_raft().role.is_leader() && metrics.changed().await.is_ok() {}
        };
        if tokio::time::timeout(HAND_OVER_MAX, handed).await.is_err() {
            tracing::warn!(shard = %self.shard, "the lead of a damaged replica was not taken over");
        }
    }
}

impl Groups {
    /// The replicas of this node that have stopped.
    pub fn stopped(&self) -> Vec<Stopped> {
        self.ward().stopped()
    }

    /// Takes a damaged replica out of service, if the others can do without it.
    async fn condemn(
        self: &Arc<Self>,
        replica: ReplicaId,
        detail: &str,
        told: Option<oneshot::Sender<()>>,
    ) -> Condemned {
        let Ok(group) = self.replica(replica) else { return Condemned::Done };
        if group.has_failed() {
            return Condemned::Done;
        }
        let voters = group.status().voters;
        // Before the others are asked: of two who ask each other at once neither goes.
        group.leaving.store(true, Ordering::SeqCst);
        let can = self.others_take_part(replica, &voters).await;
        let fault = can && group.fault.note(Whose::Replica, detail.to_owned());
        group.leaving.store(false, Ordering::SeqCst);
        if !can {
            return Condemned::NotYet;
        }
        if let Some(told) = told {
            // Whoever waits may be gone.
            let _ = told.send(());
        }
        if !fault {
            // It has stopped meanwhile, and that is told by itself.
            return Condemned::Done;
        }
        // Others that are damaged need not wait for its lead to be taken over.
        let groups = self.clone();
        tokio::spawn(async move { groups.take_out(replica, Some(voters)).await });
        Condemned::Done
    }

    /// Takes a replica with a fault out of service. Where it is known that the others can do
    /// without it, `quorum_of` says of whom that is so, and it is quarantined at once.
    async fn take_out(&self, replica: ReplicaId, quorum_of: Option<Voters>) {
        let Ok(group) = self.replica(replica) else { return };
        let Some((whose, reason)) = group.fault.get() else { return };
        if whose == Whose::Node || self.store().failure().is_some() || group.is_closing() {
            return;
        }
        // While it still answers: nobody has to find out that it is gone.
        group.step_down().await;
        let _changing = self.changing().lock().await;
        if self.replica(replica).is_err() || group.is_closing() {
            return;
        }
        let (shard, reason) = (group.shard(), reason.to_owned());
        let stopped = Stopped { shard, replica, reason, quarantined: false };
        let voters = group.status().voters;
        self.let_go(replica);
        self.tell_change();
        group.shutdown().await;
        match quorum_of {
            Some(voters) => self.keep_out(stopped, voters).await,
            None => self.ward().admit(stopped, voters),
        }
    }

    /// Quarantines those that have stopped and that the others can do without by now.
    async fn settle(&self) {
        for (stopped, voters) in self.ward().unsettled() {
            if self.others_take_part(stopped.replica, &voters).await {
                let _changing = self.changing().lock().await;
                self.keep_out(stopped, voters).await;
            }
        }
    }

    /// Whether a quorum of a group's voters takes part without one of its replicas, as their own
    /// nodes say.
    async fn others_take_part(&self, replica: ReplicaId, voters: &Voters) -> bool {
        let others = voters.iter().filter(|(id, _)| **id != replica);
        let nodes: BTreeSet<NodeId> = others.clone().map(|(_, node)| *node).collect();
        let asked = nodes.into_iter().map(|node| async move {
            let mut client = self.peers().control_client(node).ok()?;
            let ask = v1::ReportAsk { hello: Some(self.peers().hello(node)), sizes: false };
            let answer = tokio::time::timeout(ASK_MAX, client.report(ask)).await;
            Some(answer.ok()?.ok()?.into_inner().groups)
        });
        let reports: Vec<v1::GroupReport> =
            join_all(asked).await.into_iter().flatten().flatten().collect();
        // Followers, candidates and leaders: 1 to 3.
        let takes_part = |id: &ReplicaId| {
            reports.iter().any(|it| it.replica == id.0 && (1..=3).contains(&it.role))
        };
        let count = others.filter(|(id, _)| takes_part(id)).count();
        count > 0 && count * 2 > voters.len()
    }

    /// Sees to it that a replica never takes part again under its id. The caller has made sure
    /// that nothing else changes replicas.
    async fn keep_out(&self, stopped: Stopped, voters: Voters) {
        let Stopped { shard, replica, reason, .. } = stopped.clone();
        let descriptor = Descriptor::Quarantined(shard, reason);
        let written = descriptor::write(self.store(), replica, descriptor).await;
        if let Err(error) = &written {
            tracing::error!(%shard, %replica, %error, "the quarantine of a replica is not durable");
        }
        if let Err(error) = self.store().quarantine(replica) {
            tracing::warn!(%shard, %replica, %error, "the store knows no such replica");
        }
        self.ward().admit(Stopped { quarantined: written.is_ok(), ..stopped }, voters);
    }

    /// Keeps a replica closed at the node's start: it was quarantined before, or its rows are
    /// damaged.
    pub(super) async fn open_quarantined(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        reason: String,
    ) -> Result<(), Error> {
        let descriptor = Descriptor::Quarantined(shard, reason.clone());
        descriptor::write(self.store(), replica, descriptor).await?;
        self.store().quarantine(replica)?;
        let stopped = Stopped { shard, replica, reason, quarantined: true };
        self.ward().admit(stopped, Voters::new());
        Ok(())
    }

    /// Quarantines the replicas that went with a database that was set aside: their votes and logs
    /// are lost, so nothing may be made under their ids again.
    pub(super) async fn keep_out_lost(&self) -> Result<(), Error> {
        let here: BTreeSet<ReplicaId> = self.store().replicas().into_iter().collect();
        for (replica, descriptor) in descriptor::all(self.store())? {
            let (shard, reason) = match descriptor {
                Descriptor::Live(shard) => (shard, LOST_WITH_DATABASE.to_owned()),
                Descriptor::Quarantined(shard, reason) => (shard, reason),
                Descriptor::Destroyed(_) => continue,
            };
            if here.contains(&replica) {
                continue;
            }
            let descriptor = Descriptor::Quarantined(shard, reason.clone());
            descriptor::write(self.store(), replica, descriptor).await?;
            let stopped = Stopped { shard, replica, reason, quarantined: true };
            self.ward().admit(stopped, Voters::new());
        }
        Ok(())
    }

    /// Keeps a replica closed whose core could not start, if that is for damage and other nodes
    /// hold the same rows: one bad block must not keep the node from starting. Else the error
    /// stands.
    pub(super) async fn not_started(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        error: Error,
    ) -> Result<(), Error> {
        let damages = self.store().damages();
        let found = damages.iter().find(|damage| damage.replica == Some(replica));
        match (found, self.store().damage_policy()) {
            (Some(damage), DamagePolicy::Quarantine) => {
                self.open_quarantined(shard, replica, damage.to_string()).await
            }
            (Some(_), DamagePolicy::Refuse) | (None, _) => Err(error),
        }
    }

    /// Why the store holds a replica in quarantine, if it does.
    pub(super) fn damage_of(&self, replica: ReplicaId) -> Option<String> {
        if !self.store().quarantined().contains(&replica) {
            return None;
        }
        let damages = self.store().damages();
        let of = |damage: &&Damage| damage.replica.is_none_or(|of| of == replica);
        let found = damages.iter().find(of).map(ToString::to_string);
        Some(found.unwrap_or_else(|| "it has lost acknowledged rows".to_owned()))
    }

    /// Drops the rows of a shard's quarantined replica, to make room for the one that takes its
    /// place. Nobody counts on them: they were not served, and its vote is void.
    pub(super) async fn clear(&self, shard: ShardId) -> Result<(), Error> {
        let quarantined = self.stopped().into_iter().filter(|it| it.quarantined);
        for stopped in quarantined.filter(|it| it.shard == shard) {
            let (store, replica) = (self.store().clone(), stopped.replica);
            if store.replicas().contains(&replica) {
                let dropped = blocking(move || store.drop_replica(replica)).await;
                dropped.map_err(|error| Error::Closed { reason: error.to_string() })??;
            }
        }
        Ok(())
    }
}
