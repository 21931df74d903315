//! openraft's structs ↔ the peer protocol, and the bytes kept on disk.
//!
//! openraft's own serialisation is never used: its structs change between releases. What is kept
//! on disk (votes and memberships) is a format byte and then a protobuf message.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use statehouse_proto::v1;
use statehouse_store::EntryId;

use super::types::{self, LogId, Member, Membership, Vote};

/// The format of votes and memberships on disk.
const FORMAT: u8 = 1;

/// Bytes that are not what this version writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}")]
pub struct Malformed {
    pub what: &'static str,
}

fn malformed(what: &'static str) -> Malformed {
    Malformed { what }
}

pub fn vote_to_bytes(vote: &Vote) -> Bytes {
    to_bytes(&vote_to_proto(vote))
}

pub fn vote_of_bytes(bytes: &Bytes) -> Result<Vote, Malformed> {
    of_bytes::<v1::RaftVote>(bytes, "vote").map(vote_of_proto)
}

pub fn membership_to_bytes(membership: &Membership) -> Bytes {
    to_bytes(&membership_to_proto(membership))
}

pub fn membership_of_bytes(bytes: &Bytes) -> Result<Membership, Malformed> {
    membership_of_proto(of_bytes(bytes, "membership")?)
}

fn to_bytes(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + message.encoded_len());
    out.put_u8(FORMAT);
    message.encode(&mut out).expect("the buffer grows");
    out.freeze()
}

fn of_bytes<M: Message + Default>(bytes: &Bytes, what: &'static str) -> Result<M, Malformed> {
    if bytes.first() != Some(&FORMAT) {
        return Err(malformed(what));
    }
    M::decode(bytes.slice(1..)).map_err(|_| malformed(what))
}

pub fn vote_to_proto(vote: &Vote) -> v1::RaftVote {
    v1::RaftVote {
        term: vote.leader_id.term,
        replica: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub fn vote_of_proto(vote: v1::RaftVote) -> Vote {
    match vote.committed {
        true => Vote::new_committed(vote.term, vote.replica),
        false => Vote::new(vote.term, vote.replica),
    }
}

pub fn position(log_id: Option<LogId>) -> Option<v1::LogPosition> {
    let id = types::entry_id(log_id?);
    Some(v1::LogPosition { term: id.term, index: id.index })
}

pub fn log_id(position: Option<v1::LogPosition>) -> Option<LogId> {
    types::log_id(position.map_or(EntryId::default(), entry_id))
}

pub fn entry_id(position: v1::LogPosition) -> EntryId {
    EntryId { index: position.index, term: position.term }
}

pub fn membership_to_proto(membership: &Membership) -> v1::RaftMembership {
    let voters = membership.get_joint_config().iter();
    v1::RaftMembership {
        voters: voters
            .map(|set| v1::VoterSet { replicas: set.iter().copied().collect() })
            .collect(),
        members: membership
            .nodes()
            .map(|(replica, member)| v1::RaftMember { replica: *replica, node: member.node })
            .collect(),
    }
}

pub fn membership_of_proto(membership: v1::RaftMembership) -> Result<Membership, Malformed> {
    let voters: Vec<BTreeSet<u64>> =
        membership.voters.into_iter().map(|set| set.replicas.into_iter().collect()).collect();
    let members: BTreeMap<u64, Member> = membership
        .members
        .into_iter()
        .map(|member| (member.replica, Member { node: member.node }))
        .collect();
    if voters.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, members).map_err(|_| malformed("membership"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_survive_a_round_trip_and_no_other_format() {
        for vote in [Vote::new(0, 3), Vote::new(7, 1), Vote::new_committed(u64::MAX, 9)] {
            let bytes = vote_to_bytes(&vote);
            assert_eq!(vote_of_bytes(&bytes), Ok(vote));
            let newer = Bytes::from([&[FORMAT + 1], &bytes[1..]].concat());
            assert!(vote_of_bytes(&newer).is_err());
        }
        assert!(vote_of_bytes(&Bytes::new()).is_err());
    }

    #[test]
    fn memberships_survive_a_round_trip_and_voters_have_nodes() {
        let members = BTreeMap::from([1, 2, 3, 4].map(|id| (id, Member { node: id * 10 })));
        let old = BTreeSet::from([1, 2, 3]);
        let new = BTreeSet::from([2, 3, 4]);
        for sets in [vec![old.clone()], vec![old, new]] {
            let membership = Membership::new(sets, members.clone()).unwrap();
            let bytes = membership_to_bytes(&membership);
            assert_eq!(membership_of_bytes(&bytes), Ok(membership));
        }
        assert_eq!(
            membership_of_bytes(&membership_to_bytes(&Membership::default())),
            Ok(Membership::default())
        );
        let stray = v1::RaftMembership {
            voters: vec![v1::VoterSet { replicas: vec![1] }],
            members: Vec::new(),
        };
        assert!(membership_of_proto(stray).is_err());
    }
}
