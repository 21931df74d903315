//! Carries a task out, step by step, and writes down each step before the next is taken.
//!
//! Whoever takes over after the controller dies takes the step written last once more: each may
//! be taken twice.

use std::sync::{Arc, Weak};
use std::time::Duration;

use statehouse_store::ReplicaId;

use super::observe::{Observed, observe};
use crate::clock::unix_now_ms;
use crate::control::Change;
use crate::meta::{self, NodeState};
use crate::placement::Refusal;
use crate::task::{Side, State, Step, Task, TaskId};
use crate::{Error, MembersProblem, NodeId, ShardId, Shards};

/// The wait after a step went wrong, and the longest after it did again and again.
const RETRY_WAIT: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often a new replica's progress is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How often progress is written down.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// How many entries a new replica may lack when it gets a vote.
const BEHIND_MAX: u64 = 64;

fn replica(side: Side) -> ReplicaId {
    ReplicaId(side.replica)
}

fn node(side: Side) -> NodeId {
    NodeId(side.node)
}

/// Carries a task out until it is over, the shards are gone, or this node leads no more.
pub(super) async fn drive(shards: Weak<Shards>, id: TaskId) {
    let (mut wait, mut said) = (RETRY_WAIT, String::new());
    loop {
        let Some(here) = shards.upgrade() else { return };
        let leads = here.meta().is_ok_and(|meta| meta.leads());
        if !leads {
            return;
        }
        match turn(&here, id).await {
            Ok(Turn::Over) => return,
            Ok(Turn::Taken) => wait = RETRY_WAIT,
            Ok(Turn::Held) => {
                drop(here);
                tokio::time::sleep(RETRY_WAIT).await;
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    tracing::warn!(task = id, %error, "a step went wrong");
                    said.clone_from(&text);
                }
                let noted = meta::change_task(&here, id, |task| {
                    let mut task = task.ok_or_else(|| unknown(id))?;
                    task.failed(text.clone(), unix_now_ms());
                    Ok(Some(task))
                });
                if let Err(error) = noted.await {
                    tracing::warn!(task = id, %error, "what went wrong is not written down");
                }
                drop(here);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_WAIT_MAX);
            }
        }
    }
}

fn unknown(id: TaskId) -> Error {
    Error::Unknown { kind: "task", name: id.to_string() }
}

enum Turn {
    /// A step is done.
    Taken,
    /// Tasks are paused.
    Held,
    /// Nothing is left to do.
    Over,
}

/// Takes the step that is written down, and writes down the next.
async fn turn(shards: &Arc<Shards>, id: TaskId) -> Result<Turn, Error> {
    let Some(task) = meta::tasks(shards)?.remove(&id) else { return Ok(Turn::Over) };
    if task.is_over() {
        return Ok(Turn::Over);
    }
    if meta::cluster(shards)?.is_some_and(|row| row.paused) && task.state == State::Running {
        return Ok(Turn::Held);
    }
    if !claim(shards, &task).await? {
        let reason = "another change of the shard came first".to_owned();
        meta::change_task(shards, id, |task| {
            let mut task = task.ok_or_else(|| unknown(id))?;
            (task.state, task.step, task.error) = (State::Failed, Step::End, Some(reason.clone()));
            Ok(Some(task))
        })
        .await?;
        return Ok(Turn::Over);
    }
    match task.state {
        State::Undoing => undo(shards, &task).await?,
        _ => step(shards, &task).await?,
    }
    let (taken, undoing) = (task.step, task.state == State::Undoing);
    meta::change_task(shards, id, |now| {
        let mut now = now.ok_or_else(|| unknown(id))?;
        // Somebody may have asked meanwhile to undo it: then this step counts for nothing.
        if now.step != taken || (now.state == State::Undoing) != undoing {
            return Ok(None);
        }
        now.advance(unix_now_ms());
        Ok(Some(now))
    })
    .await?;
    Ok(Turn::Taken)
}

