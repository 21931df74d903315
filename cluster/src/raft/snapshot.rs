//! A whole replica from one node to another: a view streamed block by block, written to files as
//! it comes, and put in the place of what the receiver has.
//!
//! Nothing is resumed: a transfer that breaks leaves nothing behind and begins anew. openraft may
//! cancel at any time, and that ends it between two blocks.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_refusal::Kind;
use statehouse_proto::v1::snapshot_answer::Answer;
use statehouse_store::{Export, Incoming, Received, ReplicaId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::convert::{self, Malformed};
use super::group::Group;
use super::groups::Groups;
use super::inbound::{addressed, refusal};
use super::log_storage::blocking;
use super::sound;
use super::state_machine::{Snapshot, View};
use super::transfers::{Guard, Transfers};
use super::types::{self, SnapshotMeta, TypeConfig, Vote};
use crate::transport::{Lost, Peers};
use crate::{NodeId, ShardId};

/// Bytes of one block, about.
const BLOCK_BYTES: usize = 1 << 20;

/// Blocks made and not sent.
const BLOCKS_AHEAD_MAX: usize = 2;

type Sent = Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

/// Where a snapshot goes.
pub(super) struct Destination {
    pub peers: Arc<Peers>,
    pub transfers: Arc<Transfers>,
    pub node: NodeId,
    pub route: v1::PeerRoute,
}

impl Destination {
    /// Sends a snapshot and awaits its installation.
    pub async fn send(
        self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send,
    ) -> Sent {
        let View::Outgoing(export) = snapshot.snapshot else {
            return Err(unreachable_because("there is no view to send"));
        };
        let time_max = self.transfers.time_max;
        let work = self.stream(vote, snapshot.meta, *export);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = work => sent,
            () = tokio::time::sleep(time_max) => {
                Err(unreachable_because("the transfer took too long"))
            }
        }
    }

    async fn stream(self, vote: Vote, meta: SnapshotMeta, export: Export) -> Sent {
        let view = types::entry_id_or_default(meta.last_log_id).index;
        let shard = ShardId(self.route.shard as u16);
        let receiver = (shard, ReplicaId(self.route.to_replica), self.node);
        let guard = self.transfers.send(receiver, view).await;
        let mut client = self.peers.snapshot_client(self.node).await.map_err(lost)?;
        let (parts, outgoing) = mpsc::channel(BLOCKS_AHEAD_MAX);
        let header = v1::SnapshotHeader {
            route: Some(self.route),
            vote: Some(convert::vote_to_proto(&vote)),
            applied: convert::position(meta.last_log_id),
            membership_at: convert::position(*meta.last_membership.log_id()),
            membership: Some(convert::membership_to_proto(meta.last_membership.membership())),
        };
        let first = v1::SnapshotPart {
            hello: Some(self.peers.hello(self.node)),
            header: Some(header),
            ..Default::default()
        };
        parts.try_send(first).expect("there is room for one");
        tracing::info!(%shard, to = %self.node, "sending a snapshot");
        let call = client.snapshot(ReceiverStream::new(outgoing));
        tokio::pin!(call);
        let mut blocks =
            Box::pin(send_blocks(export, parts, &guard, &self.peers, self.node).fuse());
        let answer = tokio::select! {
            // An early answer is a refusal.
            answer = &mut call => answer,
            made = &mut blocks => match made {
                Ok(()) => call.await,
                Err(error) => return Err(error),
            },
        };
        let answer = answer.map_err(|status| {
            StreamingError::Network(NetworkError::from_string(status.message()))
        })?;
        match answer.into_inner().answer {
            Some(Answer::Vote(vote)) => match sound::vote(Some(vote)) {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(_) => Err(unreachable_because("the peer's answer makes no sense")),
            },
            Some(Answer::Refusal(refusal)) => {
                let reason = format!("{}: {}", refusal.kind().as_str_name(), refusal.detail);
                Err(unreachable_because(&reason))
            }
            None => Err(unreachable_because("the peer's answer makes no sense")),
        }
    }
}

/// Reads blocks off the view and sends them, as fast as is allowed.
async fn send_blocks(
    mut export: Export,
    parts: mpsc::Sender<v1::SnapshotPart>,
    guard: &Guard,
    peers: &Peers,
    node: NodeId,
) -> Result<(), StreamingError<TypeConfig>> {
    loop {
        let read = blocking(move || {
            let block = export.next(BLOCK_BYTES);
            (export, block)
        });
        let (back, block) = read.await.map_err(|error| network(&error))?;
        export = back;
        let block = block.map_err(|error| network(&error))?;
        if peers.is_cut(node) {
            return Err(lost(Lost::Broken));
        }
        let complete = block.is_none();
        let block = block.unwrap_or_default();
        guard.pace(block.len()).await;
        let part = v1::SnapshotPart { block, complete, ..Default::default() };
        // The receiver has gone: its answer says why.
        if parts.send(part).await.is_err() || complete {
            return Ok(());
        }
    }
}

