//! What calls under way may hold of the node's memory, taken before the work and given back after
//! the answer.
//!
//! Each call has a [`Charge`]. It takes the bytes of its request, then those of the states it is
//! about to read, before they are read. What finds no room is refused at once, with a time after
//! which to try again: nothing queues here. Only a stream that many calls share waits, unread, for
//! room to take its next message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::{Failure, Reason};
use crate::memory::{MESSAGE_COPIES, Plan};
use crate::size::ByteSize;

/// What is counted: permits taken together are 32 bits.
const UNIT_BYTES: u64 = 256;

/// What a call holds beside its bytes: its task, its place in queues.
const CALL_BYTES: u64 = 1 << 10;

/// While the process has nearly all the memory that it may, calls that want more are refused.
const SMALL_BYTES: u64 = 16 << 10;

/// The room for calls. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    room: Arc<Semaphore>,
    units_max: u64,
    answer_bytes_max: u64,
    /// The process has nearly all the memory that it may.
    pressed: AtomicBool,
    refused: AtomicU64,
}

/// What one call holds; given back when it is dropped.
pub struct Charge {
    shared: Arc<Shared>,
    units: AtomicU32,
    answer_bytes_max: u64,
    answer_bytes: AtomicU64,
    states_bytes: AtomicU64,
}

impl Admission {
    /// Room for the calls of a node.
    pub fn new(plan: &Plan) -> Self {
        let units_max = (plan.requests / UNIT_BYTES).min(u64::from(u32::MAX));
        let shared = Shared {
            room: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
            answer_bytes_max: plan.message,
            pressed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        };
        Admission { shared: Arc::new(shared) }
    }

    /// A call's, that holds nothing yet.
    pub fn charge(&self) -> Arc<Charge> {
        self.charge_up_to(self.shared.answer_bytes_max)
    }

    /// The same, of a read that may answer so many bytes.
    pub fn charge_up_to(&self, answer_bytes_max: u64) -> Arc<Charge> {
        Arc::new(Charge {
            shared: self.shared.clone(),
            units: AtomicU32::new(0),
            answer_bytes_max,
            answer_bytes: AtomicU64::new(0),
            states_bytes: AtomicU64::new(0),
        })
    }

    /// Takes room if there is any, or refuses.
    pub fn try_hold(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failure> {
        self.shared.admit(bytes)?;
        let room = self.shared.room.clone();
        let held = room.try_acquire_many_owned(self.shared.units(bytes));
        held.map_err(|_| self.shared.full(bytes))
    }

    /// Waits for room.
    pub async fn hold(&self, bytes: u64) -> OwnedSemaphorePermit {
        let held = self.shared.room.clone().acquire_many_owned(self.shared.units(bytes));
        held.await.expect("the semaphore is never closed")
    }

    /// Whether the process has nearly all the memory that it may: then only small calls pass.
    pub fn press(&self, pressed: bool) {
        self.shared.pressed.store(pressed, Relaxed);
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> u64 {
        let free = self.shared.room.available_permits() as u64;
        (self.shared.units_max - free) * UNIT_BYTES
    }

    /// Calls refused for want of room, so far.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Relaxed)
    }
}

impl Shared {
    fn units(&self, bytes: u64) -> u32 {
        bytes.div_ceil(UNIT_BYTES).min(self.units_max) as u32
    }

    fn admit(&self, bytes: u64) -> Result<(), Failure> {
        match bytes > SMALL_BYTES && self.pressed.load(Relaxed) {
            true => Err(self.full(bytes)),
            false => Ok(()),
        }
    }

    fn full(&self, bytes: u64) -> Failure {
        self.refused.fetch_add(1, Relaxed);
        let max = self.units_max * UNIT_BYTES;
        let message = format!("calls hold the node's memory for them: {bytes} more of {max} bytes");
        Failure::overloaded(message).with("request_bytes_max", max)
    }
}

impl Charge {
    /// Takes room for a request of so many bytes, which is worked on from now on.
    pub fn request(&self, bytes: usize) -> Result<(), Failure> {
        self.take(CALL_BYTES + MESSAGE_COPIES * bytes as u64)
    }