/// Makes the shard's next change this task's. It stays so until the task gives it up.
async fn claim(shards: &Shards, task: &Task) -> Result<bool, Error> {
    if task.step > Step::Record {
        return Ok(true);
    }
    let claimed = meta::change_placement(shards, ShardId(task.shard), |row| {
        let mut row = row.ok_or_else(|| unknown_shard(task.shard))?;
        if row.task.is_some() {
            return Ok(None);
        }
        row.task = Some(task.id);
        Ok(Some(row))
    });
    Ok(claimed.await?.is_some_and(|row| row.task == Some(task.id)))
}

fn unknown_shard(shard: u16) -> Error {
    Refusal::UnknownShard(ShardId(shard)).into()
}

async fn step(shards: &Arc<Shards>, task: &Task) -> Result<(), Error> {
    let shard = ShardId(task.shard);
    let control = shards.control();
    match (task.step, task.add, task.remove) {
        (Step::Create, Some(add), _) => control.create(node(add), shard, replica(add)).await,
        (Step::Learn, Some(add), _) => {
            let change = Change::AddLearner { replica: replica(add), node: node(add) };
            let seen = observe(shards, false).await?;
            control.change(led_at(&seen, shard)?, shard, change).await
        }
        (Step::CatchUp, Some(add), _) => catch_up(shards, task, add).await,
        (Step::Join, ..) => join(shards, task).await,
        (Step::Record, ..) => record(shards, task).await,
        (Step::Destroy, _, Some(remove)) => destroy(shards, shard, remove).await,
        _ => Ok(()),
    }
}

/// The node where a shard is led.
fn led_at(seen: &Observed, shard: ShardId) -> Result<NodeId, Error> {
    let leader = seen.leader(shard).map(|(node, _)| node);
    leader.ok_or(Error::NotLeader { shard, leader: None })
}

