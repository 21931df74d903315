//! Proposals by a node that need not lead the shard: to whoever does, again until one goes through.
//!
//! Why the last attempt failed is not what became of the command: an attempt before it may have had
//! its effect and lost its answer. So what can't be denied is answered as unknown.

use std::time::Instant;

use statehouse_store::{Command, Reply};

use super::{PROPOSE_PATIENCE, RETRY_WAIT, RETRY_WAIT_MAX, Shards};
use crate::{Error, META_SHARD, NodeId, ShardId};

impl Shards {
    /// Proposes wherever the shard is led, and awaits the reply. For commands that may be made
    /// twice, since an answer may get lost: those with a request id, drops, sweeps. After a
    /// command of shard 0, this node has applied it.
    ///
    /// Errors: `OutcomeUnknown` if any attempt may have had its effect; all others: nothing
    /// happened.
    pub async fn propose(&self, shard: ShardId, command: Command) -> Result<Reply, Error> {
        let deadline = Instant::now() + PROPOSE_PATIENCE;
        let mut wait = RETRY_WAIT;
        let mut attempts = Attempts::default();
        loop {
            let target = attempts.hint.take().or_else(|| self.leader_of(shard));
            let outcome = match target {
                Some(node) => self.control.propose(node, shard, command.clone()).await,
                None => Err(Error::NotLeader { shard, leader: None }),
            };
            match outcome {
                Ok((reply, at)) => return self.seen_here(shard, at).await.map(|()| reply),
                Err(error) => attempts.failed(error, target, Instant::now() < deadline)?,
            }
            if attempts.hint.is_none() {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_WAIT_MAX);
            }
        }
    }

    /// After a command of shard 0, waits until this node has applied it.
    async fn seen_here(&self, shard: ShardId, at: u64) -> Result<(), Error> {
        if shard != META_SHARD {
            return Ok(());
        }
        let seen = async { self.meta()?.wait_applied(at).await };
        // It was done: whoever asked must not take it for undone.
        seen.await.map_err(Error::after_effect)
    }
}

/// What the attempts of one proposal came to so far.
#[derive(Default)]
struct Attempts {
    /// Who leads, as the last one that was asked says.
    hint: Option<NodeId>,
    /// One of them may have had its effect.
    unknown: Option<Error>,
}

impl Attempts {
    /// Takes why an attempt failed; the error of them all if it was the last.
    fn failed(
        &mut self,
        error: Error,
        target: Option<NodeId>,
        tries_left: bool,
    ) -> Result<(), Error> {
        match &error {
            Error::NotLeader { leader, .. } if tries_left => {
                // A hint that leads back is no hint.
                self.hint = leader.map(|leader| leader.node).filter(|node| Some(*node) != target);
            }
            Error::OutcomeUnknown { .. } if tries_left => self.unknown = Some(error),
            Error::Unreachable { .. } | Error::Peer { passes: true, .. } if tries_left => {}
            _ => return Err(self.unknown.take().unwrap_or(error)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Leader;
    use statehouse_store::ReplicaId;

    const SHARD: ShardId = ShardId(3);
    const ASKED: Option<NodeId> = Some(NodeId(1));

    fn nobody() -> Error {
        Error::NotLeader { shard: SHARD, leader: None }
    }

    fn unknown() -> Error {
        Error::OutcomeUnknown { reason: "the answer did not come".to_owned() }
    }

    fn unreachable() -> Error {
        Error::Unreachable { node: NodeId(1), reason: "connection refused".to_owned() }
    }

    #[test]
    fn nothing_happened_if_no_attempt_can_have_had_its_effect() {
        let mut attempts = Attempts::default();
        assert!(attempts.failed(unreachable(), ASKED, true).is_ok());
        assert!(attempts.failed(nobody(), ASKED, true).is_ok());
        let last = attempts.failed(unreachable(), ASKED, false);
        assert!(matches!(last, Err(Error::Unreachable { .. })));
    }

    #[test]
    fn what_an_earlier_attempt_may_have_done_is_not_denied_by_a_later_one() {
        for last in [nobody(), unreachable(), Error::Closed { reason: "stopping".to_owned() }] {
            let mut attempts = Attempts::default();
            assert!(attempts.failed(unknown(), ASKED, true).is_ok());
            assert!(attempts.failed(nobody(), ASKED, true).is_ok());
            let end = attempts.failed(last, ASKED, false);
            assert!(matches!(end, Err(Error::OutcomeUnknown { .. })), "{end:?}");
        }
    }

    #[test]
    fn a_hint_is_followed_unless_it_leads_back() {
        let says = |node| {
            let leader = Some(Leader { replica: ReplicaId(9), node: NodeId(node) });
            Error::NotLeader { shard: SHARD, leader }
        };
        let mut attempts = Attempts::default();
        attempts.failed(says(2), ASKED, true).unwrap();
        assert_eq!(attempts.hint, Some(NodeId(2)));
        attempts.failed(says(1), ASKED, true).unwrap();
        assert_eq!(attempts.hint, None);
    }
}
