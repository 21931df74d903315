//! The `Control` service's messages ↔ what they mean here.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::members_ask::Change as Asked;
use statehouse_proto::v1::peer_refusal::Kind;
use statehouse_proto::v1::propose_answer as answer;
use statehouse_store::{Body, Command, Entry, EntryId, ReplicaId, Reply};

use super::{Change, GroupReport, NodeReport};
use crate::clock::ClockReport;
use crate::raft::{Leader, Role, Stopped};
use crate::{Error, META_SHARD, MembersProblem, NodeId, ShardId};

pub fn shard(number: u32) -> Result<ShardId, Error> {
    let shard = u16::try_from(number).map(ShardId);
    shard.map_err(|_| Error::Invalid(format!("{number} is no shard")))
}

pub fn replica_ask(hello: v1::PeerHello, shard: ShardId, replica: ReplicaId) -> v1::ReplicaAsk {
    let (shard, replica) = (shard.0.into(), replica.0);
    v1::ReplicaAsk { hello: Some(hello), shard, replica, membership_at: None }
}

pub fn position(at: EntryId) -> v1::LogPosition {
    v1::LogPosition { term: at.term, index: at.index }
}

pub fn entry_id(at: v1::LogPosition) -> EntryId {
    EntryId { index: at.index, term: at.term }
}

pub fn members_ask(hello: v1::PeerHello, shard: ShardId, change: Change) -> v1::MembersAsk {
    let ids = |ids: Vec<ReplicaId>| ids.into_iter().map(|id| id.0).collect();
    let change = match change {
        Change::AddLearner { replica, node } => Asked::AddLearner(member(replica, node)),
        Change::RemoveLearner { replica } => Asked::RemoveLearner(replica.0),
        Change::Voters { add, remove } => {
            Asked::Voters(v1::members_ask::Voters { add: ids(add), remove: ids(remove) })
        }
        Change::Lead { replica } => Asked::Lead(replica.0),
    };
    v1::MembersAsk { hello: Some(hello), shard: shard.0.into(), change: Some(change) }
}

pub fn change(asked: Option<Asked>) -> Result<Change, Error> {
    let ids = |ids: Vec<u64>| ids.into_iter().map(ReplicaId).collect();
    Ok(match asked {
        Some(Asked::AddLearner(it)) => {
            Change::AddLearner { replica: ReplicaId(it.replica), node: NodeId(it.node) }
        }
        Some(Asked::RemoveLearner(replica)) => {
            Change::RemoveLearner { replica: ReplicaId(replica) }
        }
        Some(Asked::Voters(it)) => Change::Voters { add: ids(it.add), remove: ids(it.remove) },
        Some(Asked::Lead(replica)) => Change::Lead { replica: ReplicaId(replica) },
        None => return Err(Error::Invalid("a change of members that this node knows".into())),
    })
}

/// The one command that an ask to propose carries.
pub fn command(entry: Bytes) -> Result<Command, Error> {
    let one = || Error::Invalid("expected an entry with one command".into());
    let Ok(entry) = Entry::decode(entry) else { return Err(one()) };
    let Body::Commands(mut batch) = entry.body else { return Err(one()) };
    if batch.commands.len() > 1 {
        return Err(one());
    }
    batch.commands.pop().ok_or_else(one)
}

pub fn propose_answer(outcome: Result<(Reply, u64), Error>) -> v1::ProposeAnswer {
    use answer::Answer;
    let (reply, applied) = match outcome {
        Ok(done) => done,
        Err(error) => {
            let answer = Some(Answer::Refusal(refusal(&error)));
            return v1::ProposeAnswer { answer, applied: 0 };
        }
    };
    let answer = match reply {
        Reply::Written { version, .. } => Answer::Written(v1::propose_answer::Written { version }),
        Reply::Deleted { version, existed, .. } => {
            Answer::Deleted(v1::propose_answer::Deleted { version, existed })
        }
        Reply::Conflict { current } => Answer::Conflict(v1::propose_answer::Conflict { current }),
        Reply::Dropped => Answer::Dropped(v1::Ping::default()),
        other => Answer::Refusal(v1::PeerRefusal {
            kind: Kind::Refused.into(),
            detail: format!("the command was answered with {other:?}"),
            leader: None,
        }),
    };
    v1::ProposeAnswer { answer: Some(answer), applied }
}

