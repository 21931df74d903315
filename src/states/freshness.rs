//! How fresh a read must be, and when a replica may serve it.

use std::sync::Arc;
use std::time::Duration;

use statehouse_cluster::raft::Group;

use crate::failure::Failure;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// It sees every write acknowledged before it began.
    Linearizable,
    /// It may miss what was acknowledged within the last while.
    Bounded {
        /// How long that may be.
        lag_max: Duration,
    },
}

impl Freshness {
    /// Whether a replica may serve such a read, as far as it can tell without asking anybody.
    pub fn may_be_served_by(self, group: &Group) -> bool {
        group.leads() || self.lag_of(group).is_some()
    }

    /// Waits until a replica may serve the read that asks now; answers how far behind it may be.
    /// `NOT_LEADER` if it may not.
    ///
    /// A leader that nobody else votes with has nobody to ask: then nothing is waited for.
    pub async fn reached_by(self, group: &Arc<Group>) -> Result<Duration, Failure> {
        if let Some(lag) = self.lag_of(group) {
            return Ok(lag);
        }
        group.linearizable().await?;
        Ok(Duration::ZERO)
    }

    /// How far behind a replica is, if that is little enough.
    fn lag_of(self, group: &Group) -> Option<Duration> {
        match self {
            Freshness::Linearizable => None,
            Freshness::Bounded { lag_max } => group.lag().filter(|lag| *lag <= lag_max),
        }
    }
}