    /// Takes room for a part of the answer, before it is read. One that no message can hold is
    /// refused for good.
    pub fn answer(&self, bytes: u64) -> Result<(), Failure> {
        let max = self.answer_bytes_max;
        let all = self.answer_bytes.fetch_add(bytes, Relaxed) + bytes;
        if all > max {
            // Of a batch, smaller states may still fit.
            self.answer_bytes.fetch_sub(bytes, Relaxed);
            let max = ByteSize(max);
            let message = format!("the answer has {all} bytes at least, and may have {max}");
            return Err(Failure::new(Reason::AnswerTooLarge, message));
        }
        self.take(MESSAGE_COPIES * bytes)
    }

    /// Takes room for states that are scored: what was taken for them before counts.
    pub fn states(&self, bytes: u64) -> Result<(), Failure> {
        let max = self.shared.units_max * UNIT_BYTES;
        if bytes > max {
            let message = format!(
                "the states of one row take {} while they are scored, and calls have {}",
                ByteSize(bytes),
                ByteSize(max)
            );
            return Err(Failure::too_large_for_memory(message, bytes, max));
        }
        let before = self.states_bytes.fetch_max(bytes, Relaxed);
        self.take(bytes.saturating_sub(before))
    }

    /// Takes room.
    pub fn take(&self, bytes: u64) -> Result<(), Failure> {
        self.shared.admit(bytes)?;
        let units = self.shared.units(bytes);
        match self.shared.room.try_acquire_many(units) {
            Ok(held) => held.forget(),
            Err(_) => return Err(self.shared.full(bytes)),
        }
        self.units.fetch_add(units, Relaxed);
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shared.room.add_permits(*self.units.get_mut() as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Chosen;

    fn admission() -> Admission {
        let (requests, message) = (Some(ByteSize::mib(10)), Some(ByteSize::mib(4)));
        let chosen = Chosen { requests, message, ..Chosen::default() };
        Admission::new(&Plan::new(ByteSize::mib(512), &chosen).unwrap())
    }

    #[test]
    fn what_finds_no_room_is_refused_and_what_is_dropped_makes_room() {
        let admission = admission();
        let first = admission.charge();
        first.request(3 << 20).unwrap();
        first.answer(1 << 20).unwrap();
        let second = admission.charge();
        let refused = second.request(2 << 20).unwrap_err();
        assert_eq!(refused.reason, Reason::Overloaded);
        assert!(refused.retry_after.is_some(), "{refused}");
        assert_eq!(admission.refused(), 1);
        second.request(100).unwrap();
        drop(first);
        second.request(2 << 20).unwrap();
        drop(second);
        assert_eq!(admission.held_bytes(), 0);
    }

    #[test]
    fn an_answer_that_no_message_holds_is_refused_for_good() {
        let admission = admission();
        let charge = admission.charge();
        charge.answer(3 << 20).unwrap();
        let refused = charge.answer(2 << 20).unwrap_err();
        assert_eq!(refused.reason, Reason::AnswerTooLarge);
        assert!(refused.retry_after.is_none(), "{refused}");
        charge.answer(1 << 20).expect("what is smaller still fits");
    }

    #[test]
    fn states_that_no_room_holds_are_refused_for_good() {
        let admission = admission();
        let charge = admission.charge();
        charge.states(9 << 20).unwrap();
        let refused = charge.states(11 << 20).unwrap_err();
        assert_eq!(refused.reason, Reason::TooLargeForMemory);
        assert!(refused.retry_after.is_none(), "{refused}");
        assert!(refused.message.contains("request_bytes_max"), "{refused}");
        assert_eq!(refused.value("needed_bytes"), Some("11534336"));
    }

    #[test]
    fn under_pressure_only_small_calls_pass() {
        let admission = admission();
        admission.press(true);
        admission.charge().request(1_000).unwrap();
        admission.charge().request(1 << 20).unwrap_err();
        assert!(admission.try_hold(1 << 20).is_err());
        admission.press(false);
        admission.charge().request(1 << 20).unwrap();
    }
}
