//! The file `synced`: what this store has synced, said outside RocksDB.
//!
//! Written after each sync and before anybody is told of it, so that whatever was acknowledged is
//! claimed here, and never more than was synced. It is not synced itself on that way: a thread does
//! it [`SYNC_INTERVAL`] later. After the process is killed the file is exact; after a power loss it
//! claims what it did a moment earlier.
//!
//! ```text
//! file  = 4 slots of the same size
//! slot  = magic 8 bytes | sequence u64 | length u32 | CRC-32 u32 of sequence, length, ledger |
//!         ledger
//! ```
//!
//! Of the whole slots the one of the highest sequence holds. No write goes to the last slot that is
//! synced, to the one being synced, or to the newest: a write that is cut short by a kill, or two
//! that a power loss tears, leave one that is whole.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::failure::Failure;
use crate::ledger::Ledger;

/// How long a claim waits for its own sync.
const SYNC_INTERVAL: Duration = Duration::from_millis(50);

const SLOTS: usize = 4;
const MAGIC: &[u8; 8] = b"SHsynced";
const HEADER_BYTES: usize = 24;
/// The room for a ledger when the file is made: doubled as long as it is too small.
const SLOT_BYTES_MIN: usize = 16 << 10;

/// What the file says when a store is opened.
pub(crate) enum Found {
    /// There is none.
    Missing,
    /// It is there, and no slot is whole.
    Damaged,
    Claims(Ledger),
}

/// The file, and the thread that syncs it.
pub(crate) struct Witness {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// Signalled when a claim waits for its sync, and at the end.
    changed: Condvar,
    failure: Arc<Failure>,
}

struct State {
    file: Arc<File>,
    slot_bytes: usize,
    sequence: u64,
    newest: usize,
    synced: usize,
    syncing: Option<usize>,
    waits: bool,
    closed: bool,
}

/// Reads what the file claims.
pub(crate) fn read(path: &Path) -> Result<Found, Error> {
    let failed = |error| Error::io("read what was synced", error);
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(failed(error)),
    };
    let slot_bytes = (bytes.len() / SLOTS).max(1);
    let newest = bytes.chunks(slot_bytes).filter_map(decode).max_by_key(|(sequence, _)| *sequence);
    Ok(newest.map_or(Found::Damaged, |(_, ledger)| Found::Claims(ledger)))
}

impl Witness {
    /// Makes the file anew with a claim, synced, and starts the thread.
    pub fn start(path: PathBuf, ledger: &Ledger, failure: Arc<Failure>) -> Result<Self, Error> {
        let state = create(&path, ledger)?;
        let shared =
            Arc::new(Shared { path, state: Mutex::new(state), changed: Condvar::new(), failure });
        let run = {
            let shared = shared.clone();
            move || shared.run()
        };
        let thread = std::thread::Builder::new()
            .name("witness".into())
            .spawn(run)
            .map_err(|error| Error::io("start the witness thread", error))?;
        Ok(Witness { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Claims what was just synced.
    pub fn claim(&self, ledger: &Ledger) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        let encoded = encode(state.sequence + 1, ledger);
        if encoded.len() > state.slot_bytes {
            let closed = state.closed;
            *state = State { closed, ..create(&self.shared.path, ledger)? };
            return Ok(());
        }
        let slot = state.free_slot();
        let at = (slot * state.slot_bytes) as u64;
        state.file.write_all_at(&encoded, at).map_err(|e| Error::io("claim a sync", e))?;
        state.sequence += 1;
        state.newest = slot;
        if !state.waits {
            state.waits = true;
            self.shared.changed.notify_one();
        }
        Ok(())
    }

    /// Ends the thread without waiting for it.
    pub fn stop(&self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_one();
    }

    /// Ends the thread, and writes the last claim to all slots, synced. Blocks.
    pub fn close(&self, ledger: Option<&Ledger>) -> Result<(), Error> {
        self.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the witness thread ended in a panic");
        }
        let Some(ledger) = ledger else { return Ok(()) };
        let mut state = self.shared.state.lock();
        for slot in 0..SLOTS {
            state.sequence += 1;
            let encoded = encode(state.sequence, ledger);
            let at = (slot * state.slot_bytes) as u64;
            state.file.write_all_at(&encoded, at).map_err(|e| Error::io("claim a sync", e))?;
            // One after the other: a power loss meanwhile leaves the others.
            state.file.sync_data().map_err(|e| Error::io("sync a claim", e))?;
        }
        Ok(())
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let file = {
                let mut state = self.state.lock();
                while !state.waits && !state.closed {
                    self.changed.wait(&mut state);
                }
                if state.closed {
                    return;
                }
                // Claims that follow at once ride along; an end is not waited for.
                let _ = self.changed.wait_for(&mut state, SYNC_INTERVAL);
                if state.closed {
                    return;
                }
                state.waits = false;
                state.syncing = Some(state.newest);
                state.file.clone()
            };
            let result = file.sync_data();
            let mut state = self.state.lock();
            let syncing = state.syncing.take();
            if let Err(error) = result {
                drop(state);
                self.failure.raise(&Error::io("sync a claim", error));
                return;
            }
            // Else the file was made anew meanwhile, and synced with it.
            if let Some(slot) = syncing
                && Arc::ptr_eq(&file, &state.file)
            {
                state.synced = slot;
            }
        }
    }
}

