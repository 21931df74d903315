//! What clients did and were answered, written down as it happens.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::harness::history::{Action, History, Look, Nanos, Outcome, Seen, Write};

/// Everything that was written down.
pub struct Record {
    began: Instant,
    histories: Mutex<HashMap<String, History>>,
    errors: Mutex<HashMap<String, u64>>,
    last_error: Mutex<String>,
    answered: AtomicU64,
    next_id: AtomicU64,
}

impl Record {
    pub fn new() -> Self {
        Record {
            began: Instant::now(),
            histories: Mutex::default(),
            errors: Mutex::default(),
            last_error: Mutex::default(),
            answered: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    pub fn now(&self) -> Nanos {
        self.began.elapsed().as_nanos() as Nanos
    }

    /// An id that no other write of the run has.
    pub fn write_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Writes down a write once no send of it is under way any more.
    pub fn write(&self, key: &str, (id, action): (u64, Action), sent: Nanos, outcome: Outcome) {
        if outcome != Outcome::Unknown {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        let write = Write { id, action, sent, outcome };
        self.histories.lock().unwrap().entry(key.to_owned()).or_default().writes.push(write);
    }

    /// Writes down what an answer that came just now told.
    pub fn look(
        &self,
        key: &str,
        (sent, of, lag): (Nanos, Option<u64>, Option<Nanos>),
        seen: Seen,
    ) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let look = Look { sent, answered: self.now(), seen, of, lag };
        self.histories.lock().unwrap().entry(key.to_owned()).or_default().looks.push(look);
    }

    pub fn error(&self, reason: &str, message: String) {
        *self.errors.lock().unwrap().entry(reason.to_owned()).or_default() += 1;
        *self.last_error.lock().unwrap() = message;
    }

    pub fn errors(&self) -> HashMap<String, u64> {
        self.errors.lock().unwrap().clone()
    }

    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap().clone()
    }

    pub fn histories(&self) -> HashMap<String, History> {
        self.histories.lock().unwrap().clone()
    }
}
