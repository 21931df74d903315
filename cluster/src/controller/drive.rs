//! Carries a task out, step by step, and writes down each step before the next is taken.
//!
//! Whoever takes over after the controller dies takes the step written last once more: each may
//! be taken twice. A controller that was out of touch may take it long after the task is over: what
//! it writes down holds only while the shard is the task's.

use std::sync::{Arc, Weak};
use std::time::Duration;

use statehouse_store::ReplicaId;

use super::observe::{Observed, observe};
use crate::clock::unix_now_ms;
use crate::control::{Change, GroupReport};
use crate::meta::{self, NodeState, PlacementRow};
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
            // Somebody else may have brought it to its end meanwhile.
            if task.is_over() {
                return Ok(None);
            }
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
    let changed = meta::change_placement(shards, ShardId(task.shard), |row| {
        let row = row.ok_or_else(|| unknown_shard(task.shard))?;
        Ok(claimed(row, meta::tasks(shards)?.get(&task.id)))
    });
    Ok(changed.await?.is_some_and(|row| row.task == Some(task.id)))
}

/// The row once a task, as it is known by now, has claimed its shard; `None` if it leaves it as it
/// is. A controller that was out of touch may take a task for running that another one has ended:
/// nobody would give up the claim of such a task.
fn claimed(mut row: PlacementRow, task: Option<&Task>) -> Option<PlacementRow> {
    let task = task.filter(|task| row.task.is_none() && !task.is_over())?;
    row.task = Some(task.id);
    Some(row)
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
        let there = seen.replica(node(add), shard);
        if let Some(reason) = seen.stopped(node(add), replica(add)) {
            give_up(shards, task, &reason).await?;
            return Ok(());
        }
        if has_caught_up(leader, there, replica(add)) {
            return Ok(());
        }
        seen_bytes = seen_bytes.max(leader.bytes);
        if written.elapsed() > PROGRESS_INTERVAL {
            written = tokio::time::Instant::now();
            let applied = there.map_or(0, |group| group.applied);
            let have = matched(leader, replica(add)).min(applied);
            let all = leader.last_index;
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

/// Up to which index a leader knows a replica's log to be like its own.
fn matched(leader: &GroupReport, replica: ReplicaId) -> u64 {
    leader.matched.get(&replica).copied().unwrap_or(0)
}

/// Whether a new replica lacks next to nothing, by what the leader and its own node say.
fn has_caught_up(leader: &GroupReport, there: Option<&GroupReport>, new: ReplicaId) -> bool {
    let matched = matched(leader, new);
    let has_state = there.is_some_and(|group| group.applied + BEHIND_MAX >= leader.committed);
    // By the entry that made it a learner it knows that it belongs to the group, and refuses to be
    // destroyed by whoever knows less.
    let belongs = matched >= leader.membership_at.index;
    // One that was never reached has nothing, however short the log is.
    belongs && matched > 0 && matched + BEHIND_MAX >= leader.last_index && has_state
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
        let row = row.ok_or_else(|| unknown_shard(task.shard))?;
        Ok(recorded(row, task))
    })
    .await
    .map(|_| ())
}

/// The row once a task has changed its shard; `None` if the shard is not the task's any more:
/// another controller has recorded it, and what came later stands.
fn recorded(mut row: PlacementRow, task: &Task) -> Option<PlacementRow> {
    if row.task != Some(task.id) {
        return None;
    }
    let gone = task.remove.map(|side| side.replica);
    row.replicas.retain(|(replica, _)| Some(*replica) != gone);
    if let Some(add) = task.add
        && !row.replicas.contains(&(add.replica, add.node))
    {
        row.replicas.push((add.replica, add.node));
    }
    row.task = None;
    Some(row)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use statehouse_store::EntryId;

    use super::*;
    use crate::raft::Role;
    use crate::task::Purpose;

    const NEW: ReplicaId = ReplicaId(9);
    const OLD: ReplicaId = ReplicaId(1);

    fn report(replica: ReplicaId, applied: u64) -> GroupReport {
        GroupReport {
            shard: ShardId(3),
            replica,
            role: Role::Leader,
            term: 1,
            leader: None,
            last_index: 100,
            committed: 100,
            applied,
            voters: BTreeMap::new(),
            learners: BTreeMap::new(),
            joint: false,
            matched: BTreeMap::new(),
            bytes: 0,
            commands: 0,
            receiving: 0,
            membership_at: EntryId { index: 98, term: 1 },
            membership_committed: true,
        }
    }

    fn exchange(id: TaskId, remove: Side, add: Side) -> Task {
        Task::new(id, 3, (Some(add), Some(remove)), Purpose::Asked, 100)
    }

    fn at(replica: ReplicaId, node: u64) -> Side {
        Side { replica: replica.0, node }
    }

    #[test]
    fn a_replica_gets_no_vote_before_it_has_the_entry_that_made_it_a_learner() {
        let there = report(NEW, 97);
        let caught_up = |matched| {
            let leader = GroupReport { matched, ..report(OLD, 100) };
            has_caught_up(&leader, Some(&there), NEW)
        };
        assert!(!caught_up(BTreeMap::new()), "it was never reached");
        // It lacks three entries of a hundred, and does not know that it belongs to the group.
        assert!(!caught_up(BTreeMap::from([(NEW, 97)])));
        assert!(caught_up(BTreeMap::from([(NEW, 98)])));
        let empty = GroupReport { matched: BTreeMap::from([(NEW, 98)]), ..report(OLD, 100) };
        assert!(!has_caught_up(&empty, Some(&report(NEW, 0)), NEW), "it has applied nothing");
        assert!(!has_caught_up(&empty, None, NEW), "its node does not answer");
    }

    #[test]
    fn a_change_that_another_controller_has_recorded_is_not_recorded_again_over_later_ones() {
        let others = [(ReplicaId(2), NodeId(1)), (ReplicaId(3), NodeId(4))];
        let row = PlacementRow::new([&[(OLD, NodeId(2))], &others[..]].concat());
        let first = exchange(7, at(OLD, 2), at(NEW, 3));
        let claimed_row = claimed(row, Some(&first)).unwrap();
        let recorded_row = recorded(claimed_row, &first).unwrap();
        let placed = |row: &PlacementRow| row.replicas().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(placed(&recorded_row), [ReplicaId(2), ReplicaId(3), NEW]);
        assert_eq!(recorded_row.task, None);
        assert_eq!(recorded(recorded_row.clone(), &first), None);

        // The new replica goes again, by another task: the first one must neither bring it back
        // nor take the claim from the other.
        let second = exchange(8, at(NEW, 3), at(ReplicaId(10), 2));
        let claimed_row = claimed(recorded_row, Some(&second)).unwrap();
        assert_eq!(recorded(claimed_row.clone(), &first), None);
        let recorded_row = recorded(claimed_row, &second).unwrap();
        assert_eq!(placed(&recorded_row), [ReplicaId(2), ReplicaId(3), ReplicaId(10)]);
        assert_eq!(recorded(recorded_row, &first), None);
    }

    #[test]
    fn a_task_that_is_over_claims_nothing() {
        let free = PlacementRow::new(vec![(OLD, NodeId(2))]);
        let mut task = exchange(7, at(OLD, 2), at(NEW, 3));
        let taken = claimed(free.clone(), Some(&task)).unwrap();
        assert_eq!(taken.task, Some(7));
        assert_eq!(claimed(taken, Some(&task)), None, "it has it already");
        task.state = State::Done;
        assert_eq!(claimed(free.clone(), Some(&task)), None);
        assert_eq!(claimed(free, None), None, "it is forgotten");
    }
}
