//! A node that stops in the middle of writes tells nobody that nothing happened where something may
//! have: whoever waits hears the true result, or that it is unknown.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::join_all;
use harness::cluster::await_some;
use harness::preload::Preload;
use harness::{
    House, bank_model, bank_score, bytes_field, create, field_bytes, get, http_get, push, put,
};
use statehouse::config::{Config, DeviceChoice};
use statehouse::node::Node;
use statehouse_client::retry::Fate;
use statehouse_client::v1::score_client::ScoreClient;
use statehouse_client::v1::state_client::StateClient;
use statehouse_client::v1::write_stream_request::Part;
use statehouse_client::v1::{self, ScoreMode, edit};
use statehouse_client::{Client, Error};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// Writes of each kind.
const KEYS: usize = 6;

/// How long a disk is held up at most once its node stops.
const HELD_FOR: Duration = Duration::from_secs(10);

/// Bytes of a state that comes in parts.
const LARGE_BYTES: usize = 3 << 20;

const BROUGHT: &str = "statehouse_stream_bytes_total{call=\"write\"}";

const UNDER_WAY: &str = "statehouse_calls_under_way";

/// Waits until a value of a node's metrics is so much.
async fn until(http: SocketAddr, name: &str, value: usize) {
    await_some(&format!("{name} is {value}"), async || {
        let (_, metrics) = http_get(http, "/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        match line {
            Some(found) if found == value.to_string() => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}

/// A stream that a state comes on, and its answer.
struct Upload {
    parts: UnboundedSender<v1::WriteStreamRequest>,
    answer: JoinHandle<Result<v1::WriteStreamResponse, Error>>,
}

impl Upload {
    /// Begins a state of so many bytes, and sends them all.
    fn begin(client: &Client, key: &str, bytes: usize) -> Upload {
        let (parts, brought) = unbounded();
        let answer = tokio::spawn({
            let (client, mut state) = (client.clone(), client.state());
            async move {
                let answer = state.write(brought).await;
                answer.map(tonic::Response::into_inner).map_err(|status| client.error(&status))
            }
        });
        let upload = Upload { parts, answer };
        let fields =
            vec![v1::FieldHeader { name: "v".into(), bytes: bytes as u64, ..Default::default() }];
        let (collection, key) = ("c".to_owned(), key.to_owned().into());
        let upload_id = "u".into();
        let header = v1::WriteHeader { collection, key, fields, upload_id, ..Default::default() };
        upload.send(Part::Header(header));
        for data in Bytes::from(vec![b'n'; bytes]).chunks(1 << 20) {
            let data = Bytes::copy_from_slice(data);
            upload.send(Part::Chunk(v1::WriteChunk { data, crc32: None }));
        }
        upload
    }

    fn send(&self, part: Part) {
        self.parts.unbounded_send(v1::WriteStreamRequest { part: Some(part) }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_stream_that_a_stop_gives_up_is_unknown() {
    // In this process: one of its own might end before the answer is on its way.
    let house = House::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        data: house.data(),
        listen: any,
        http_listen: any,
        peer_listen: Some(any),
        device: DeviceChoice::Cpu,
        shutdown_grace_s: 0,
        ..Config::default()
    };
    let node = Node::start(config).await.unwrap();
    let endpoint = format!("http://{}", node.address);
    let client = Client::connect(statehouse_client::Config::new(endpoint)).await.unwrap();
    create(&client, "c").await;
    // One that goes by a put, and one that goes by parts.
    let uploads = [("small", 100), ("large", LARGE_BYTES)];
    let uploads = uploads.map(|(key, bytes)| Upload::begin(&client, key, bytes));
    until(node.http_address, BROUGHT, 100 + LARGE_BYTES).await;
    node.stop().await.unwrap();
    for Upload { answer, parts } in uploads {
        let error = answer.await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some("OUTCOME_UNKNOWN"), "{error}");
        drop(parts);
    }
}

/// A disk whose syncs are held up for as long as a file is there.
struct HeldDisk {
    hold: PathBuf,
}

impl HeldDisk {
    /// Makes it the disk of the nodes of a house that start from now on.
    fn of(house: &mut House) -> HeldDisk {
        let hold = house.path("hold");
        let code = format!(
            "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <unistd.h>\n\
             static int held(const char *name, int fd) {{\n\
               while (access(\"{}\", F_OK) == 0) usleep(1000);\n\
               return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);\n}}\n\
             int fsync(int fd) {{ return held(\"fsync\", fd); }}\n\
             int fdatasync(int fd) {{ return held(\"fdatasync\", fd); }}\n",
            hold.display()
        );
        let library = Preload::compile(house.dir(), "held", &code);
        house.env.push(library.env());
        HeldDisk { hold }
    }

    fn hold(&self) {
        std::fs::write(&self.hold, "").unwrap();
    }

    fn release(&self) {
        std::fs::remove_file(&self.hold).unwrap();
    }
}

/// A kind of write, by what it makes of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Put,
    BatchPut,
    Patch,
    Delete,
    Step,
    Write,
}

const KINDS: [Kind; 6] =
    [Kind::Put, Kind::BatchPut, Kind::Patch, Kind::Delete, Kind::Step, Kind::Write];

impl Kind {
    fn key(self, n: usize) -> String {
        format!("{self:?}-{n}")
    }

    /// Makes what the write needs.
    async fn prepare(self, client: &Client, n: usize) -> Option<Upload> {
        let key = self.key(n);
        match self {
            Kind::Patch | Kind::Delete => {
                client.put(put("c", &key, vec![bytes_field("v", "o")])).await.unwrap();
                None
            }
            Kind::Write => Some(Upload::begin(client, &key, LARGE_BYTES)),
            Kind::Put | Kind::BatchPut | Kind::Step => None,
        }
    }

    /// Does it, once.
    async fn write(self, at: Channel, n: usize, upload: Option<Upload>) -> Result<(), Error> {
        let (key, mut state) = (self.key(n), StateClient::new(at.clone()));
        let new = put("c", &key, vec![bytes_field("v", "n")]);
        let (collection, key, options) = ("c".to_owned(), Bytes::from(key), None);
        let done = match self {
            Kind::Put => state.put(new).await.map(drop),
            Kind::BatchPut => {
                use v1::batch_put_response::item::Result;
                let written = state.batch_put(v1::BatchPutRequest { puts: vec![new] }).await;
                let items = written.map(|written| written.into_inner().items);
                match items.map(|mut items| items.remove(0).result.unwrap()) {
                    Ok(Result::Error(error)) => return Err(error.into()),
                    other => other.map(drop),
                }
            }
            Kind::Patch => {
                let append = edit::Append { field: "v".into(), data: "n".into(), max_bytes: None };
                let edits = vec![v1::Edit { edit: Some(edit::Edit::Append(append)) }];
                let patch = v1::PatchRequest { collection, key, edits, options };
                state.patch(patch).await.map(drop)
            }
            Kind::Delete => {
                state.delete(v1::DeleteRequest { collection, key, options }).await.map(drop)
            }
            Kind::Step => {
                let step = bank_score(&self.key(n), 700.0, ScoreMode::Step);
                ScoreClient::new(at).score(step).await.map(drop)
            }
            Kind::Write => {
                let upload = upload.unwrap();
                upload.send(Part::End(v1::WriteEnd { crc32: None }));
                return upload.answer.await.unwrap().map(drop);
            }
        };
        done.map_err(|status| Error::from_status("", &status))
    }

    /// Whether it happened.
    async fn happened(self, client: &Client, n: usize) -> bool {
        let collection = if self == Kind::Step { "accounts" } else { "c" };
        let found = client.get(get(collection, &self.key(n))).await;
        match (self, found) {
            (Kind::Patch, found) => field_bytes(&found.unwrap(), "v") == "on",
            (Kind::Delete, found) => found.is_err(),
            (_, Ok(_)) => true,
            (_, Err(error)) => {
                assert_eq!(error.reason(), Some("STATE_NOT_FOUND"), "{error}");
                false
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_a_node_stops_is_not_denied() {
    let mut house = House::new();
    let disk = HeldDisk::of(&mut house);
    // So many that few writes wait behind another one's entry, which is no news of them.
    house.flags = vec!["--shards".into(), "64".into()];
    house.env.push(("STATEHOUSE_SHUTDOWN_GRACE_S".into(), "0".into()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    let mut prepared = Vec::new();
    for kind in KINDS {
        for n in 0..KEYS {
            prepared.push((kind, n, kind.prepare(&client, n).await));
        }
    }
    until(node.http, BROUGHT, KEYS * LARGE_BYTES).await;
    until(node.http, UNDER_WAY, KEYS).await;
    disk.hold();
    let channel = Endpoint::from_shared(node.endpoint()).unwrap().connect().await.unwrap();
    let writes: Vec<_> = prepared
        .into_iter()
        .map(|(kind, n, upload)| (kind, n, tokio::spawn(kind.write(channel.clone(), n, upload))))
        .collect();
    until(node.http, UNDER_WAY, (KINDS.len() + 1) * KEYS).await;
    node.terminate();
    // Nobody waits for the disk, which comes back so that the node can end.
    let answers = writes.into_iter().map(|(kind, n, write)| async move {
        let outcome: Result<(), Error> = write.await.unwrap();
        (kind, n, outcome)
    });
    let mut answers = std::pin::pin!(join_all(answers));
    let early = timeout(HELD_FOR, answers.as_mut()).await;
    disk.release();
    let answers = match early {
        Ok(answers) => answers,
        Err(_) => answers.await,
    };
    let (mut done, mut denied, mut unknown) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (kind, n, outcome) in answers {
        match outcome {
            Ok(()) => done.push((kind, n)),
            Err(error) if Fate::of(&error) != Fate::Unknown => denied.push((kind, n, error)),
            Err(_) => *unknown.entry(kind).or_insert(0) += 1,
        }
    }
    let (code, log) = tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
    assert_eq!(code, Some(0), "{log:?}");
    println!("{} done, {} denied, unknown: {unknown:?}", done.len(), denied.len());
    let node = house.start();
    let client = node.client().await;
    for (kind, n) in done {
        assert!(kind.happened(&client, n).await, "{kind:?} {n} was acknowledged");
    }
    for (kind, n, error) in denied {
        assert!(!kind.happened(&client, n).await, "{kind:?} {n} was denied: {error}");
    }
    assert_eq!(unknown.len(), KINDS.len(), "of each kind some were on their way: {unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_may_have_done_is_not_denied_when_it_can_not_be_reached_again() {
    let mut house = House::new();
    let disk = HeldDisk::of(&mut house);
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    disk.hold();
    let writes = ["one", "another"].map(|key| {
        let client = client.clone();
        tokio::spawn(async move { client.put(put("c", key, vec![bytes_field("v", "n")])).await })
    });
    until(node.http, UNDER_WAY, writes.len()).await;
    node.kill();
    disk.release();
    for write in writes {
        // It was sent again, by its id, and found nobody.
        let error = write.await.unwrap().unwrap_err();
        assert_eq!(Fate::of(&error), Fate::Unknown, "{error:?}");
    }
}
