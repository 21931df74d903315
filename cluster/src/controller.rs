//! Keeps a cluster as it should be: replicas where the plan wants them, tasks carried out,
//! learners of shard 0 on every node, nothing left lying about.
//!
//! Every node has one; the one on the node that leads shard 0 works, the others wait. It holds
//! nothing that is not written down: another one takes over within moments.

mod drive;
mod loads;
pub mod observe;
mod tidy;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::begin;
use crate::placement::{By, Move};
use crate::task::{Purpose, TaskId};
use crate::{Error, META_SHARD, NodeId, ShardId, Shards};

pub use loads::Loads;
use observe::{Observed, observe};

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it looks while something changes. A task that ends has it look at once.
const BUSY_INTERVAL: Duration = Duration::from_millis(200);

/// Sizes on disk are asked for each so many looks.
const LOOKS_PER_SIZES: u32 = 5;

/// How the controller behaves.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// A node not heard for so long has its replicas rebuilt elsewhere.
    pub dead_after: Duration,
    /// Tasks carried out at a time.
    pub tasks_max: usize,
    /// After a change of leaders or members, leads are evened out no sooner than this.
    pub settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            dead_after: Duration::from_secs(300),
            tasks_max: 4,
            settle: Duration::from_secs(5),
        }
    }
}

/// Works while this node leads shard 0, until the shards are gone.
pub(crate) async fn run(shards: Weak<Shards>, config: Config) {
    let mut controller = Controller::new(config);
    let mut wait = LOOK_INTERVAL;
    loop {
        let ended = controller.ended.clone();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = ended.notified() => {}
        }
        wait = LOOK_INTERVAL;
        let Some(shards) = shards.upgrade() else { return };
        if !shards.meta().is_ok_and(|meta| meta.leads()) {
            controller = Controller::new(config);
            continue;
        }
        match controller.look(&shards).await {
            Ok(Changing::Yes) => wait = BUSY_INTERVAL,
            Ok(Changing::No) => {}
            Err(error) => tracing::warn!(%error, "the controller's look at the cluster failed"),
        }
    }
}

/// Whether something is under way, so that the next look is due soon.
enum Changing {
    Yes,
    No,
}

struct Controller {
    config: Config,
    looks: u32,
    loads: Loads,
    sizes: HashMap<(NodeId, ShardId), u64>,
    drivers: HashMap<TaskId, JoinHandle<()>>,
    /// Told when a driver ends.
    ended: Arc<Notify>,
    /// When each member was last heard.
    heard: BTreeMap<NodeId, Instant>,
    /// The voters that were stopped at the last look, by shard and node.
    stopped: BTreeSet<(ShardId, NodeId)>,
    /// Since when the leads are where they are.
    settled: (Vec<Option<NodeId>>, Instant),
}

impl Drop for Controller {
    fn drop(&mut self) {
        for driver in self.drivers.values() {
            driver.abort();
        }
    }
}

impl Controller {
    fn new(config: Config) -> Self {
        Controller {
            config,
            looks: 0,
            loads: Loads::default(),
            sizes: HashMap::new(),
            drivers: HashMap::new(),
            ended: Arc::default(),
            heard: BTreeMap::new(),
            stopped: BTreeSet::new(),
            settled: (Vec::new(), Instant::now()),
        }
    }

    async fn look(&mut self, shards: &Arc<Shards>) -> Result<Changing, Error> {
        // What is planned below must not come from an old picture.
        shards.meta()?.linearizable().await?;
        let sizes = self.looks.is_multiple_of(LOOKS_PER_SIZES);
        self.looks = self.looks.wrapping_add(1);
        let mut seen = observe(shards, sizes).await?;
        self.remember_sizes(&mut seen);
        self.loads.note(&seen.reports, std::time::Instant::now());
        let now = Instant::now();
        for (node, _) in seen.members() {
            let heard = self.heard.entry(node).or_insert(now);
            if seen.answers(node) {
                *heard = now;
            }
        }
        self.drivers.retain(|_, driver| !driver.is_finished());
        for task in seen.running() {
            self.carry_out(shards, task.id);
        }
        let (learns, left) =
            (tidy::learners(shards, &seen).await?, tidy::left_learners(shards, &seen).await?);
        if learns || left {
            // The plan must know of them.
            return Ok(Changing::Yes);
        }
        tidy::strays(shards, &seen).await;
        tidy::forget(shards, &seen).await?;
        if !seen.cluster.paused {
            self.mend(shards, &seen).await?;
            self.even_leads(shards, &seen).await?;
        }
        let stopped = seen.placements.keys().flat_map(|shard| {
            let voters = seen.stopped_voters(*shard).into_values();
            voters.map(|node| (*shard, node))
        });
        self.stopped = stopped.collect();
        Ok(if self.drivers.is_empty() { Changing::No } else { Changing::Yes })
    }

