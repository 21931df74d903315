//! Whether what a peer says can be true. Pure.
//!
//! openraft takes its messages for those of an honest peer: a gap between entries, a term that
//! overflows or an answer about entries that were never sent would make it panic, or cut committed
//! entries off. So every message is held to what each honest one keeps to before openraft sees it,
//! in both directions; one that does not is refused as malformed, and changes nothing.
//!
//! Does not guard against a peer that lies within these bounds: nodes of one cluster trust each
//! other.

use std::sync::Arc;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use statehouse_proto::v1;
use statehouse_proto::v1::appended::Result as Appended;
use statehouse_store::{Body, EntryId};

use super::convert::{self, Malformed};
use super::types::{self, Entry, LogId, TypeConfig, Vote};

/// The newest term that is taken from a peer: with an election each microsecond it is reached after
/// two thousand years. Far from overflowing, wherever one is added.
pub const TERM_MAX: u64 = 1 << 56;

/// The last index of an entry that is taken from a peer, for the same reason.
pub const INDEX_MAX: u64 = 1 << 56;

pub type Append = AppendEntriesRequest<TypeConfig>;

fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { what })
}

/// A vote of anybody.
pub fn vote(vote: Option<v1::RaftVote>) -> Result<Vote, Malformed> {
    match vote {
        None => malformed("message: it has no vote"),
        Some(vote) if vote.term > TERM_MAX => malformed("vote: no election reaches its term"),
        Some(vote) => Ok(convert::vote_of_proto(vote)),
    }
}

/// The vote of a replica that leads, from that replica.
pub fn leader(kept: Option<v1::RaftVote>, from: u64) -> Result<Vote, Malformed> {
    let vote = vote(kept)?;
    if vote.leader_id.voted_for != from {
        return malformed("vote: it is of another replica than the sender");
    }
    if !vote.committed {
        return malformed("vote: expected one that a quorum has granted");
    }
    Ok(vote)
}

/// The vote that a replica asks for, from that replica.
fn candidate(kept: Option<v1::RaftVote>, from: u64) -> Result<Vote, Malformed> {
    let vote = vote(kept)?;
    if vote.leader_id.voted_for != from {
        return malformed("vote: it is of another replica than the sender");
    }
    if vote.committed {
        return malformed("vote: expected one that is yet to be granted");
    }
    Ok(vote)
}

/// An entry's name, of a term that the sender's vote can have seen.
pub fn entry_id(at: Option<v1::LogPosition>, vote: &Vote) -> Result<EntryId, Malformed> {
    let Some(at) = at else { return Ok(EntryId::default()) };
    let id = convert::entry_id(at);
    if id.index > INDEX_MAX {
        return malformed("position: no log is that long");
    }
    if id.term > vote.leader_id.term {
        return malformed("position: its term is newer than the vote's");
    }
    if id.index == 0 && id.term > 0 {
        return malformed("position: it has a term and no index");
    }
    Ok(id)
}

fn log_id(at: Option<v1::LogPosition>, vote: &Vote) -> Result<Option<LogId>, Malformed> {
    entry_id(at, vote).map(types::log_id)
}

/// A heartbeat of a replica.
pub fn heartbeat(beat: &v1::Heartbeat, from: u64) -> Result<Append, Malformed> {
    let vote = leader(beat.vote, from)?;
    Ok(Append {
        prev_log_id: log_id(beat.previous, &vote)?,
        leader_commit: log_id(beat.committed, &vote)?,
        entries: Vec::new(),
        vote,
    })
}

/// Entries of a replica: each follows the one before it.
pub fn append(request: v1::AppendRequest, from: u64) -> Result<Append, Malformed> {
    let vote = leader(request.vote, from)?;
    let mut last = entry_id(request.previous, &vote)?;
    let mut entries = Vec::with_capacity(request.entries.len());
    for bytes in request.entries {
        let entry = entry(bytes)?;
        let id = entry.stored.id();
        if id.index != last.index + 1 {
            return malformed("append: its entries do not follow one another");
        }
        if id.index > INDEX_MAX {
            return malformed("append: no log is that long");
        }
        if id.term < last.term || id.term > vote.leader_id.term {
            return malformed("append: terms go back, or are newer than the vote's");
        }
        last = id;
        entries.push(entry);
    }
    Ok(Append {
        prev_log_id: log_id(request.previous, &vote)?,
        leader_commit: log_id(request.committed, &vote)?,
        entries,
        vote,
    })
}

