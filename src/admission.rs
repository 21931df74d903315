//! What calls under way may hold of the node's memory, taken before the work and given back after
//! the answer.
//!
//! Each call has a [`Charge`]. It takes the bytes of its request, then those of the states it is
//! about to read, before they are read. What finds no room is refused at once, with a time after
//! which to try again: nothing queues here. Only a stream that many calls share waits, unread, for
//! room to take its next message.
//!
//! Room is shared fairly. Before a call is refused, answers that nobody takes lose what they hold
//! ([`Admission::when_full`]). Of what is left, no connection and no address may hold more than a
//! multiple of what is free (`admission/owners.rs`), and a part is for small calls alone.

mod owners;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use owners::Owner;
use owners::Owners;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::failure::{Failure, Reason};
use crate::memory::{MESSAGE_COPIES, Plan};
use crate::size::ByteSize;

/// What is counted: permits taken together are 32 bits.
const UNIT_BYTES: u64 = 256;

/// What a call holds beside its bytes: its task, its place in queues.
const CALL_BYTES: u64 = 1 << 10;

/// While the process has nearly all the memory that it may, calls that want more are refused; and
/// those that want no more have a part of the room for themselves.
const SMALL_BYTES: u64 = 16 << 10;

/// Of the room, small calls have one part in so many for themselves, and this at most.
const SMALL_SHARE: u64 = 8;
const SMALL_SHARE_BYTES_MAX: u64 = 2 << 20;

/// How long whoever waits for room waits between two looks.
const WAIT_INTERVAL: Duration = Duration::from_millis(5);

/// Makes room by letting go of what nobody takes, until it is told that there is enough.
type MakeRoom = Box<dyn Fn(&dyn Fn() -> bool) + Send + Sync>;

/// The room for calls. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    room: Arc<Semaphore>,
    units_max: u64,
    /// Of these, for small calls alone.
    small_units: u64,
    answer_bytes_max: u64,
    /// The process has nearly all the memory that it may.
    pressed: AtomicBool,
    refused: AtomicU64,
    owners: Owners,
    make_room: OnceLock<MakeRoom>,
    /// Held by the one whose turn it is to wait.
    waiting: Mutex<()>,
}

/// What one call holds; given back when it is dropped.
pub struct Charge {
    shared: Arc<Shared>,
    units: AtomicU32,
    answer_bytes_max: u64,
    answer_bytes: AtomicU64,
    states_bytes: AtomicU64,
    /// Whose call it is; `None`: nobody's in particular.
    owner: Option<Owner>,
}

impl Admission {
    /// Room for the calls of a node.
    pub fn new(plan: &Plan) -> Self {
        let units_max = (plan.requests / UNIT_BYTES).min(u64::from(u32::MAX));
        let shared = Shared {
            room: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
            small_units: (units_max / SMALL_SHARE).min(SMALL_SHARE_BYTES_MAX / UNIT_BYTES),
            answer_bytes_max: plan.message,
            pressed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            owners: Owners::default(),
            make_room: OnceLock::new(),
            waiting: Mutex::default(),
        };
        Admission { shared: Arc::new(shared) }
    }

    /// Calls this when a call finds no room: it lets go of what nobody takes until it is told that
    /// there is enough. Set once.
    pub fn when_full(&self, make_room: MakeRoom) {
        // A second one would be of another listener, of which there is none.
        let _ = self.shared.make_room.set(make_room);
    }

    /// Whose calls come over a connection from an address.
    pub fn owner(&self, peer: SocketAddr) -> Owner {
        self.shared.owners.of(peer)
    }

    /// A call's, that holds nothing yet.
    pub fn charge(&self, owner: Option<Owner>) -> Arc<Charge> {
        self.charge_up_to(self.shared.answer_bytes_max, owner)
    }

    /// The same, of a read that may answer so many bytes.
    pub fn charge_up_to(&self, answer_bytes_max: u64, owner: Option<Owner>) -> Arc<Charge> {
        Arc::new(Charge {
            shared: self.shared.clone(),
            units: AtomicU32::new(0),
            answer_bytes_max,
            answer_bytes: AtomicU64::new(0),
            states_bytes: AtomicU64::new(0),
            owner,
        })
    }

