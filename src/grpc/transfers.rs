//! What bounds large transfers: the bytes that they hold in this node's memory, all together, how
//! long one may stand still, and the threads that they have.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::failure::{Failure, Reason};
use crate::metrics::StreamMetrics;

/// What is counted: permits are 32 bits.
const UNIT_BYTES: usize = 1 << 10;

/// Streams that bring states, at a time.
pub const STREAMS_MAX: usize = 32;

/// The room for transfers. Cheap to clone.
#[derive(Clone)]
pub struct Transfers {
    room: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    units_max: usize,
    stall_after: Duration,
    threads: Handle,
    counted: StreamMetrics,
}

impl Transfers {
    /// Room for so many bytes. A transfer waits so long for its share, and for its other end.
    /// They are worked on by threads of their own.
    pub fn new(bytes_max: usize, stall_after: Duration, threads: Handle) -> Self {
        let units_max = (bytes_max / UNIT_BYTES).max(1);
        let room = Arc::new(Semaphore::new(units_max));
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let counted = StreamMetrics::default();
        Transfers { room, streams, units_max, stall_after, threads, counted }
    }

    /// Works on a transfer where no small call waits for its turn.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.threads.spawn(work)
    }

    /// What counts streams.
    pub fn counted(&self) -> &StreamMetrics {
        &self.counted
    }

    /// A place for a stream that brings a state: what waits of all of them fits into the window of
    /// a connection, so that small calls on the same one get through.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            Failure::overloaded(format!("{STREAMS_MAX} states are being written: the limit"))
        })
    }

    /// Waits for room, which is given back when the answer is dropped.
    pub async fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let units = bytes.div_ceil(UNIT_BYTES).clamp(1, self.units_max);
        let held = self.room.clone().acquire_many_owned(units as u32);
        match tokio::time::timeout(self.stall_after, held).await {
            Ok(held) => Ok(held.expect("the semaphore is never closed")),
            Err(_) => {
                let bytes_max = self.units_max * UNIT_BYTES;
                let message = format!("large transfers hold their limit of {bytes_max} bytes");
                Err(Failure::overloaded(message))
            }
        }
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> u64 {
        ((self.units_max - self.room.available_permits()) * UNIT_BYTES) as u64
    }

    /// How long the other end of a transfer may stand still.
    pub fn stall_after(&self) -> Duration {
        self.stall_after
    }

    /// The other end did stand still, for so long at least, and is cut off.
    pub fn stalled(&self, what: &str, stood: Duration) -> Failure {
        self.counted.cut_off();
        let message = format!("nothing was {what} for {} s", stood.as_secs_f32());
        Failure::new(Reason::StreamStalled, message)
    }
}

/// Awaits work that has a task of its own and no effect until it is done.
pub async fn finished<T>(task: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    finished_or(task, Reason::Unavailable).await
}

/// Awaits work that has a task of its own; `given_up` is the reason if the node stops before it is
/// done.
pub async fn finished_or<T>(
    task: JoinHandle<Result<T, Failure>>,
    given_up: Reason,
) -> Result<T, Failure> {
    task.await.unwrap_or_else(|error| {
        Err(match error.is_panic() {
            true => Failure::new(Reason::Internal, "the work on a stream panicked"),
            false => Failure::new(given_up, "the node is stopping"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_not_taken_for_a_stop() {
        let panics = tokio::spawn(async { panic!("on purpose") });
        let failed = finished::<()>(panics).await.unwrap_err();
        assert_eq!(failed.reason, Reason::Internal);
        let ended = tokio::spawn(std::future::pending());
        ended.abort();
        let failed = finished::<()>(ended).await.unwrap_err();
        assert_eq!(failed.reason, Reason::Unavailable);
        let ended = tokio::spawn(std::future::pending());
        ended.abort();
        let failed = finished_or::<()>(ended, Reason::OutcomeUnknown).await.unwrap_err();
        assert_eq!(failed.reason, Reason::OutcomeUnknown, "it may have had its effect");
    }

    #[tokio::test]
    async fn what_finds_no_room_waits_and_is_refused_in_the_end() {
        let transfers = Transfers::new(100 << 10, Duration::from_millis(10), Handle::current());
        let first = transfers.hold(60 << 10).await.unwrap();
        let refused = transfers.hold(50 << 10).await.unwrap_err();
        assert!(refused.retry_after.is_some(), "{refused}");
        drop(first);
        let all = transfers.hold(1 << 30).await.unwrap();
        assert_eq!(all.num_permits(), 100, "one that is larger than all gets all");
    }
}
