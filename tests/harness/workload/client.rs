//! One client: does one thing after the other to keys that others use too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1::{self, edit, field::Value, write_options};
use statehouse_client::{Error, v1::state_client::StateClient};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::record::Record;
use super::{COLLECTION, Load};
use crate::harness::history::{Action, Condition, Nanos, Outcome, Seen};

/// When an answer is given up.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Sends of a write whose outcome is unknown, after the first ones.
const RESENDS_MAX: usize = 8;

/// Ids in a trail after which a key gets a new one.
const TRAIL_MAX: usize = 16;

/// Bytes of the largest padding: more than lies in one row or chunk.
const PADDING_BYTES_MAX: usize = 300_000;

/// How old the answers of bounded reads may be, in milliseconds: each read asks for one of these.
/// The least is below what a follower mostly knows, so that leaders serve such reads too.
const LAGS_MAX_MS: [u64; 4] = [50, 250, 350, 2_000];

pub struct Worker {
    number: u64,
    load: Load,
    nodes: Vec<(String, StateClient<Channel>)>,
    record: Arc<Record>,
    /// What this client last knew of a key: version and length of the trail.
    known: HashMap<String, (u64, usize)>,
}

/// What one send of a write came to.
enum Sent {
    Done(Option<u64>),
    Refused(Seen),
    /// The node says that nothing happened.
    Nothing,
    Unknown,
}

impl Worker {
    pub fn new(number: u64, load: Load, endpoints: Vec<String>, record: Arc<Record>) -> Self {
        let connect = |endpoint: String| {
            let channel = Endpoint::from_shared(endpoint.clone())
                .unwrap()
                .connect_timeout(ANSWER_MAX)
                .tcp_nodelay(true)
                .connect_lazy();
            (endpoint, StateClient::new(channel))
        };
        let nodes = endpoints.into_iter().map(connect).collect();
        Worker { number, load, nodes, record, known: HashMap::new() }
    }

    /// Works until told to stop.
    pub async fn work(mut self, seed: u64, stop: Arc<AtomicBool>) {
        let mut random = StdRng::seed_from_u64(seed);
        // Each starts at another time, so that they do not go in step.
        let mut pace = tokio::time::interval(self.load.pace.max(Duration::from_micros(1)));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.load(Ordering::Relaxed) {
            if !self.load.pace.is_zero() {
                pace.tick().await;
            }
            let key = format!("key-{}", random.random_range(0..self.load.keys));
            match random.random_range(0..100) {
                0..32 => self.read(&key, None, &mut random).await,
                32..42 => {
                    let lag_max_ms = LAGS_MAX_MS[random.random_range(0..LAGS_MAX_MS.len())];
                    self.read(&key, Some(lag_max_ms), &mut random).await;
                }
                _ => self.write(&key, &mut random).await,
            }
        }
    }

    fn any_node(&self, random: &mut StdRng) -> usize {
        random.random_range(0..self.nodes.len())
    }

