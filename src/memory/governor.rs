//! The thread that holds the process to its memory, by what the system says that it has.
//!
//! Parts are counted as well as they can be, but an allocator keeps more than it was asked for,
//! and some things nobody counts. So fifty times a second this looks at the resident memory of
//! the process. Near the limit the allocator gives back what is free, which it keeps for a while
//! otherwise. If that is not enough the block cache gives way, the one part that is only there for
//! speed; it gets its memory back when there is room again. At the limit no calls come in but small
//! ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use statehouse_store::Store;

use crate::admission::Admission;
use crate::memory::Plan;
use crate::size::ByteSize;

/// How often it looks: large states come by tens of MiB in this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// In thousandths of the limit: the block cache gives way above, gets back below.
const HIGH_PER_MILLE: u64 = 950;
const LOW_PER_MILLE: u64 = 900;

/// Above, only small calls come in: what was admitted may need more yet.
const PRESSED_PER_MILLE: u64 = 985;

/// Of the block cache, so much stays whatever happens, in thousandths.
const CACHE_KEPT_PER_MILLE: u64 = 200;

/// How much it gets back at a look, in thousandths of the limit.
const GIVEN_BACK_PER_MILLE: u64 = 2;

/// Holds the process to its memory.
pub struct Governor {
    /// Dropped, it ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    taken: Arc<AtomicU64>,
    memory_max: ByteSize,
}

impl Governor {
    /// Starts the thread. It ends when this is dropped.
    pub fn start(plan: Plan, store: Store, admission: Admission) -> std::io::Result<Governor> {
        let (stop, stopped) = mpsc::channel::<()>();
        let taken = Arc::new(AtomicU64::new(0));
        let told = taken.clone();
        let run = move || {
            let mut balance = Balance::new(&plan);
            while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(resident) = resident_after_purge(&balance) else { continue };
                let before = balance.taken;
                balance.look(resident);
                if balance.taken != before {
                    store.set_block_cache_bytes((plan.block_cache - balance.taken) as usize);
                    told.store(balance.taken, Relaxed);
                }
                admission.press(resident > plan.memory_max / 1_000 * PRESSED_PER_MILLE);
            }
        };
        let thread = std::thread::Builder::new().name("memory".into()).spawn(run)?;
        let memory_max = ByteSize(plan.memory_max);
        Ok(Governor { stop: Some(stop), thread: Some(thread), taken, memory_max })
    }

    /// What the process may have.
    pub fn memory_max(&self) -> ByteSize {
        self.memory_max
    }

    /// Bytes that the block cache does without now.
    pub fn taken_bytes(&self) -> Arc<AtomicU64> {
        self.taken.clone()
    }
}

impl Drop for Governor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the memory thread ended in a panic");
        }
    }
}

/// How much the block cache does without. Pure.
struct Balance {
    memory_max: u64,
    taken: u64,
    taken_max: u64,
}

impl Balance {
    fn new(plan: &Plan) -> Self {
        let taken_max = plan.block_cache / 1_000 * (1_000 - CACHE_KEPT_PER_MILLE);
        Balance { memory_max: plan.memory_max, taken: 0, taken_max }
    }

    /// From here on the process has too much.
    fn high(&self) -> u64 {
        self.memory_max / 1_000 * HIGH_PER_MILLE
    }

    fn look(&mut self, resident: u64) {
        let per_mille = |share| self.memory_max / 1_000 * share;
        let (high, low) = (self.high(), per_mille(LOW_PER_MILLE));
        if resident > high {
            // What was taken shows in the resident memory a while later: half of it at a time.
            let more = (resident - high).div_ceil(2);
            self.taken = (self.taken + more).min(self.taken_max);
        } else if resident < low {
            self.taken = self.taken.saturating_sub(per_mille(GIVEN_BACK_PER_MILLE));
        }
    }
}

/// Resident bytes of this process; near the limit after the allocator has given back what is free.
fn resident_after_purge(balance: &Balance) -> Option<u64> {
    let resident = resident_bytes()?;
    if resident <= balance.high() {
        return Some(resident);
    }
    if !purge() {
        tracing::debug!("jemalloc does not give back what is free");
    }
    resident_bytes()
}

/// Has jemalloc give back the pages of all arenas that are free; answers whether it did.
fn purge() -> bool {
    const ALL_ARENAS: &std::ffi::CStr = c"arena.4096.purge";
    let (no_old, no_new) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: a name that ends in NUL; nothing is read and nothing is written.
    let error = unsafe {
        tikv_jemalloc_sys::mallctl(ALL_ARENAS.as_ptr(), no_old, std::ptr::null_mut(), no_new, 0)
    };
    error == 0
}

/// Resident bytes of this process, as Linux tells them.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Chosen;

    #[test]
    fn jemalloc_gives_back_what_is_free() {
        assert!(purge());
    }

    #[test]
    fn the_cache_gives_way_near_the_limit_and_gets_back_below() {
        let plan = Plan::new(ByteSize::mib(1_000), &Chosen::default()).unwrap();
        let mut balance = Balance::new(&plan);
        balance.look(940 << 20);
        assert_eq!(balance.taken, 0, "between the marks nothing changes");
        balance.look(970 << 20);
        let taken = balance.taken;
        assert!((9 << 20..12 << 20).contains(&taken), "{taken}");
        balance.look(920 << 20);
        assert_eq!(balance.taken, taken);
        for _ in 0..100 {
            balance.look(1_200 << 20);
        }
        assert!(balance.taken <= plan.block_cache / 10 * 8, "some of it always stays");
        for _ in 0..1_000 {
            balance.look(500 << 20);
        }
        assert_eq!(balance.taken, 0);
    }
}
