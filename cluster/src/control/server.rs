//! The other end: serves what nodes ask of this one, on the peer listener.

use std::sync::{Arc, Weak};

use statehouse_proto::v1;
use statehouse_proto::v1::control_server::Control;
use statehouse_store::ReplicaId;
use tonic::{Request, Response, Status};

use super::{convert, local, plans_out, sums, usage};
use crate::raft::Groups;
use crate::shards::{Addresses, note};
use crate::{Error, NodeId, Shards};

/// Serves the `Control` service over a node's groups.
pub(crate) struct Service {
    groups: Arc<Groups>,
    shards: Weak<Shards>,
}

impl Service {
    pub fn new(groups: Arc<Groups>, shards: Weak<Shards>) -> Self {
        Service { groups, shards }
    }

    fn greeted(&self, hello: Option<v1::PeerHello>) -> Result<NodeId, Status> {
        let peers = self.groups.peers();
        let from = peers.greeted(hello)?;
        if peers.is_cut(from) {
            return Err(Status::unavailable("cut off"));
        }
        peers.note(from);
        Ok(from)
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
        let outcome = async {
            let left_at = ask.membership_at.map(convert::entry_id);
            let (shard, replica) = (convert::shard(ask.shard)?, ReplicaId(ask.replica));
            self.groups.destroy_left(shard, replica, left_at).await
        };
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

    async fn announce(&self, request: Request<v1::AnnounceAsk>) -> Answer<v1::AnnounceAnswer> {
        let ask = request.into_inner();
        let from = self.greeted(ask.hello)?;
        let addresses = Addresses { client: ask.address, peer: ask.peer_address };
        let outcome = match self.shards.upgrade() {
            Some(shards) => note(&shards, from, &addresses).await,
            None => Err(Error::Closed { reason: "the node is stopping".to_owned() }),
        };
        Ok(Response::new(convert::announce_answer(outcome)))
    }

    async fn report(&self, request: Request<v1::ReportAsk>) -> Answer<v1::NodeReport> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        Ok(Response::new(convert::report_answer(local::report(&self.groups, ask.sizes))))
    }

    async fn plan_node_cache(
        &self,
        request: Request<v1::PlanNodeCacheAsk>,
    ) -> Answer<v1::NodeCachePlan> {
        self.greeted(request.into_inner().hello)?;
        let node = self.groups.peers().node().0;
        let parts = plans_out(self.groups.store().cache_plan());
        Ok(Response::new(v1::NodeCachePlan { node, parts }))
    }

    async fn sums(&self, request: Request<v1::SumsAsk>) -> Answer<v1::SumsReport> {
        self.greeted(request.into_inner().hello)?;
        Ok(Response::new(sums::report(&self.groups)))
    }

    async fn report_damage(&self, request: Request<v1::DamageAsk>) -> Answer<v1::ControlAnswer> {
        let ask = request.into_inner();
        self.greeted(ask.hello)?;
        let done = sums::damaged(&self.groups, ReplicaId(ask.replica), &ask.detail).await;
        Ok(Response::new(convert::answer(done)))
    }

    async fn usage(&self, request: Request<v1::UsageAsk>) -> Answer<v1::UsageReport> {
        let mut ask = request.into_inner();
        self.greeted(ask.hello.take())?;
        Ok(Response::new(usage::answer(&self.groups, ask).await))
    }
}