    /// Takes room if there is any, or refuses.
    pub fn try_hold(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failure> {
        self.shared.admit(bytes)?;
        let held = self.shared.room_for(bytes, (None, 0), || {
            self.shared.room.clone().try_acquire_many_owned(self.shared.units(bytes)).ok()
        });
        held.ok_or_else(|| self.shared.full(bytes))
    }

    /// Waits for room, in turn with others who wait. What is freed meanwhile is anybody's: who
    /// waits takes nothing of the part for small calls.
    pub async fn hold(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = self.shared.units(bytes);
        let take = || self.shared.room.clone().try_acquire_many_owned(units).ok();
        let mut turn = None;
        loop {
            if let Some(held) = self.shared.room_for(bytes, (None, 0), take) {
                return held;
            }
            match turn {
                // Woken by nobody: permits go back one by one, from everywhere.
                Some(_) => tokio::time::sleep(WAIT_INTERVAL).await,
                None => turn = Some(self.shared.waiting.lock().await),
            }
        }
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

    /// Takes room as `take` does, if it is the turn of this owner, whose call holds so many units
    /// already; else once more when what nobody takes has been let go of.
    fn room_for<T>(
        &self,
        bytes: u64,
        (owner, held): (Option<&Owner>, u64),
        take: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let units = u64::from(self.units(bytes));
        let allowed = || {
            let free = self.room.available_permits() as u64;
            let kept = if bytes > SMALL_BYTES { self.small_units } else { 0 };
            // The largest call needs all of the room, and gets it when nobody else has any.
            let alone = free + held == self.units_max;
            let fair = owner.is_none_or(|owner| owner.may_take((held, units), free));
            units <= free && (alone || (units + kept <= free && fair))
        };
        let attempt = || allowed().then(&take).flatten();
        attempt().or_else(|| {
            self.make_room.get()?(&allowed);
            attempt()
        })
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
        let take = || self.shared.room.try_acquire_many(units).ok();
        let whose = (self.owner.as_ref(), u64::from(self.units.load(Relaxed)));
        match self.shared.room_for(bytes, whose, take) {
            Some(held) => held.forget(),
            None => return Err(self.shared.full(bytes)),
        }
        self.units.fetch_add(units, Relaxed);
        if let Some(owner) = &self.owner {
            owner.took(u64::from(units));
        }
        Ok(())
    }

    /// Whose call it is.
    pub fn owner(&self) -> Option<Owner> {
        self.owner.clone()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let units = *self.units.get_mut();
        self.shared.room.add_permits(units as usize);
        if let Some(owner) = &self.owner {
            owner.gave_back(u64::from(units));
        }
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
        let first = admission.charge(None);
        first.request(3 << 20).unwrap();
        first.answer(1 << 20).unwrap();
        let second = admission.charge(None);
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
        let charge = admission.charge(None);
        charge.answer(3 << 20).unwrap();
        let refused = charge.answer(2 << 20).unwrap_err();
        assert_eq!(refused.reason, Reason::AnswerTooLarge);
        assert!(refused.retry_after.is_none(), "{refused}");
        charge.answer(1 << 20).expect("what is smaller still fits");
    }

    #[test]
    fn states_that_no_room_holds_are_refused_for_good() {
        let admission = admission();
        let charge = admission.charge(None);
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
        admission.charge(None).request(1_000).unwrap();
        admission.charge(None).request(1 << 20).unwrap_err();
        assert!(admission.try_hold(1 << 20).is_err());
        admission.press(false);
        admission.charge(None).request(1 << 20).unwrap();
    }

    #[test]
    fn what_is_large_leaves_room_for_what_is_small() {
        let admission = admission();
        let large: Vec<_> = (0..100).map(|_| admission.charge(None)).collect();
        let held = large.iter().filter(|charge| charge.take(200 << 10).is_ok()).count();
        assert!((40..52).contains(&held), "{held} of 100");
        let small: Vec<_> = (0..60).map(|_| admission.charge(None)).collect();
        for charge in &small {
            charge.take(SMALL_BYTES).expect("there is a part for small calls");
        }
    }

    #[test]
    fn before_a_call_is_refused_what_nobody_takes_is_let_go_of() {
        let admission = admission();
        let untaken: Arc<parking_lot::Mutex<Vec<Arc<Charge>>>> = Arc::default();
        let held = untaken.clone();
        admission.when_full(Box::new(
            move |enough| {
                while !enough() && held.lock().pop().is_some() {}
            },
        ));
        for _ in 0..20 {
            let charge = admission.charge(None);
            charge.take(400 << 10).unwrap();
            untaken.lock().push(charge);
        }
        let call = admission.charge(None);
        call.take(2 << 20).expect("others give way");
        let left = untaken.lock().len();
        assert!((10..20).contains(&left), "no more of them than needed: {left} are left");
        assert_eq!(admission.refused(), 0);
    }

    #[test]
    fn a_connection_holds_no_more_than_its_share_and_others_find_theirs() {
        let admission = admission();
        let owner = |port| Some(admission.owner(SocketAddr::from(([10, 0, 0, 1], port))));
        let take_all = |owner: &Option<Owner>| {
            let take = |_| {
                let charge = admission.charge(owner.clone());
                charge.take(100 << 10).is_ok().then_some(charge)
            };
            (0..1_000).map_while(take).collect::<Vec<_>>()
        };
        let (first, second) = (owner(1), owner(2));
        let held = take_all(&first);
        let others = take_all(&second);
        assert!(others.len() >= 5, "{} of the first, {} of the second", held.len(), others.len());
        drop(held);
        assert!(take_all(&first).len() >= 50, "what it gave back it may take again");
    }

    #[test]
    fn the_largest_message_finds_room_when_nobody_else_has_any() {
        let admission = admission();
        let owner = admission.owner(SocketAddr::from(([10, 0, 0, 1], 1)));
        let charge = admission.charge(Some(owner));
        charge.request(1 << 10).unwrap();
        charge.answer(4 << 20).expect("it is what a message may have");
        charge.take((10 << 20) - (8 << 20) - (4 << 10)).expect("all of the room is its own");
    }

    #[tokio::test]
    async fn who_waits_for_room_takes_none_from_small_calls() {
        let admission = admission();
        let large = admission.charge(None);
        large.take(8 << 20).unwrap();
        let mut waiting = Box::pin(admission.hold(2 << 20));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(futures::poll!(&mut waiting).is_pending());
        admission.charge(None).take(SMALL_BYTES).expect("there is a part for small calls");
        drop(large);
        assert_eq!(waiting.await.num_permits() as u64, (2 << 20) / UNIT_BYTES);
    }
}
