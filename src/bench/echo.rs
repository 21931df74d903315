//! A bare tonic echo: the least that a gRPC call of a size costs on this machine.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use statehouse_proto::bench::v1::echo_client::EchoClient;
use statehouse_proto::bench::v1::echo_server::{Echo, EchoServer};
use statehouse_proto::bench::v1::{EchoRequest, EchoResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use super::lane::{Done, idle};

type CallUnderWay = Pin<Box<dyn Future<Output = Done> + Send>>;

/// A call each.
pub struct EchoLane {
    client: EchoClient<Channel>,
    value: Bytes,
    pub(super) under_way: FuturesUnordered<CallUnderWay>,
}

impl EchoLane {
    pub(super) fn new(channel: Channel, value: Bytes) -> Self {
        EchoLane { client: EchoClient::new(channel), value, under_way: FuturesUnordered::new() }
    }

    pub(super) fn start(&mut self, id: u64) {
        let (mut client, value) = (self.client.clone(), self.value.clone());
        self.under_way.push(Box::pin(async move {
            let answer = client.call(EchoRequest { id, value }).await;
            let bytes = answer.map(|answer| answer.into_inner().value.len() as u64);
            (id, bytes.map_err(|status| status.message().to_owned()))
        }));
    }
}

/// Many calls on one stream.
pub struct EchoStreamLane {
    calls: mpsc::Sender<EchoRequest>,
    answers: Streaming<EchoResponse>,
    value: Bytes,
}

impl EchoStreamLane {
    pub(super) async fn new(
        channel: Channel,
        in_flight: usize,
        value: Bytes,
    ) -> anyhow::Result<Self> {
        let (calls, queue) = mpsc::channel(in_flight.max(1));
        let answers = EchoClient::new(channel).run(ReceiverStream::new(queue)).await?;
        Ok(EchoStreamLane { calls, answers: answers.into_inner(), value })
    }

    pub(super) async fn start(&mut self, id: u64) -> anyhow::Result<()> {
        self.calls.send(EchoRequest { id, value: self.value.clone() }).await?;
        Ok(())
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Done> {
        let response = self.answers.message().await?.ok_or_else(idle)?;
        Ok((response.id, Ok(response.value.len() as u64)))
    }
}

struct EchoService;

type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for EchoService {
    async fn call(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let EchoRequest { id, value } = request.into_inner();
        Ok(Response::new(EchoResponse { id, value }))
    }

    type RunStream = Answers;

    async fn run(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let answer = |request: Result<EchoRequest, Status>| {
            request.map(|EchoRequest { id, value }| EchoResponse { id, value })
        };
        Ok(Response::new(Box::pin(request.into_inner().map(answer))))
    }
}

/// Serves until the process is told to stop.
pub async fn serve_echo(address: SocketAddr) -> anyhow::Result<()> {
    let stop = async {
        // Without a signal handler the default one stops the process as well.
        let _ = tokio::signal::ctrl_c().await;
    };
    Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true)
        .add_service(EchoServer::new(EchoService))
        .serve_with_shutdown(address, stop)
        .await?;
    Ok(())
}