    /// Has a task carried out, unless it is being so already.
    fn carry_out(&mut self, shards: &Arc<Shards>, task: TaskId) {
        let driving = drive::drive(Arc::downgrade(shards), task);
        let ended = self.ended.clone();
        self.drivers.entry(task).or_insert_with(|| {
            tokio::spawn(async move {
                driving.await;
                ended.notify_one();
            })
        });
    }

    /// Sizes that were not asked for this time are those of the last time.
    fn remember_sizes(&mut self, seen: &mut Observed) {
        for (node, report) in &mut seen.reports {
            for group in &mut report.groups {
                let known = self.sizes.entry((*node, group.shard)).or_insert(0);
                match group.bytes {
                    0 => group.bytes = *known,
                    bytes => *known = bytes,
                }
            }
        }
    }

    /// Starts tasks that bring shards to their replicas.
    async fn mend(&mut self, shards: &Arc<Shards>, seen: &Observed) -> Result<(), Error> {
        let running = seen.running().count();
        let room = self.config.tasks_max.saturating_sub(running);
        let moves = seen.view(&self.loads.per_second()).mend();
        // A node that is silent for a moment keeps what it has.
        let wanted = moves.into_iter().filter(|wanted| match *wanted {
            Move::Replace { shard, from, .. } => {
                let stopped = seen.stopped_voters(shard).into_values().any(|node| node == from);
                !self.is_away(seen, from) && (!stopped || self.stays_stopped(shard, from))
            }
            Move::Remove { from, .. } => !self.is_away(seen, from),
            Move::Rebuild { shard, at } => self.stays_stopped(shard, at),
            Move::Add { .. } | Move::Lead { .. } => true,
        });
        for wanted in wanted.take(room).collect::<Vec<_>>() {
            match begin(shards, seen, wanted, Purpose::Mend).await {
                Ok(task) => {
                    tracing::info!(task = task.id, ?wanted, "mending");
                    self.carry_out(shards, task.id);
                }
                Err(Error::Refused(refusal)) => tracing::debug!(%refusal, "not mended now"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a voter was seen stopped by this look and the one before: two nodes' reports are not
    /// of the same moment.
    fn stays_stopped(&self, shard: ShardId, at: NodeId) -> bool {
        self.stopped.contains(&(shard, at))
    }

    /// Not heard, and not yet for so long that it counts as dead.
    fn is_away(&self, seen: &Observed, node: NodeId) -> bool {
        let heard = self.heard.get(&node);
        !seen.answers(node) && heard.is_none_or(|at| at.elapsed() < self.config.dead_after)
    }

    /// Hands one lead over, once nothing has changed for a while.
    async fn even_leads(&mut self, shards: &Arc<Shards>, seen: &Observed) -> Result<(), Error> {
        let view = seen.view(&self.loads.per_second());
        let leads: Vec<Option<NodeId>> = view.shards.iter().map(|shard| shard.leader).collect();
        let now = Instant::now();
        let must = seen.members().any(|(_, row)| row.state != crate::meta::NodeState::Active)
            || view.nodes.iter().any(|node| node.short);
        if self.settled.0 != leads {
            self.settled = (leads, now);
        }
        if !self.drivers.is_empty() || (self.settled.1.elapsed() < self.config.settle && !must) {
            return Ok(());
        }
        let moves = view.balance(By::Leaders);
        for wanted in moves {
            let Move::Lead { shard, to } = wanted else { continue };
            // Whoever leads shard 0 is busy enough with it; it moves only if it must.
            if shard == META_SHARD && !must {
                continue;
            }
            if let Err(error) = crate::admin::lead(shards, seen, shard, to).await {
                tracing::debug!(%shard, %to, %error, "the lead stays");
            }
        }
        self.settled.1 = now;
        Ok(())
    }
}
