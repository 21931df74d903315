//! Peers that say what can't be true: each is refused by name, and the group goes on.

use bytes::Bytes;
use statehouse_cluster::NodeId;
use statehouse_cluster::raft::Role;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_proto::v1::peer_client::PeerClient;
use statehouse_proto::v1::peer_refusal::Kind;
use statehouse_store::{Body, Entry, EntryId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::support::{CLUSTER, Cluster, SHARD, get, put, replica_of, until_caught_up};

/// A connection to a node's peer listener by somebody who says that it is another node.
pub struct Stranger {
    peer: PeerClient<Channel>,
    hello: v1::PeerHello,
    pub route: v1::PeerRoute,
}

impl Stranger {
    pub async fn connect(cluster: &Cluster, to: NodeId, pretends: NodeId) -> Stranger {
        let endpoint = format!("http://{}", cluster.address(to));
        let hello = v1::PeerHello {
            format: 1,
            cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
            from_node: pretends.0,
            to_node: to.0,
        };
        let route = v1::PeerRoute {
            shard: SHARD.0.into(),
            from_replica: replica_of(SHARD, pretends).0,
            to_replica: replica_of(SHARD, to).0,
        };
        Stranger { peer: PeerClient::connect(endpoint).await.unwrap(), hello, route }
    }

    pub async fn ask(&mut self, ask: Ask) -> Answer {
        let (asks, outgoing) = mpsc::channel(2);
        let hello = Some(self.hello.clone());
        asks.send(v1::PeerAsks { hello, asks: Vec::new() }).await.unwrap();
        let ask = v1::PeerAsk { id: 7, route: Some(self.route), ask: Some(ask) };
        asks.send(v1::PeerAsks { hello: None, asks: vec![ask] }).await.unwrap();
        let answers = self.peer.talk(ReceiverStream::new(outgoing)).await.unwrap();
        let mut answers = answers.into_inner();
        let answers = answers.message().await.unwrap().expect("it answers");
        answers.answers.into_iter().next().unwrap().answer.unwrap()
    }

    async fn is_refused(&mut self, ask: Ask) {
        let said = format!("{ask:?}");
        match self.ask(ask).await {
            Answer::Refusal(refusal) => {
                assert_eq!(refusal.kind(), Kind::Malformed, "{said}: {refusal:?}");
                assert!(refusal.detail.starts_with("malformed "), "{}", refusal.detail);
            }
            other => panic!("{said} was answered {other:?}"),
        }
    }

    async fn append_is_refused(&mut self, mut request: v1::AppendRequest) -> String {
        let (requests, outgoing) = mpsc::channel(2);
        let hello = Some(self.hello.clone());
        requests.send(v1::AppendRequests { hello, requests: Vec::new() }).await.unwrap();
        (request.session, request.route) = (1, Some(self.route));
        let said = format!("{request:?}");
        requests.send(v1::AppendRequests { hello: None, requests: vec![request] }).await.unwrap();
        let answers = self.peer.append(ReceiverStream::new(outgoing)).await.unwrap();
        let mut answers = answers.into_inner();
        let answers = answers.message().await.unwrap().expect("it answers");
        match answers.answers.into_iter().next().unwrap().answer.unwrap() {
            v1::append_answer::Answer::Refusal(refusal) => {
                assert_eq!(refusal.kind(), Kind::Malformed, "{said}: {refusal:?}");
                refusal.detail
            }
            v1::append_answer::Answer::Appended(other) => {
                panic!("{said} was answered {other:?}")
            }
        }
    }
}

fn blank(at: EntryId) -> Bytes {
    Entry::new(at.index, at.term, Body::Blank).encode()
}

fn position(at: EntryId) -> Option<v1::LogPosition> {
    Some(v1::LogPosition { term: at.term, index: at.index })
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_make_no_sense_are_refused_and_stop_no_group() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    for n in 0..20 {
        cluster.put(SHARD, &format!("key-{n}"), "value").await;
    }
    let lead = cluster.node(leader).group(SHARD);
    let term = lead.status().term;
    // The follower is called by somebody who pretends to be its leader, and the leader by somebody
    // who pretends to be a follower.
    let follower = NodeId(leader.0 % 3 + 1);
    for (to, pretends) in [(follower, leader), (leader, follower)] {
        until_caught_up(&cluster.node(to).group(SHARD), &lead).await;
        let last = cluster.node(to).group(SHARD).status().applied;
        let mut stranger = Stranger::connect(&cluster, to, pretends).await;
        nonsense_asks(&mut stranger, term, last).await;
        nonsense_appends(&mut stranger, term, last).await;
        let route = Some(stranger.route);
        let vote = vote(&stranger, u64::MAX, true);
        let header = v1::SnapshotHeader { route, vote, ..Default::default() };
        let hello = Some(stranger.hello.clone());
        let part = v1::SnapshotPart { hello, header: Some(header), ..Default::default() };
        let answer = stranger.peer.snapshot(tokio_stream::iter([part])).await.unwrap().into_inner();
        let Some(v1::snapshot_answer::Answer::Refusal(refusal)) = answer.answer else {
            panic!("{answer:?}");
        };
        assert_eq!(refusal.kind(), Kind::Malformed, "{refusal:?}");
    }
    // Nobody noticed.
    assert_eq!((lead.status().term, lead.status().role), (term, Role::Leader));
    put(&lead, "key-0", "goes on").await.unwrap();
    for node in cluster.nodes() {
        let group = node.group(SHARD);
        until_caught_up(&group, &lead).await;
        assert_eq!(get(&group, "key-0").as_deref(), Some("goes on"));
        assert_eq!(get(&group, "key-19").as_deref(), Some("value"));
    }
}

fn vote(stranger: &Stranger, term: u64, committed: bool) -> Option<v1::RaftVote> {
    Some(v1::RaftVote { term, replica: stranger.route.from_replica, committed })
}

async fn nonsense_asks(stranger: &mut Stranger, term: u64, last: EntryId) {
    let beyond = EntryId { index: u64::MAX, term };
    let other = Some(v1::RaftVote { term, replica: 77, committed: true });
    let beat = |vote, previous, committed| {
        Ask::Heartbeat(v1::Heartbeat {
            vote,
            previous: position(previous),
            committed: position(committed),
        })
    };
    let leads = vote(stranger, term, true);
    stranger.is_refused(beat(vote(stranger, u64::MAX, true), last, last)).await;
    stranger.is_refused(beat(None, last, last)).await;
    stranger.is_refused(beat(other, last, last)).await;
    stranger.is_refused(beat(vote(stranger, term, false), last, last)).await;
    stranger.is_refused(beat(leads, beyond, last)).await;
    stranger.is_refused(beat(leads, last, beyond)).await;
    stranger.is_refused(beat(leads, EntryId { term: term + 1, ..last }, last)).await;
    // Committed here, in another term.
    stranger.is_refused(beat(leads, EntryId { term: 0, ..last }, last)).await;
    for kind in [Ask::Vote, Ask::PreVote] {
        let ask = |vote, last| v1::VoteAsk { vote, last, transfer: true };
        stranger.is_refused(kind(ask(vote(stranger, u64::MAX, false), position(last)))).await;
        stranger.is_refused(kind(ask(None, position(last)))).await;
        stranger.is_refused(kind(ask(vote(stranger, term + 1, false), position(beyond)))).await;
        stranger.is_refused(kind(ask(vote(stranger, term + 1, true), position(last)))).await;
    }
    let to_replica = stranger.route.to_replica;
    let from_leader = vote(stranger, u64::MAX, true);
    let transfer = v1::TransferAsk { from_leader, to_replica, last: position(last) };
    stranger.is_refused(Ask::Transfer(transfer)).await;
}

async fn nonsense_appends(stranger: &mut Stranger, term: u64, last: EntryId) {
    let next = EntryId { index: last.index + 1, term };
    let after = EntryId { index: last.index + 2, term };
    let vote = vote(stranger, term, true);
    let append = |previous: EntryId, entries: &[EntryId]| v1::AppendRequest {
        vote,
        previous: position(previous),
        entries: entries.iter().map(|at| blank(*at)).collect(),
        ..Default::default()
    };
    let gap = stranger.append_is_refused(append(last, &[after])).await;
    assert!(gap.contains("do not follow one another"), "{gap}");
    stranger.append_is_refused(append(last, &[next, next])).await;
    stranger.append_is_refused(append(last, &[EntryId { term: u64::MAX, ..next }])).await;
    let end = EntryId { index: u64::MAX, term };
    stranger.append_is_refused(append(end, &[EntryId { index: 0, term }])).await;
    let torn = v1::AppendRequest { entries: vec![blank(next).slice(..9)], ..append(last, &[]) };
    stranger.append_is_refused(torn).await;
    // From the very beginning, and other than what is committed: all of it would be cut off.
    let first = EntryId { index: 1, term };
    let second = EntryId { index: 2, term };
    let cut = stranger.append_is_refused(append(EntryId::default(), &[first, second])).await;
    assert!(cut.contains("contradicts what is committed"), "{cut}");
}