    async fn read(&mut self, key: &str, lag_max_ms: Option<u64>, random: &mut StdRng) {
        let consistency = match lag_max_ms {
            Some(_) => v1::Consistency::Bounded,
            None => v1::Consistency::Linearizable,
        };
        let request = v1::GetRequest {
            collection: COLLECTION.to_owned(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            consistency: consistency as i32,
            max_lag_ms: lag_max_ms.unwrap_or(0),
            ..Default::default()
        };
        let (endpoint, mut client) = self.nodes[self.any_node(random)].clone();
        let sent = self.record.now();
        let found = answer(&endpoint, client.get(request)).await;
        let nanos = |lag_ms: u64| lag_ms * 1_000_000;
        match found {
            Ok(found) => {
                let state = found.state.expect("a get answers a state");
                let lag = lag_max_ms.map(|max| {
                    assert!(found.lag_ms <= max, "{key}: {} ms asked for {max}", found.lag_ms);
                    nanos(found.lag_ms)
                });
                let trail = trail_of(&state);
                check_padding(key, &state, &trail);
                self.known.insert(key.to_owned(), (state.version, trail.len()));
                let seen = Seen::State { version: state.version, trail };
                self.record.look(key, (sent, None, lag), seen);
            }
            Err(error) if error.reason() == Some("STATE_NOT_FOUND") => {
                self.known.remove(key);
                // A refusal does not say how old it may be: no older than was asked for.
                self.record.look(key, (sent, None, lag_max_ms.map(nanos)), Seen::Missing);
            }
            Err(error) => {
                // Whatever is done to the cluster: a read is answered, or to be tried again.
                let faults = ["INTERNAL", "CORRUPT"];
                let fault = error.reason().is_some_and(|reason| faults.contains(&reason));
                assert!(!fault, "{key}: a read can't be refused so: {error}");
                self.met(&error);
            }
        }
    }

    fn met(&self, error: &Error) {
        let reason = error.reason().unwrap_or("UNREACHABLE");
        self.record.error(reason, format!("client {}: {error}", self.number));
    }

    fn choose(&self, key: &str, random: &mut StdRng) -> Action {
        let (version, trail) = self.known.get(key).copied().unwrap_or_default();
        let condition = match random.random_range(0..10) {
            0 => Condition::Absent,
            1 | 2 if version > 0 => Condition::Version(version),
            _ => Condition::Any,
        };
        match random.random_range(0..10) {
            0 if version > 0 => Action::Delete(version),
            1..6 if trail < TRAIL_MAX && condition != Condition::Absent => Action::Patch(condition),
            _ => Action::Put(condition),
        }
    }

    async fn write(&mut self, key: &str, random: &mut StdRng) {
        let id = self.record.write_id();
        let action = self.choose(key, random);
        let padding = match random.random_range(0..50) {
            0 => PADDING_BYTES_MAX,
            _ => random.random_range(0..200),
        };
        let request = Request { key: Bytes::copy_from_slice(key.as_bytes()), id, action, padding };
        // One to three sends at the same time, each through some node.
        let copies = [1, 1, 2, 3][random.random_range(0..4)];
        let sent = self.record.now();
        let mut nodes: Vec<usize> = (0..copies).map(|_| self.any_node(random)).collect();
        let mut versions = Vec::new();
        let mut done: Option<Nanos> = None;
        let mut unknown = false;
        for round in 0..=RESENDS_MAX {
            let sends = nodes.iter().map(|node| self.send(*node, &request, key));
            for outcome in join_all(sends).await {
                match outcome {
                    Sent::Done(version) => {
                        versions.extend(version);
                        done.get_or_insert_with(|| self.record.now());
                    }
                    Sent::Refused(_) | Sent::Nothing => {}
                    Sent::Unknown => unknown = true,
                }
            }
            // Most clients do not let it rest at not knowing.
            if done.is_some() || !unknown || round == RESENDS_MAX || random.random_bool(0.2) {
                break;
            }
            nodes = vec![self.any_node(random)];
        }
        if let Some(version) = versions.first() {
            let trail = self.known.get(key).map_or(0, |known| known.1);
            let trail = if matches!(action, Action::Put(_)) { 1 } else { trail + 1 };
            self.known.insert(key.to_owned(), (*version, trail));
        }
        let outcome = match done {
            Some(at) => Outcome::Done { versions, at },
            None if unknown => Outcome::Unknown,
            None => Outcome::Nothing,
        };
        self.record.write(key, (id, action), sent, outcome);
    }

    /// Sends a write once; writes down what a refusal tells.
    async fn send(&self, node: usize, request: &Request, key: &str) -> Sent {
        let sent = self.record.now();
        let (endpoint, client) = &self.nodes[node];
        let error = match request.send(endpoint, client.clone()).await {
            Ok(version) => return Sent::Done(version),
            Err(error) => error,
        };
        let Some(sent_as) = outcome_of(&error) else {
            panic!("{key}: write {} can't be refused so: {error}", request.id);
        };
        match &sent_as {
            Sent::Refused(seen) => {
                self.record.look(key, (sent, Some(request.id), None), seen.clone());
            }
            Sent::Done(_) | Sent::Nothing | Sent::Unknown => self.met(&error),
        }
        sent_as
    }
}

/// What an error says of a write; `None`: what no error should.
fn outcome_of(error: &Error) -> Option<Sent> {
    let (code, reason, metadata) = match error {
        Error::Refused { code, reason, metadata, .. } => (code, reason, metadata),
        Error::Unreachable { reached: false, .. } => return Some(Sent::Nothing),
        Error::Unreachable { .. } | Error::Unexpected(_) => return Some(Sent::Unknown),
    };
    match reason.as_str() {
        "VERSION_CONFLICT" => {
            let current = metadata.get("current_version").expect("a conflict names the version");
            Some(Sent::Refused(match current.parse().expect("a version is a number") {
                0 => Seen::Missing,
                version => Seen::Version(version),
            }))
        }
        "STATE_NOT_FOUND" => Some(Sent::Refused(Seen::Missing)),
        "OVERLOADED" | "DISK_FULL" | "UNAVAILABLE" | "NOT_LEADER" | "WRONG_NODE" | "NO_LEADER" => {
            Some(Sent::Nothing)
        }
        "OUTCOME_UNKNOWN" | "DEADLINE_EXCEEDED" => Some(Sent::Unknown),
        // Of the transport: no reason is given, and anything may have happened.
        _ => match code {
            Code::Cancelled | Code::Unknown | Code::Unavailable | Code::DeadlineExceeded => {
                Some(Sent::Unknown)
            }
            Code::Internal if metadata.is_empty() && reason == "Internal" => Some(Sent::Unknown),
            _ => None,
        },
    }
}

/// A write as it goes out, the same each time.
struct Request {
    key: Bytes,
    id: u64,
    action: Action,
    padding: usize,
}

impl Request {
    fn options(&self) -> v1::WriteOptions {
        use write_options::Condition as Wire;
        let condition = match self.action {
            Action::Put(condition) | Action::Patch(condition) => condition,
            Action::Delete(version) => Condition::Version(version),
        };
        v1::WriteOptions {
            condition: match condition {
                Condition::Any => None,
                Condition::Absent => Some(Wire::IfAbsent(true)),
                Condition::Version(version) => Some(Wire::IfVersion(version)),
            },
            expiry: None,
            request_id: Bytes::copy_from_slice(&self.id.to_le_bytes()),
        }
    }

