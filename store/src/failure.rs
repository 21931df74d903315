//! The store's memory of a failed write or sync: once failed, failed for good.
//!
//! After a failed sync nobody knows what the disk holds: the kernel may have dropped the pages
//! and say success next time. Going on would be a guess, so nothing is taken any more and
//! whoever runs the node is told, once.

use std::sync::Arc;
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::error::Error;

/// Told once that the store has failed; on the thread that saw it, so it must not block.
pub type FailureHook = Box<dyn Fn(&Error) + Send + Sync>;

/// Whether the disk has failed.
#[derive(Default)]
pub(crate) struct Failure {
    reason: OnceLock<Arc<str>>,
    hooks: Mutex<Vec<FailureHook>>,
}

impl Failure {
    /// The failure, if there was one.
    pub fn get(&self) -> Option<Error> {
        self.reason.get().map(|reason| Error::DiskFailed { reason: reason.clone() })
    }

    /// Refuses if the disk has failed.
    pub fn check(&self) -> Result<(), Error> {
        self.get().map_or(Ok(()), Err)
    }

    /// The disk has failed. Answers what everybody is told: the first failure.
    pub fn raise(&self, error: &Error) -> Error {
        let hooks = {
            let mut hooks = self.hooks.lock();
            if self.reason.set(error.to_string().into()).is_ok() {
                tracing::error!(%error, "disk failed: the store stops");
            }
            std::mem::take(&mut *hooks)
        };
        let failed = self.get().expect("a reason was set just now or before");
        // Not under the lock: a hook may look at the store.
        for hook in hooks {
            hook(&failed);
        }
        failed
    }

    /// Calls the hook when the disk fails: at once if it has.
    pub fn on_failure(&self, hook: FailureHook) {
        let mut hooks = self.hooks.lock();
        let Some(failed) = self.get() else { return hooks.push(hook) };
        drop(hooks);
        hook(&failed);
    }
}
