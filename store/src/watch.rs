//! Watches for flushes and compactions that fail.
//!
//! A compaction that met lost rows is damage of the replica whose rows they are, and the others go
//! on. RocksDB keeps other failures to itself. Out of space, it waits for space, and a write that
//! waits for a flush waits along, for as long as it takes. A node that can't write must stop
//! instead, so that others take over.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::db::Db;
use crate::error::Error;
use crate::failure::Failure;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The thread that watches; ends when this is dropped.
pub(crate) struct Watch {
    thread: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Watch {
    pub fn start(db: Arc<Db>, failure: Arc<Failure>) -> Result<Self, Error> {
        let (end, ended) = crossbeam_channel::bounded(0);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || watch(&db, &failure, &ended))
            .map_err(|error| Error::io("start the watching thread", error))?;
        Ok(Watch { thread: Mutex::new(Some((end, thread))) })
    }

    /// Ends the thread. Blocks.
    pub fn close(&self) {
        let Some((end, thread)) = self.thread.lock().take() else { return };
        drop(end);
        if thread.join().is_err() {
            tracing::error!("the watching thread ended in a panic");
        }
    }
}

fn watch(db: &Arc<Db>, failure: &Failure, ended: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
        db.report_spoiled();
        if let Some(why) = db.background_failure() {
            failure.raise(&Error::io("flush or compact", why));
            return db.fail_waiting_writes();
        }
    }
}