    /// The version it got; `None`: a delete gets none.
    async fn send(
        &self,
        endpoint: &str,
        mut client: StateClient<Channel>,
    ) -> Result<Option<u64>, Error> {
        let (collection, key) = (COLLECTION.to_owned(), self.key.clone());
        let options = Some(self.options());
        let id = Bytes::copy_from_slice(&self.id.to_le_bytes());
        match self.action {
            Action::Put(_) => {
                let padding = Bytes::from(vec![self.id as u8; self.padding]);
                let fields = vec![bytes_field("trail", id), bytes_field("padding", padding)];
                let request = v1::PutRequest { collection, key, fields, options };
                answer(endpoint, client.put(request)).await.map(|written| Some(written.version))
            }
            Action::Patch(_) => {
                let append = edit::Append { field: "trail".to_owned(), data: id, max_bytes: None };
                let edits = vec![v1::Edit { edit: Some(edit::Edit::Append(append)) }];
                let request = v1::PatchRequest { collection, key, edits, options };
                answer(endpoint, client.patch(request)).await.map(|written| Some(written.version))
            }
            Action::Delete(_) => {
                let request = v1::DeleteRequest { collection, key, options };
                let deleted = answer(endpoint, client.delete(request)).await?;
                assert!(deleted.existed, "a delete of a version finds it");
                Ok(None)
            }
        }
    }
}

fn bytes_field(name: &str, bytes: Bytes) -> v1::Field {
    v1::Field { name: name.to_owned(), value: Some(Value::Bytes(bytes)), expiry: None }
}

async fn answer<T>(
    endpoint: &str,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    match timeout(ANSWER_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(endpoint, &status)),
        Err(_) => {
            let message = format!("silent for {ANSWER_MAX:?}");
            Err(Error::Unreachable { endpoint: endpoint.to_owned(), message, reached: true })
        }
    }
}

/// The ids of the writes since the last put.
pub fn trail_of(state: &v1::StoredState) -> Vec<u64> {
    let bytes = crate::harness::field_bytes(state, "trail");
    let (ids, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty(), "a trail is of whole ids: {} bytes", bytes.len());
    ids.iter().map(|id| u64::from_le_bytes(*id)).collect()
}

/// The padding is the last put's, whole.
fn check_padding(key: &str, state: &v1::StoredState, trail: &[u64]) {
    let padding = crate::harness::field_bytes(state, "padding");
    let expected = trail.first().map_or(0, |put| *put as u8);
    assert!(
        padding.iter().all(|byte| *byte == expected),
        "{key}, version {}: the padding is not of the put that the trail names",
        state.version
    );
}