/// Waits until the new replica lacks next to nothing.
async fn catch_up(shards: &Arc<Shards>, task: &Task, add: Side) -> Result<(), Error> {
    let shard = ShardId(task.shard);
    let mut written = tokio::time::Instant::now();
    let mut seen_bytes = task.bytes;
    loop {
        let seen = observe(shards, task.bytes == 0).await?;
        let (_, leader) = seen.leader(shard).ok_or(Error::NotLeader { shard, leader: None })?;
        let matched = leader.matched.get(&replica(add)).copied().unwrap_or(0);
        let there = seen.replica(node(add), shard);
        let has_state = there.is_some_and(|group| group.applied + BEHIND_MAX >= leader.committed);
        if let Some(reason) = seen.stopped(node(add), replica(add)) {
            give_up(shards, task, &reason).await?;
            return Ok(());
        }
        // By the entry that made it a learner it knows that it belongs to the group, and refuses
        // to be destroyed by whoever knows less.
        let belongs = matched >= leader.membership_at.index;
        // One that was never reached has nothing, however short the log is.
        if belongs && matched > 0 && matched + BEHIND_MAX >= leader.last_index && has_state {
            return Ok(());
        }
        seen_bytes = seen_bytes.max(leader.bytes);
        if written.elapsed() > PROGRESS_INTERVAL {
            written = tokio::time::Instant::now();
            let applied = there.map_or(0, |group| group.applied);
            let (have, all) = (matched.min(applied), leader.last_index);
            let now = meta::change_task(shards, task.id, |now| {
                let mut now = now.ok_or_else(|| unknown(task.id))?;
                (now.entries, now.bytes, now.error) = ((have, all), seen_bytes, None);
                Ok(Some(now))
            });
            // Somebody asked to undo it: the next turn does.
            let asked = now.await?.is_some_and(|now| now.state != task.state);
            if asked {
                return Ok(());
            }
            if !seen.answers(node(add)) {
                let reason = "the new replica's node does not answer".to_owned();
                return Err(Error::Unreachable { node: node(add), reason });
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The new replica will never catch up: the task is undone, and the shard mended by another.
async fn give_up(shards: &Shards, task: &Task, reason: &str) -> Result<(), Error> {
    let reason = format!("the new replica has stopped: {reason}");
    meta::change_task(shards, task.id, |now| {
        let mut now = now.ok_or_else(|| unknown(task.id))?;
        now.give_up(reason.clone(), unix_now_ms());
        Ok(Some(now))
    })
    .await
    .map(|_| ())
}

/// Gives the new replica its vote and takes the old one's. A leader that is to leave hands over
/// first.
async fn join(shards: &Arc<Shards>, task: &Task) -> Result<(), Error> {
    let shard = ShardId(task.shard);
    let control = shards.control();
    let seen = observe(shards, false).await?;
    let (leader, group) = seen.leader(shard).ok_or(Error::NotLeader { shard, leader: None })?;
    let add: Vec<ReplicaId> = task.add.map(replica).into_iter().collect();
    let remove: Vec<ReplicaId> = task.remove.map(replica).into_iter().collect();
    if !remove.contains(&group.replica) {
        return control.change(leader, shard, Change::Voters { add, remove }).await;
    }
    control.change(leader, shard, Change::Voters { add: add.clone(), remove: Vec::new() }).await?;
    let others = group.voters.iter().filter(|(id, at)| !remove.contains(id) && seen.answers(**at));
    let furthest = others.max_by_key(|(id, _)| group.matched.get(id).copied());
    let to = add.first().copied().or_else(|| furthest.map(|(id, _)| *id));
    let to = to.ok_or(Error::NotLeader { shard, leader: None })?;
    control.change(leader, shard, Change::Lead { replica: to }).await?;
    let at = task.add.map(node).or_else(|| group.voters.get(&to).copied()).unwrap_or(leader);
    control.change(at, shard, Change::Voters { add: Vec::new(), remove }).await
}

/// Writes down where the shard's replicas are now, and lets the next change come.
async fn record(shards: &Shards, task: &Task) -> Result<(), Error> {
    meta::change_placement(shards, ShardId(task.shard), |row| {
        let mut row = row.ok_or_else(|| unknown_shard(task.shard))?;
        let gone = task.remove.map(|side| side.replica);
        row.replicas.retain(|(replica, _)| Some(*replica) != gone);
        if let Some(add) = task.add
            && !row.replicas.contains(&(add.replica, add.node))
        {
            row.replicas.push((add.replica, add.node));
        }
        row.task = None;
        Ok(Some(row))
    })
    .await
    .map(|_| ())
}

/// Ends the replica that left. One on a node that does not answer is ended when that is back: the
/// controller looks for replicas that belong to nothing.
async fn destroy(shards: &Shards, shard: ShardId, remove: Side) -> Result<(), Error> {
    let gone =
        meta::nodes(shards)?.get(&node(remove)).is_none_or(|row| row.state == NodeState::Removed);
    if gone {
        return Ok(());
    }
    // As its leader knows it now: an order that comes late says how old it is.
    let seen = observe(shards, false).await?;
    let member = || Error::Members { shard, problem: MembersProblem::Belongs(replica(remove)) };
    let left_at = seen.left_at(shard, replica(remove)).ok_or_else(member)?;
    match shards.control().destroy(node(remove), shard, (replica(remove), left_at)).await {
        Err(Error::Unreachable { .. }) => Ok(()),
        done => done,
    }
}

/// Takes back what was done: the learner goes, then the new replica.
async fn undo(shards: &Arc<Shards>, task: &Task) -> Result<(), Error> {
    let shard = ShardId(task.shard);
    if let Some(add) = task.add {
        let seen = observe(shards, false).await?;
        let learner =
            seen.leader(shard).filter(|(_, group)| group.learners.contains_key(&replica(add)));
        if let Some((leader, _)) = learner {
            let change = Change::RemoveLearner { replica: replica(add) };
            shards.control().change(leader, shard, change).await?;
        }
        destroy(shards, shard, add).await?;
    }
    meta::change_placement(shards, shard, |row| {
        let mut row = row.ok_or_else(|| unknown_shard(task.shard))?;
        if row.task != Some(task.id) {
            return Ok(None);
        }
        row.task = None;
        Ok(Some(row))
    })
    .await
    .map(|_| ())
}