pub fn proposed(
    answered: v1::ProposeAnswer,
    node: NodeId,
    shard: ShardId,
) -> Result<(Reply, u64), Error> {
    use answer::Answer;
    let reply = match answered.answer {
        Some(Answer::Written(it)) => {
            let (version, answer) = (it.version, Bytes::new());
            Reply::Written { version, answer, bytes: 0, repeated: false }
        }
        Some(Answer::Deleted(it)) => {
            Reply::Deleted { version: it.version, existed: it.existed, repeated: false }
        }
        Some(Answer::Conflict(it)) => Reply::Conflict { current: it.current },
        Some(Answer::Dropped(_)) => Reply::Dropped,
        Some(Answer::Refusal(refusal)) => return Err(refused(refusal, node, shard)),
        None => {
            let reason = "it answered with nothing that this node knows".to_owned();
            return Err(Error::Peer { node, reason, passes: false });
        }
    };
    Ok((reply, answered.applied))
}

pub fn answer(outcome: Result<(), Error>) -> v1::ControlAnswer {
    v1::ControlAnswer { refusal: outcome.err().map(|error| refusal(&error)) }
}

pub fn done(answered: v1::ControlAnswer, node: NodeId, shard: ShardId) -> Result<(), Error> {
    answered.refusal.map_or(Ok(()), |refusal| Err(refused(refusal, node, shard)))
}

pub fn announce_answer(outcome: Result<BTreeMap<NodeId, String>, Error>) -> v1::AnnounceAnswer {
    match outcome {
        Ok(book) => {
            let peers = book.into_iter().map(|(node, at)| (node.0, at)).collect();
            v1::AnnounceAnswer { refusal: None, peers }
        }
        Err(error) => v1::AnnounceAnswer { refusal: Some(refusal(&error)), peers: HashMap::new() },
    }
}

pub fn announced(
    answered: v1::AnnounceAnswer,
    node: NodeId,
) -> Result<BTreeMap<NodeId, String>, Error> {
    match answered.refusal {
        Some(refusal) => Err(refused(refusal, node, META_SHARD)),
        None => Ok(answered.peers.into_iter().map(|(node, at)| (NodeId(node), at)).collect()),
    }
}

/// An error as another node learns of it.
fn refusal(error: &Error) -> v1::PeerRefusal {
    let detail = error.to_string();
    let (kind, leader) = match error {
        Error::NotLeader { leader, .. } => (Kind::NotLeader, *leader),
        Error::Overloaded { .. } => (Kind::Busy, None),
        Error::Members { problem, .. } => match problem {
            MembersProblem::Busy
            | MembersProblem::Changed
            | MembersProblem::Behind(_)
            | MembersProblem::NotTaken(_)
            | MembersProblem::Belongs(_) => (Kind::Busy, None),
            MembersProblem::Unknown(_) | MembersProblem::Votes(_) | MembersProblem::Refused => {
                (Kind::Refused, None)
            }
        },
        Error::DisksFull { .. } => (Kind::NoRoom, None),
        Error::Closed { .. } => (Kind::Stopped, None),
        Error::OutcomeUnknown { .. } => (Kind::UnknownOutcome, None),
        _ => (Kind::Refused, None),
    };
    let leader = leader.map(|leader| member(leader.replica, leader.node));
    v1::PeerRefusal { kind: kind.into(), detail, leader }
}

fn refused(refusal: v1::PeerRefusal, node: NodeId, shard: ShardId) -> Error {
    match refusal.kind() {
        Kind::NotLeader => Error::NotLeader { shard, leader: refusal.leader.map(leader) },
        Kind::UnknownOutcome => Error::OutcomeUnknown { reason: refusal.detail },
        Kind::Busy | Kind::Stopped | Kind::NoRoom => {
            Error::Peer { node, reason: refusal.detail, passes: true }
        }
        Kind::Unspecified
        | Kind::Gone
        | Kind::Unknown
        | Kind::Mismatch
        | Kind::Malformed
        | Kind::Refused => Error::Peer { node, reason: refusal.detail, passes: false },
    }
}

