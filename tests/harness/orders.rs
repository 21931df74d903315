//! Orders and questions as one node sends them to another, sent by a test: late, or for no reason.

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::control_client::ControlClient;
use statehouse_proto::v1::members_ask::Change;
use statehouse_proto::v1::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::cluster::Cluster;

/// The version of the peer protocol.
const FORMAT: u32 = 1;

/// Orders to one node.
pub struct Orders {
    control: ControlClient<Channel>,
    peer: PeerClient<Channel>,
    hello: v1::PeerHello,
}

/// A stream on which nothing was asked.
pub struct Unasked {
    answers: Streaming<v1::PeerAnswers>,
    /// The stream ends with it.
    _asks: mpsc::Sender<v1::PeerAsks>,
}

impl Unasked {
    /// Waits until the node has gone. Returns what it said last.
    pub async fn last(mut self) -> Option<v1::PeerAnswers> {
        let mut last = None;
        while let Ok(Some(answers)) = self.answers.message().await {
            last = Some(answers);
        }
        last
    }
}

type Answer = Result<(), v1::PeerRefusal>;

impl Orders {
    /// Connects to a node, and says to be another one.
    pub async fn to(cluster: &Cluster, node: u64, from: u64) -> Orders {
        let status = cluster.admin_json(&["status"]);
        let id = status["cluster_id"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).unwrap();
        let cluster_id: Bytes = (0..id.len()).step_by(2).map(byte).collect();
        let hello = v1::PeerHello { format: FORMAT, cluster_id, from_node: from, to_node: node };
        let endpoint = format!("http://{}", cluster.peer(node));
        let channel = Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
        let peer = PeerClient::new(channel.clone());
        Orders { control: ControlClient::new(channel), peer, hello }
    }

    /// Opens a stream for questions, and asks none.
    pub async fn listen(&mut self) -> Unasked {
        let (asks, outgoing) = mpsc::channel(1);
        let hello = Some(self.hello.clone());
        asks.send(v1::PeerAsks { hello, asks: Vec::new() }).await.unwrap();
        let answers = self.peer.talk(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Unasked { answers, _asks: asks }
    }

    fn replica(&self, shard: u32, replica: u64) -> v1::ReplicaAsk {
        let hello = Some(self.hello.clone());
        v1::ReplicaAsk { hello, shard, replica, membership_at: None }
    }

    /// Has it make an empty replica.
    pub async fn create(&mut self, shard: u32, replica: u64) -> Answer {
        let ask = self.replica(shard, replica);
        done(self.control.create_replica(ask).await)
    }

    /// Has it end a replica that is no member as of a membership.
    pub async fn destroy(
        &mut self,
        shard: u32,
        replica: u64,
        membership_at: Option<v1::LogPosition>,
    ) -> Answer {
        let ask = v1::ReplicaAsk { membership_at, ..self.replica(shard, replica) };
        done(self.control.destroy_replica(ask).await)
    }

    /// Has it change the members of a shard that it leads.
    pub async fn change(&mut self, shard: u32, change: Change) -> Answer {
        let hello = Some(self.hello.clone());
        let ask = v1::MembersAsk { hello, shard, change: Some(change) };
        done(self.control.change_members(ask).await)
    }

    /// Returns what the node reports of itself.
    pub async fn report(&mut self) -> v1::NodeReport {
        let ask = v1::ReportAsk { hello: Some(self.hello.clone()), sizes: false };
        self.control.report(ask).await.unwrap().into_inner()
    }

    /// Returns what it reports of its replica of a shard, if it has one.
    pub async fn group(&mut self, shard: u32) -> Option<v1::GroupReport> {
        self.report().await.groups.into_iter().find(|group| group.shard == shard)
    }
}

fn done(answer: Result<tonic::Response<v1::ControlAnswer>, tonic::Status>) -> Answer {
    let answer = answer.unwrap().into_inner();
    answer.refusal.map_or(Ok(()), Err)
}
