//! An answer that comes from another node than the one that was asked, and that nobody takes, is
//! dropped after `stream_stall_s` with all that it holds, at both nodes. Whoever asked is told so
//! if they come back.

use bytes::Bytes;
use statehouse_client::v1::pipeline_client::PipelineClient;
use statehouse_client::v1::state_client::StateClient;
use statehouse_client::{Client, HOP, v1};
use tokio_stream::StreamExt as _;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::untaken::{get_untaken, narrow, refusal};
use crate::harness::{bytes_field, create, get, http_get, put};

/// How long an answer may stand still; long enough to be seen standing.
const STALL_S: u64 = 3;

const MIB: usize = 1 << 20;

/// States by their sizes: on a pipeline, in one answer, and as a stream longer than all that lies
/// on its way.
const SIZES: [(&str, usize); 3] = [("small", 200 << 10), ("large", 6 * MIB), ("long", 40 * MIB)];

const CUT: &str = "statehouse_streams_cut_total";
const BY_CALLS: &str = "statehouse_memory_part_bytes{part=\"request\"}";
const BY_STREAMS: &str = "statehouse_memory_part_bytes{part=\"transfer\"}";

/// A node that leads nothing, and the one that does.
struct Two {
    cluster: Cluster,
    asked: u64,
    leader: u64,
    client: Client,
}

impl Two {
    async fn start() -> Two {
        let env = [
            ("STATEHOUSE_MEMORY_MAX", "256MiB".to_owned()),
            ("STATEHOUSE_REQUEST_BYTES_MAX", "20MiB".to_owned()),
            ("STATEHOUSE_STREAM_STALL_S", STALL_S.to_string()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let cluster = Cluster::of(Shape { shards: 1, env, ..Shape::default() }).await;
        // Whoever leads goes on leading.
        cluster.admin_json(&["pause"]);
        let leader = cluster.leader(1).await;
        let asked = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
        let client = cluster.client(asked).await;
        create(&client, "c").await;
        for (key, bytes) in SIZES {
            let header = v1::WriteHeader {
                collection: "c".into(),
                key: key.into(),
                fields: vec![v1::FieldHeader {
                    name: "f".into(),
                    bytes: bytes as u64,
                    ..Default::default()
                }],
                ..Default::default()
            };
            client.write(header, &mut Bytes::from(vec![7; bytes]), |_| {}).await.unwrap();
        }
        let two = Two { cluster, asked, leader, client };
        two.nothing_is_held().await;
        two
    }

    fn metric(&self, node: u64, name: &str) -> u64 {
        let (_, body) = http_get(self.cluster.http(node), "/metrics");
        let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    /// Waits until a node holds so much at least.
    async fn holds(&self, node: u64, what: &str, bytes: usize) {
        await_some(&format!("node {node} holds {bytes} bytes"), async || {
            match self.metric(node, what) {
                held if held >= bytes as u64 => Ok(()),
                held => Err(format!("{held}")),
            }
        })
        .await;
    }

    /// Waits until a node has cut an answer off, and nothing is held for it anywhere.
    async fn cut_by(&self, node: u64, times: u64) {
        await_some(&format!("node {node} cuts it off"), async || match self.metric(node, CUT) {
            cut if cut == times => Ok(()),
            cut => Err(format!("{cut} of {times}")),
        })
        .await;
        self.nothing_is_held().await;
    }

    async fn nothing_is_held(&self) {
        for node in [self.asked, self.leader] {
            for part in [BY_CALLS, BY_STREAMS] {
                await_some(&format!("{part} is free at node {node}"), async || {
                    match self.metric(node, part) {
                        0 => Ok(()),
                        held => Err(format!("{held}")),
                    }
                })
                .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_answers_that_nobody_takes_give_their_room_back() {
    let two = Two::start().await;
    let Two { cluster, asked, leader, client } = &two;
    let (asked, leader) = (*asked, *leader);
    let stalled = Some("STREAM_STALLED");

    // One answer: it has left its node, and is held by the one that was asked.
    let channel = narrow(cluster.endpoint(asked)).await;
    let mut answer = get_untaken(channel, get("c", "large")).await;
    two.holds(asked, BY_CALLS, 6 * MIB).await;
    two.cut_by(asked, 1).await;
    assert_eq!(refusal(client, &mut answer).await.reason(), stalled);

    // Those of a pipeline.
    let gets = (1..=40).map(|id| {
        let call = Some(v1::pipeline_request::Call::Get(get("c", "small")));
        v1::PipelineRequest { id, timeout_ms: 0, call }
    });
    let requests = tokio_stream::iter(gets).chain(tokio_stream::pending());
    let mut pipeline = PipelineClient::new(narrow(cluster.endpoint(asked)).await);
    let mut answers = pipeline.run(requests).await.unwrap().into_inner();
    two.cut_by(asked, 2).await;
    assert_eq!(refusal(client, &mut answers).await.reason(), stalled);
    assert_eq!(two.metric(leader, CUT), 0, "they had left it");

    // A stream: what is not taken here is not taken from its node, which holds it.
    let mut states = StateClient::new(narrow(cluster.endpoint(asked)).await);
    let mut chunks = states.read(get("c", "long")).await.unwrap().into_inner();
    two.holds(leader, BY_STREAMS, MIB).await;
    two.cut_by(leader, 1).await;
    assert_eq!(refusal(client, &mut chunks).await.reason(), stalled);

    // An answer that the node which was asked does not take.
    let mut request = tonic::Request::new(get("c", "large"));
    request.metadata_mut().insert(HOP, "1".parse().unwrap());
    let mut answer = get_untaken(narrow(cluster.endpoint(leader)).await, request).await;
    two.holds(leader, BY_CALLS, 6 * MIB).await;
    two.cut_by(leader, 2).await;
    assert_eq!(refusal(client, &mut answer).await.reason(), stalled);

    // And all is well for others.
    client.put(put("c", "k", vec![bytes_field("f", "few")])).await.unwrap();
    for (key, _) in &SIZES[..2] {
        client.get(get("c", key)).await.unwrap();
    }
}