fn member(replica: ReplicaId, node: NodeId) -> v1::RaftMember {
    v1::RaftMember { replica: replica.0, node: node.0 }
}

fn leader(member: v1::RaftMember) -> Leader {
    Leader { replica: ReplicaId(member.replica), node: NodeId(member.node) }
}

fn members(members: &BTreeMap<ReplicaId, NodeId>) -> Vec<v1::RaftMember> {
    members.iter().map(|(replica, node)| member(*replica, *node)).collect()
}

fn members_of(members: Vec<v1::RaftMember>) -> BTreeMap<ReplicaId, NodeId> {
    members.into_iter().map(|it| (ReplicaId(it.replica), NodeId(it.node))).collect()
}

pub fn report_answer(report: NodeReport) -> v1::NodeReport {
    let groups = report.groups.into_iter().map(|it| v1::GroupReport {
        shard: it.shard.0.into(),
        replica: it.replica.0,
        role: match it.role {
            Role::Learner => 0,
            Role::Follower => 1,
            Role::Candidate => 2,
            Role::Leader => 3,
            Role::Stopped => 4,
        },
        term: it.term,
        leader: it.leader.map(|leader| member(leader.replica, leader.node)),
        last_index: it.last_index,
        committed: it.committed,
        applied: it.applied,
        voters: members(&it.voters),
        learners: members(&it.learners),
        joint: it.joint,
        matched: it.matched.into_iter().map(|(replica, index)| (replica.0, index)).collect(),
        bytes: it.bytes,
        commands: it.commands,
        receiving: it.receiving,
        membership_at: Some(position(it.membership_at)),
        membership_committed: it.membership_committed,
    });
    let stopped = report.stopped.into_iter().map(|it| v1::node_report::Stopped {
        shard: it.shard.0.into(),
        replica: it.replica.0,
        reason: it.reason,
        quarantined: it.quarantined,
    });
    v1::NodeReport {
        version: report.version,
        disk_free_bytes: report.disk_free_bytes,
        disk_short: report.disk_short,
        out_of_room: report.out_of_room,
        clock: report.clock.map(|it| v1::ClockReport { skew_ms: it.skew_ms, settled: it.settled }),
        groups: groups.collect(),
        stopped: stopped.collect(),
    }
}

pub fn report(report: v1::NodeReport) -> Result<NodeReport, Error> {
    let group = |it: v1::GroupReport| -> Result<GroupReport, Error> {
        Ok(GroupReport {
            shard: shard(it.shard)?,
            replica: ReplicaId(it.replica),
            role: match it.role {
                0 => Role::Learner,
                1 => Role::Follower,
                2 => Role::Candidate,
                3 => Role::Leader,
                _ => Role::Stopped,
            },
            term: it.term,
            leader: it.leader.map(leader),
            last_index: it.last_index,
            committed: it.committed,
            applied: it.applied,
            voters: members_of(it.voters),
            learners: members_of(it.learners),
            joint: it.joint,
            matched: it.matched.into_iter().map(|(id, index)| (ReplicaId(id), index)).collect(),
            bytes: it.bytes,
            commands: it.commands,
            receiving: it.receiving,
            membership_at: it.membership_at.map(entry_id).unwrap_or_default(),
            membership_committed: it.membership_committed,
        })
    };
    let stopped = |it: v1::node_report::Stopped| {
        let (shard, replica) = (shard(it.shard)?, ReplicaId(it.replica));
        Ok::<_, Error>(Stopped { shard, replica, reason: it.reason, quarantined: it.quarantined })
    };
    Ok(NodeReport {
        version: report.version,
        disk_free_bytes: report.disk_free_bytes,
        disk_short: report.disk_short,
        out_of_room: report.out_of_room,
        clock: report.clock.map(|it| ClockReport { skew_ms: it.skew_ms, settled: it.settled }),
        groups: report.groups.into_iter().map(group).collect::<Result<_, _>>()?,
        stopped: report.stopped.into_iter().map(stopped).collect::<Result<_, _>>()?,
    })
}
