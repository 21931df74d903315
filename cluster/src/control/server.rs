//! The other end: serves what nodes ask of this one, on the peer listener.

use std::sync::Arc;

use statehouse_proto::v1;
use statehouse_proto::v1::control_server::Control;
use statehouse_store::ReplicaId;
use tonic::{Request, Response, Status};

use super::{convert, local};
use crate::raft::Groups;

/// Serves the `Control` service over a node's groups.
pub(crate) struct Service {
    groups: Arc<Groups>,
}

impl Service {
    pub fn new(groups: Arc<Groups>) -> Self {
        Service { groups }
    }

    fn greeted(&self, hello: Option<v1::PeerHello>) -> Result<(), Status> {
        let peers = self.groups.peers();
        let from = peers.greeted(hello)?;
        if peers.is_cut(from) {
            return Err(Status::unavailable("cut off"));
        }
        Ok(())
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Service {
    async fn propose(&self, request: Request<v1::ProposeAsk>) -> Answer<v1::ProposeAnswer> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        let outcome = async {
            let command = convert::command(ask.entry)?;
            local::propose(&self.groups, convert::shard(ask.shard)?, command).await
        };
        Ok(Response::new(convert::propose_answer(outcome.await)))
    }

    async fn create_replica(&self, request: Request<v1::ReplicaAsk>) -> Answer<v1::ControlAnswer> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        let outcome = async {
            let replica = ReplicaId(ask.replica);
            self.groups.create(convert::shard(ask.shard)?, replica).await.map(|_| ())
        };
        Ok(Response::new(convert::answer(outcome.await)))
    }

    async fn destroy_replica(&self, request: Request<v1::ReplicaAsk>) -> Answer<v1::ControlAnswer> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        let outcome =
            async { self.groups.destroy(convert::shard(ask.shard)?, ReplicaId(ask.replica)).await };
        Ok(Response::new(convert::answer(outcome.await)))
    }

    async fn change_members(&self, request: Request<v1::MembersAsk>) -> Answer<v1::ControlAnswer> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        let outcome = async {
            let change = convert::change(ask.change)?;
            local::change(&self.groups, convert::shard(ask.shard)?, change).await
        };
        Ok(Response::new(convert::answer(outcome.await)))
    }

    async fn report(&self, request: Request<v1::ReportAsk>) -> Answer<v1::NodeReport> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        Ok(Response::new(convert::report_answer(local::report(&self.groups, ask.sizes))))
    }
}
