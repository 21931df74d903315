//! Threads on which large states are taken from their streams and given to them.
//!
//! Of a chunk everything is done at once: it is put together, summed, cut. Beside small calls on
//! the same threads that would be a long turn each, and many of them in a row. So it is done on
//! threads of its own, to which the system gives less than to others.

use tokio::runtime::{Builder, Handle, Runtime};

use crate::scheduling;

/// The threads. Dropped, they end, and what they were at is given up.
pub struct StreamThreads {
    /// Until it is dropped.
    runtime: Option<Runtime>,
}

impl StreamThreads {
    /// Starts half as many as there are processors.
    pub fn start() -> std::io::Result<StreamThreads> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(processors.div_ceil(2))
            .thread_name("streams")
            .on_thread_start(scheduling::give_way)
            .enable_all()
            .build()?;
        Ok(StreamThreads { runtime: Some(runtime) })
    }

    /// Where to put work.
    pub fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("it is there until it is dropped").handle().clone()
    }
}

impl Drop for StreamThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait: this may be an async thread.
            runtime.shutdown_background();
        }
    }
}
