//! A node that a test plays: it votes for whoever asks, confirms every claim to lead and answers
//! heartbeats and pings. No entry ever reaches its log, and no other question gets an answer.

use std::future::ready;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use statehouse_cluster::NodeId;
use statehouse_proto::v1;
use statehouse_proto::v1::appended::Result as Appended;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_proto::v1::peer_server::{Peer, PeerServer};
use statehouse_store::ENTRY_FORMAT;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::support::Cluster;

/// A node in the place of one that was stopped.
pub struct Played(JoinHandle<()>);

impl Played {
    pub async fn in_place_of(node: NodeId, cluster: &Cluster) -> Played {
        let listener = TcpListener::bind(cluster.address(node)).await.unwrap();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().add_service(PeerServer::new(Part));
        Played(tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() }))
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Part;

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Peer for Part {
    type TalkStream = Answers<v1::PeerAnswers>;
    type AppendStream = Answers<v1::AppendAnswers>;

    async fn talk(
        &self,
        request: Request<Streaming<v1::PeerAsks>>,
    ) -> Result<Response<Self::TalkStream>, Status> {
        let answers = request.into_inner().map(|message| -> Result<_, Status> {
            let answers =
                message?.asks.into_iter().filter_map(|v1::PeerAsk { id, ask, .. }| {
                    Some(v1::PeerAnswer { id, answer: Some(answer(ask?)?) })
                });
            Ok(v1::PeerAnswers { answers: answers.collect(), ..Default::default() })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequests>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        // They are taken, for as long as they come.
        let taken = request.into_inner().filter_map(|_| ready(None));
        Ok(Response::new(taken.chain(stream::pending()).boxed()))
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotAnswer>, Status> {
        std::future::pending().await
    }
}

fn answer(ask: Ask) -> Option<Answer> {
    match ask {
        Ask::Ping(ping) => {
            Some(Answer::Pong(v1::Ping { entry_format: ENTRY_FORMAT.into(), ..ping }))
        }
        Ask::Vote(ask) | Ask::PreVote(ask) => {
            Some(Answer::Vote(v1::VoteAnswer { vote: ask.vote, granted: true, last: None }))
        }
        Ask::Confirm(ask) => {
            Some(Answer::Confirm(v1::ConfirmAnswer { confirmed: vec![true; ask.claims.len()] }))
        }
        Ask::Heartbeat(beat) => {
            let result = Some(Appended::Matched(beat.previous.unwrap_or_default()));
            Some(Answer::Heartbeat(v1::Appended { result }))
        }
        Ask::Freshness(_) | Ask::ReadIndex(_) | Ask::Transfer(_) => None,
    }
}
