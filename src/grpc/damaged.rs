//! Calls that find damage in this node's replica: they go to another one with the same rows.
//!
//! The replica is reported first. If the shard's other voters are alive, it serves nothing from
//! then on (`cluster/raft/quarantine.rs`), and the call is refused as by a node that does not lead:
//! whoever routes it tries again elsewhere. If nobody else holds the rows, the caller is told what
//! is damaged.

use statehouse_cluster::raft::Group;

use crate::failure::{DAMAGED, Failure, Reason};

/// Turns a failure by damage into a refusal that is tried again at another replica, if there is
/// one. Damage is found before a call has any effect: by reads, also those of a write.
pub async fn elsewhere<T>(group: &Group, done: Result<T, Failure>) -> Result<T, Failure> {
    let failure = match done {
        Ok(done) => return Ok(done),
        Err(failure) => failure,
    };
    match failure.reason {
        Reason::Corrupt if failure.value(DAMAGED).is_some() => {
            group.report_damage(&failure.message).await;
        }
        // What a reader is told of a replica that was quarantined meanwhile: nothing happened.
        Reason::Unavailable => {}
        _ => return Err(failure),
    }
    match group.has_failed() {
        true => Err(Failure::not_leader(group.shard(), None)),
        false => Err(failure),
    }
}
