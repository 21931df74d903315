//! Threads that wait for the disk on behalf of readers that may not.
//!
//! A fixed number of threads and a bounded queue: unlike threads made on demand, they bound the
//! memory that reads under way can hold. A read that finds no place is refused at once.

use std::panic::AssertUnwindSafe;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::error::Error;

/// A read to do.
pub type Read = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that read.
pub struct ReadPool {
    sender: Mutex<Option<Sender<Read>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    queue_max: usize,
}

impl ReadPool {
    /// Starts `threads` threads of a name; at most `queue_max` reads wait for one.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn new(name: &str, threads: usize, queue_max: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(queue_max);
        let start = |number| {
            let receiver: Receiver<Read> = receiver.clone();
            std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || run(&receiver))
                .expect("the system starts a read thread")
        };
        let threads = (0..threads).map(start).collect();
        ReadPool { sender: Mutex::new(Some(sender)), threads: Mutex::new(threads), queue_max }
    }

    /// Hands a read over, or refuses it at once.
    pub fn submit(&self, read: Read) -> Result<(), Error> {
        let sent = match &*self.sender.lock() {
            None => return Err(Error::io("read", "the read pool is closed")),
            Some(sender) => sender.try_send(read),
        };
        sent.map_err(|error| match error {
            TrySendError::Full(_) => {
                Error::Overloaded { queue: "read queue (reads)", max: self.queue_max }
            }
            TrySendError::Disconnected(_) => Error::io("read", "every read thread has ended"),
        })
    }

    /// How many threads there are, while it is open.
    pub fn threads(&self) -> usize {
        self.threads.lock().len()
    }

    /// Reads that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.sender.lock().as_ref().map_or(0, Sender::len)
    }

    /// Refuses new reads, finishes the ones that wait, ends the threads. Blocks.
    pub fn close(&self) {
        drop(self.sender.lock().take());
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a read thread ended in a panic");
            }
        }
    }
}

fn run(reads: &Receiver<Read>) {
    for read in reads {
        // A read that panics has lost its caller's answer, but not the thread for the others.
        if std::panic::catch_unwind(AssertUnwindSafe(read)).is_err() {
            tracing::error!("a read panicked");
        }
    }
}
