//! What was acknowledged until the power went, and whether it is all there afterwards.
//!
//! Writers put and append under keys of their own, without request ids: a write that brought no
//! answer may have happened or not. An answer that comes once the power is gone counts as none:
//! a node without power can't answer, and a file system that is shut down may call a sync done
//! that was not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::{Client, v1};
use tokio::task::JoinHandle;

use super::{bytes_field, field_bytes, get, put};

/// The collection that the writers use.
pub const COLLECTION: &str = "ledger";

/// Writers at a time.
const WRITERS: u64 = 16;

/// Keys of one writer; half of them are put, half are appended to.
const KEYS: usize = 6;

/// How the keys begin that are put, and those that are appended to.
const PUT: &str = "put";
const APPENDED: &str = "appended";

/// Bytes of what an append adds: its number, and what tells it from rubbish.
const RECORD_BYTES: usize = 16;

/// One key's writes, by number.
#[derive(Debug, Clone, Default)]
struct Written {
    attempted: u64,
    /// Those that were answered while there was power.
    acknowledged: Vec<u64>,
}

/// All that writers did.
#[derive(Clone, Default)]
pub struct Ledger {
    keys: Arc<Mutex<HashMap<String, Written>>>,
    acknowledged: Arc<AtomicU64>,
    /// There is no power: answers do not count.
    dark: Arc<AtomicBool>,
}

impl Ledger {
    /// Starts writers under keys that begin with `prefix`, until they are aborted.
    pub fn start(&self, clients: &[Client], prefix: &str, seed: u64) -> Vec<JoinHandle<()>> {
        let mut random = StdRng::seed_from_u64(seed);
        self.dark.store(false, Ordering::SeqCst);
        let writer = |writer: u64| {
            let client = clients[writer as usize % clients.len()].clone();
            let prefix = format!("{prefix}-{writer}");
            tokio::spawn(self.clone().write(client, prefix, random.random()))
        };
        (0..WRITERS).map(writer).collect()
    }

    /// Writes that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// The power is about to go: no answer counts from now on.
    pub fn darken(&self) {
        self.dark.store(true, Ordering::SeqCst);
    }

    async fn write(self, client: Client, prefix: String, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        // A key whose write brought no answer is left as it is: that write may still come.
        let mut lives = [0; KEYS];
        loop {
            let at = random.random_range(0..KEYS);
            let kind = if at % 2 == 0 { PUT } else { APPENDED };
            let key = format!("{kind}-{prefix}-{at}-{}", lives[at]);
            let number = {
                let mut keys = self.keys.lock();
                let written = keys.entry(key.clone()).or_default();
                written.attempted += 1;
                written.attempted
            };
            let done = match (kind, number) {
                (APPENDED, 1) => client.put(begin_log(&key)).await.is_ok(),
                (APPENDED, number) => client.patch(append(&key, number)).await.is_ok(),
                (_, number) => {
                    // Some lie in chunks.
                    let bytes = [100, 100, 4_000, 200_000][random.random_range(0..4)];
                    let fields = vec![
                        bytes_field("number", number.to_string()),
                        bytes_field("padding", vec![number as u8; bytes]),
                    ];
                    client.put(put(COLLECTION, &key, fields)).await.is_ok()
                }
            };
            if !done {
                lives[at] += 1;
            } else if !self.dark.load(Ordering::SeqCst) {
                self.keys.lock().get_mut(&key).unwrap().acknowledged.push(number);
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reads every key: what was acknowledged is there, and nothing that nobody wrote.
    pub async fn check(&self, client: &Client) {
        let keys: Vec<_> = self.keys.lock().clone().into_iter().collect();
        for (key, written) in keys {
            let state = match client.get(get(COLLECTION, &key)).await {
                Ok(state) => Some(state),
                Err(error) if error.reason() == Some("STATE_NOT_FOUND") => None,
                Err(error) => panic!("{key}: {error}"),
            };
            let found = match (&state, appended_to(&key)) {
                (None, _) => Vec::new(),
                (Some(state), true) => records(&key, state),
                (Some(state), false) => {
                    let number = field_bytes(state, "number");
                    let number: u64 = std::str::from_utf8(&number).unwrap().parse().unwrap();
                    let padding = field_bytes(state, "padding");
                    assert!(padding.iter().all(|b| *b == number as u8), "{key}: mixed padding");
                    vec![number]
                }
            };
            let in_order = found.windows(2).all(|pair| pair[0] < pair[1]);
            let last = found.last().copied().unwrap_or(0);
            assert!(in_order && last <= written.attempted, "{key}: {found:?}, {written:?}");
            let lost = match appended_to(&key) {
                true => written.acknowledged.iter().copied().find(|n| !found.contains(n)),
                // A later one takes an earlier one's place.
                false => written.acknowledged.last().copied().filter(|n| last < *n),
            };
            if let Some(lost) = lost {
                panic!("{key}: write {lost} was acknowledged and is lost; there is {found:?}");
            }
        }
    }

    /// Forgets all keys, once they were checked.
    pub fn forget(&self) {
        self.keys.lock().clear();
    }
}

/// Whether a key's writes are appends.
fn appended_to(key: &str) -> bool {
    key.starts_with(APPENDED)
}

/// What one append adds.
fn record(number: u64) -> Bytes {
    [number.to_le_bytes(), (!number).to_le_bytes()].concat().into()
}

/// An append needs a field that is there.
fn begin_log(key: &str) -> v1::PutRequest {
    put(COLLECTION, key, vec![bytes_field("log", record(1))])
}

fn append(key: &str, number: u64) -> v1::PatchRequest {
    let (field, data) = ("log".to_owned(), record(number));
    let append = v1::edit::Append { field, data, max_bytes: None };
    v1::PatchRequest {
        collection: COLLECTION.to_owned(),
        key: key.to_owned().into(),
        edits: vec![v1::Edit { edit: Some(v1::edit::Edit::Append(append)) }],
        options: None,
    }
}

/// The numbers of the appends that a state holds.
fn records(key: &str, state: &v1::StoredState) -> Vec<u64> {
    let log = field_bytes(state, "log");
    assert_eq!(log.len() % RECORD_BYTES, 0, "{key}: half a record");
    let number = |found: &[u8]| {
        let number = u64::from_le_bytes(found[..8].try_into().unwrap());
        assert!(found == &record(number)[..], "{key}: not a record that was written");
        number
    };
    log.chunks_exact(RECORD_BYTES).map(number).collect()
}