impl State {
    /// A slot that may be torn.
    fn free_slot(&self) -> usize {
        let taken = [Some(self.newest), Some(self.synced), self.syncing];
        (0..SLOTS).find(|slot| !taken.contains(&Some(*slot))).expect("three of four are taken")
    }
}

/// Makes the file with a claim in its first slot, and takes the old one's place.
fn create(path: &Path, ledger: &Ledger) -> Result<State, Error> {
    let failed = |error| Error::io("make the file of what was synced", error);
    let encoded = encode(1, ledger);
    let mut slot_bytes = SLOT_BYTES_MIN;
    while slot_bytes < 2 * encoded.len() {
        slot_bytes *= 2;
    }
    let mut bytes = vec![0; slot_bytes * SLOTS];
    bytes[..encoded.len()].copy_from_slice(&encoded);
    let unfinished = path.with_extension("new");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .map_err(failed)?;
    file.write_all_at(&bytes, 0).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&unfinished, path).map_err(failed)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(State {
        file: Arc::new(file),
        slot_bytes,
        sequence: 1,
        newest: 0,
        synced: 0,
        syncing: None,
        waits: false,
        closed: false,
    })
}

fn encode(sequence: u64, ledger: &Ledger) -> Vec<u8> {
    let ledger = ledger.encode();
    let mut out = Vec::with_capacity(HEADER_BYTES + ledger.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&(ledger.len() as u32).to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&out[MAGIC.len()..]);
    sum.update(&ledger);
    out.extend_from_slice(&sum.finalize().to_le_bytes());
    out.extend_from_slice(&ledger);
    out
}

fn decode(slot: &[u8]) -> Option<(u64, Ledger)> {
    let rest = slot.strip_prefix(MAGIC)?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let ledger = rest.get(..u32::from_le_bytes(*len) as usize)?;
    let mut expected = crc32fast::Hasher::new();
    expected.update(sequence);
    expected.update(len);
    expected.update(ledger);
    if expected.finalize() != u32::from_le_bytes(*sum) {
        return None;
    }
    let ledger = Ledger::decode(Bytes::copy_from_slice(ledger)).ok()?;
    Some((u64::from_le_bytes(*sequence), ledger))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn ledger(commit: u64) -> Ledger {
        Ledger { commit, ..Ledger::default() }
    }

    fn claimed(path: &Path) -> u64 {
        match read(path).unwrap() {
            Found::Claims(ledger) => ledger.commit,
            Found::Missing | Found::Damaged => panic!("the file claims nothing"),
        }
    }

    #[test]
    fn the_newest_claim_holds_and_a_torn_one_leaves_the_one_before() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("synced");
        assert!(matches!(read(&path).unwrap(), Found::Missing));
        let witness = Witness::start(path.clone(), &ledger(1), Arc::default()).unwrap();
        for commit in 2..200 {
            witness.claim(&ledger(commit)).unwrap();
            assert_eq!(claimed(&path), commit);
        }
        witness.stop();
        let whole = std::fs::read(&path).unwrap();
        let slot_bytes = whole.len() / SLOTS;
        let sequences: Vec<_> = whole.chunks(slot_bytes).map(decode).collect();
        let newest = (0..SLOTS).max_by_key(|slot| sequences[*slot].as_ref().map(|s| s.0)).unwrap();
        let mut torn = whole.clone();
        torn[newest * slot_bytes + 20..newest * slot_bytes + 60].fill(0);
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(claimed(&path), 198);
    }

    #[test]
    fn a_file_of_which_no_slot_is_whole_is_damaged_and_no_claim() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("synced");
        let witness = Witness::start(path.clone(), &ledger(1), Arc::default()).unwrap();
        witness.close(Some(&ledger(7))).unwrap();
        assert_eq!(claimed(&path), 7);
        let mut bytes = std::fs::read(&path).unwrap();
        let slot_bytes = bytes.len() / SLOTS;
        // One damaged slot costs nothing once the store is closed.
        bytes[30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(claimed(&path), 7);
        for slot in 1..SLOTS {
            bytes[slot * slot_bytes + 30] ^= 1;
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(read(&path).unwrap(), Found::Damaged));
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(read(&path).unwrap(), Found::Damaged));
    }

    #[test]
    fn a_ledger_that_outgrows_its_slot_gets_a_larger_file() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("synced");
        let witness = Witness::start(path.clone(), &ledger(1), Arc::default()).unwrap();
        let mut grown = ledger(2);
        for id in 0..1_000 {
            grown.replicas.insert(crate::ids::ReplicaId(id), crate::ledger::Claim::default());
        }
        witness.claim(&grown).unwrap();
        assert_eq!(claimed(&path), 2);
        witness.claim(&ledger(3)).unwrap();
        assert_eq!(claimed(&path), 3);
        witness.close(None).unwrap();
    }
}