fn entry(bytes: Bytes) -> Result<Entry, Malformed> {
    let stored = statehouse_store::Entry::decode(bytes).map_err(|_| Malformed { what: "entry" })?;
    if let Body::Membership(membership) = &stored.body {
        convert::membership_of_bytes(membership)?;
    }
    Ok(Entry::from(Arc::new(stored)))
}

/// What a replica asks for that wants to lead.
pub fn vote_request(ask: &v1::VoteAsk, from: u64) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let vote = candidate(ask.vote, from)?;
    let last = log_id(ask.last, &vote)?;
    let mut request = VoteRequest::new(vote, last);
    request.leadership_transfer = ask.transfer;
    Ok(request)
}

/// What a replica that leads says of who shall lead next.
pub fn transfer_request(
    ask: &v1::TransferAsk,
    from: u64,
) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    let vote = leader(ask.from_leader, from)?;
    let last = log_id(ask.last, &vote)?;
    Ok(TransferLeaderRequest::new(vote, ask.to_replica, last))
}

/// The answer to a candidate.
pub fn vote_response(answer: &v1::VoteAnswer) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let vote = vote(answer.vote)?;
    // Its log may be of a newer term than its vote: that is of who it last followed.
    let newest = Vote::new(TERM_MAX, 0);
    Ok(VoteResponse::new(vote, log_id(answer.last, &newest)?, answer.granted))
}

/// What was sent of a log in one request: an answer is about nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub term: u64,
    /// The entry before the first.
    pub previous: EntryId,
    /// The last one; the one before if there are none.
    pub last: EntryId,
}

impl Sent {
    pub fn of(request: &Append) -> Self {
        let previous = types::entry_id_or_default(request.prev_log_id);
        let last = request.entries.last().map_or(previous, |entry| entry.stored.id());
        Sent { term: request.vote.leader_id.term, previous, last }
    }

