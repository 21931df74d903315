//! The thread that all groups of a node run on.
//!
//! An entry passes through several tasks of its group. On one thread they hand over to each other
//! without waking anybody, and what the commit and apply threads report for many groups is taken
//! up at once; spread over a pool, every step would wake another core. Nothing here waits for a
//! disk or a socket: the runtime has timers only.

use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::Error;

/// The thread. Stops when told, or when dropped.
pub struct RaftThread {
    handle: Handle,
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl RaftThread {
    /// Starts the thread.
    pub fn start() -> Result<Self, Error> {
        let failed = |error| Error::Invalid(format!("start the raft thread: {error}"));
        let runtime = Builder::new_current_thread().enable_time().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("raft".into()).spawn(move || {
            // A dropped sender is a word to stop as well.
            let _ = runtime.block_on(stopped);
        });
        let thread = thread.map_err(failed)?;
        Ok(RaftThread { handle, running: Mutex::new(Some((stop, thread))) })
    }

    /// Where to spawn what shall run on it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs something on it, and waits for it.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.handle.spawn(work).await;
        done.unwrap_or_else(|error| Err(Error::Closed { reason: error.to_string() }))
    }

    /// Stops the thread; what still runs on it is dropped. Blocks.
    pub fn stop(&self) {
        let Some((stop, thread)) = self.running.lock().take() else { return };
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("the raft thread had panicked");
        }
    }
}