fn network(error: &(impl std::error::Error + 'static)) -> StreamingError<TypeConfig> {
    StreamingError::Network(NetworkError::new(error))
}

fn unreachable_because(reason: &str) -> StreamingError<TypeConfig> {
    StreamingError::Unreachable(Unreachable::from_string(reason))
}

fn lost(lost: Lost) -> StreamingError<TypeConfig> {
    StreamingError::Unreachable(Unreachable::new(&lost))
}

impl Groups {
    /// Takes a snapshot in: its header, then blocks as they come; `None` when all are in.
    pub(crate) async fn take_snapshot<B>(
        self: Arc<Self>,
        header: v1::SnapshotHeader,
        next_block: B,
    ) -> v1::SnapshotAnswer
    where
        B: AsyncFnMut() -> Result<Option<Bytes>, tonic::Status>,
    {
        let answer = match self.receive(header, next_block).await {
            Ok(vote) => Answer::Vote(convert::vote_to_proto(&vote)),
            Err(refusal) => {
                tracing::info!(detail = %refusal.detail, "a snapshot was not taken");
                Answer::Refusal(refusal)
            }
        };
        v1::SnapshotAnswer { answer: Some(answer) }
    }

    async fn receive<B>(
        &self,
        header: v1::SnapshotHeader,
        next_block: B,
    ) -> Result<Vote, v1::PeerRefusal>
    where
        B: AsyncFnMut() -> Result<Option<Bytes>, tonic::Status>,
    {
        let route = header.route.unwrap_or_default();
        let group = addressed(self, &route)?;
        let vote = sound::leader(header.vote, route.from_replica)?;
        let membership = convert::membership_of_proto(header.membership.unwrap_or_default())?;
        let applied = sound::entry_id(header.applied, &vote)?;
        let membership_at = sound::entry_id(header.membership_at, &vote)?;
        if membership_at.index > applied.index {
            let what = "snapshot: its membership is newer than its rows";
            return Err(Malformed { what }.into());
        }
        let membership_at = types::log_id(membership_at);
        let meta = SnapshotMeta {
            last_log_id: types::log_id(applied),
            last_membership: types::StoredMembership::new(membership_at, membership),
        };
        if let Err(full) = self.store().check_space() {
            return Err(refusal(Kind::NoRoom, full.to_string()));
        }
        let busy = || refusal(Kind::Busy, "other snapshots are coming in");
        let guard = self.transfers().receive(group.shard(), group.replica()).ok_or_else(busy)?;
        let store = self.store().clone();
        let replica = group.replica();
        let incoming = blocking(move || store.receive(replica)).await.map_err(failed)?;
        let received = fill(incoming.map_err(failed)?, next_block, &guard).await?;
        if received.applied() != types::entry_id_or_default(meta.last_log_id) {
            return Err(refusal(Kind::Malformed, "the rows are of another entry than the header"));
        }
        group.install(vote, meta, received).await
    }
}

fn failed(error: impl std::fmt::Display) -> v1::PeerRefusal {
    refusal(Kind::Stopped, error.to_string())
}

/// Writes the blocks as they come.
async fn fill<B>(
    mut incoming: Incoming,
    mut next_block: B,
    guard: &Guard,
) -> Result<Received, v1::PeerRefusal>
where
    B: AsyncFnMut() -> Result<Option<Bytes>, tonic::Status>,
{
    while let Some(block) = next_block().await.map_err(|status| failed(status.message()))? {
        guard.make_room().await;
        guard.count(block.len());
        let (back, added) = blocking(move || {
            let added = incoming.add(block);
            (incoming, added)
        })
        .await
        .map_err(failed)?;
        added.map_err(|error| refusal(Kind::Malformed, error.to_string()))?;
        incoming = back;
    }
    let received = blocking(move || incoming.finish()).await.map_err(failed)?;
    received.map_err(|error| refusal(Kind::Malformed, error.to_string()))
}

impl Group {
    async fn install(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        received: Received,
    ) -> Result<Vote, v1::PeerRefusal> {
        let snapshot = Snapshot { meta, snapshot: View::Incoming(Box::new(received)) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        Ok(installed.map_err(failed)?.vote)
    }
}