    /// The answer to the request, as openraft takes it.
    pub fn answered(
        self,
        answer: v1::Appended,
    ) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
        match answer.result {
            None => malformed("answer to an append: it is empty"),
            Some(Appended::Matched(at)) => {
                let at = convert::entry_id(at);
                if at.index > self.last.index || at.term > self.term {
                    return malformed("answer to an append: more matches than was sent");
                }
                Ok(Ok(types::log_id(at)))
            }
            Some(Appended::Conflict(at)) => match types::log_id(convert::entry_id(at)) {
                Some(conflict) if convert::entry_id(at) == self.previous => {
                    Ok(Err(StreamAppendError::Conflict(conflict)))
                }
                _ => malformed("answer to an append: it names a conflict elsewhere"),
            },
            Some(Appended::Higher(higher)) => {
                let higher = vote(Some(higher))?;
                if higher.leader_id.term < self.term {
                    return malformed("answer to an append: the vote is not newer");
                }
                Ok(Err(StreamAppendError::HigherVote(higher)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: u64 = 7;

    fn position(term: u64, index: u64) -> v1::LogPosition {
        v1::LogPosition { term, index }
    }

    fn leads(term: u64) -> v1::RaftVote {
        v1::RaftVote { term, replica: FROM, committed: true }
    }

    fn blank(term: u64, index: u64) -> Bytes {
        statehouse_store::Entry::new(index, term, Body::Blank).encode()
    }

    fn request(entries: &[(u64, u64)]) -> v1::AppendRequest {
        v1::AppendRequest {
            vote: Some(leads(5)),
            previous: Some(position(3, 10)),
            committed: Some(position(3, 9)),
            entries: entries.iter().map(|(term, index)| blank(*term, *index)).collect(),
            ..Default::default()
        }
    }

    fn what(refused: Result<impl Sized, Malformed>) -> &'static str {
        refused.err().expect("it makes no sense").what
    }

    #[test]
    fn entries_follow_one_another_or_none_is_taken() {
        let fine = append(request(&[(3, 11), (4, 12), (5, 13)]), FROM).unwrap();
        assert_eq!(fine.entries.len(), 3);
        let gap = "append: its entries do not follow one another";
        for entries in [&[(3, 12)][..], &[(3, 11), (3, 13)], &[(3, 11), (3, 11)], &[(3, 10)]] {
            assert_eq!(what(append(request(entries), FROM)), gap, "{entries:?}");
        }
        let terms = "append: terms go back, or are newer than the vote's";
        for entries in [&[(2, 11)][..], &[(4, 11), (3, 12)], &[(6, 11)], &[(u64::MAX, 11)]] {
            assert_eq!(what(append(request(entries), FROM)), terms, "{entries:?}");
        }
        let last =
            v1::AppendRequest { previous: Some(position(3, u64::MAX)), ..request(&[(3, 0)]) };
        assert_eq!(what(append(last, FROM)), "position: no log is that long");
        let torn = v1::AppendRequest { entries: vec![blank(3, 11).slice(..5)], ..request(&[]) };
        assert_eq!(what(append(torn, FROM)), "entry");
    }

    #[test]
    fn votes_are_of_their_sender_and_of_a_term_that_elections_reach() {
        assert!(leader(Some(leads(TERM_MAX)), FROM).is_ok());
        for term in [TERM_MAX + 1, u64::MAX] {
            assert_eq!(what(leader(Some(leads(term)), FROM)), "vote: no election reaches its term");
        }
        assert_eq!(what(leader(None, FROM)), "message: it has no vote");
        let other = "vote: it is of another replica than the sender";
        assert_eq!(what(leader(Some(leads(5)), FROM + 1)), other);
        let asked = v1::RaftVote { committed: false, ..leads(5) };
        assert!(leader(Some(asked), FROM).is_err());
        let ask = |vote, last| v1::VoteAsk { vote: Some(vote), last, transfer: false };
        assert!(vote_request(&ask(asked, Some(position(5, 3))), FROM).is_ok());
        assert!(vote_request(&ask(asked, None), FROM + 1).is_err());
        assert!(
            vote_request(&ask(leads(5), None), FROM).is_err(),
            "granted before it was asked for"
        );
        let newer = "position: its term is newer than the vote's";
        assert_eq!(what(vote_request(&ask(asked, Some(position(6, 3))), FROM)), newer);
    }

    #[test]
    fn a_heartbeat_names_entries_that_its_sender_can_know() {
        let beat = |previous, committed| v1::Heartbeat {
            vote: Some(leads(5)),
            previous: Some(previous),
            committed: Some(committed),
        };
        assert!(heartbeat(&beat(position(3, 10), position(3, 9)), FROM).is_ok());
        assert!(heartbeat(&beat(position(0, 0), position(0, 0)), FROM).is_ok());
        for wrong in [position(6, 1), position(3, u64::MAX), position(3, 0)] {
            assert!(heartbeat(&beat(wrong, position(3, 9)), FROM).is_err(), "{wrong:?}");
            assert!(heartbeat(&beat(position(3, 9), wrong), FROM).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_answer_is_about_what_was_sent() {
        let sent = Sent::of(&append(request(&[(3, 11), (4, 12)]), FROM).unwrap());
        let answered = |result| sent.answered(v1::Appended { result: Some(result) });
        for at in [position(3, 11), position(4, 12), position(0, 0)] {
            assert!(matches!(answered(Appended::Matched(at)), Ok(Ok(_))), "{at:?}");
        }
        for at in [position(4, 13), position(3, u64::MAX), position(6, 12)] {
            assert!(answered(Appended::Matched(at)).is_err(), "{at:?}");
        }
        assert!(matches!(answered(Appended::Conflict(position(3, 10))), Ok(Err(_))));
        for at in [position(3, 9), position(0, 0), position(4, 12)] {
            assert!(answered(Appended::Conflict(at)).is_err(), "{at:?}");
        }
        assert!(matches!(answered(Appended::Higher(leads(6))), Ok(Err(_))));
        assert!(answered(Appended::Higher(leads(4))).is_err());
        assert!(answered(Appended::Higher(leads(u64::MAX))).is_err());
        assert!(sent.answered(v1::Appended::default()).is_err());
    }
}
