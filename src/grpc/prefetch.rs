//! `State.Prefetch`: as a batch of reads, but no bytes come back and nobody asks whether a leader
//! still leads.

use std::sync::Arc;

use prost::Message as _;
use statehouse_client::batch::{Batch, Item};
use statehouse_cluster::raft::Group;
use statehouse_proto::v1;

use super::caller::Caller;
use super::calls::check_batch;
use super::{Calls, convert};
use crate::failure::Failure;
use crate::metrics::CallKind;
use crate::states::{KeyHere, Prefetched};

impl Calls {
    pub(super) async fn prefetch(
        &self,
        request: v1::PrefetchRequest,
        caller: Caller<'_>,
    ) -> Result<v1::PrefetchResponse, Failure> {
        self.counted().count(CallKind::Prefetch, self.prefetch_uncounted(request, caller)).await
    }

    async fn prefetch_uncounted(
        &self,
        request: v1::PrefetchRequest,
        caller: Caller<'_>,
    ) -> Result<v1::PrefetchResponse, Failure> {
        caller.charge.request(request.encoded_len())?;
        check_batch("keys", request.keys.len())?;
        convert::selection(request.fields.clone())?;
        self.states().collection(&request.collection).await?;
        let (items, _) = Box::pin(self.scatter(Batch::Prefetch(request), caller)).await?;
        let items = items.into_iter().map(Item::into_prefetch).collect();
        Ok(v1::PrefetchResponse { items })
    }

    /// Brings states into memory here, for this node's replicas.
    pub(super) async fn prefetch_here(
        &self,
        request: &v1::PrefetchRequest,
        here: &[(usize, Arc<Group>)],
    ) -> Vec<(usize, Result<Item, Failure>)> {
        let asked = async {
            let mut selection = convert::selection(request.fields.clone())?;
            selection.if_present = true;
            Ok::<_, Failure>((self.states().collection(&request.collection).await?, selection))
        };
        let (collection, selection) = match asked.await {
            Ok(asked) => asked,
            Err(failure) => {
                return here.iter().map(|(at, _)| (*at, Err(failure.clone()))).collect();
            }
        };
        let keys: Vec<KeyHere<'_>> =
            here.iter().map(|(at, group)| (&request.keys[*at], &**group)).collect();
        let outcomes = self.states().prefetch(&collection, &keys, &selection).await;
        let item = |outcome: Result<Prefetched, Failure>| {
            self.counted().prefetched(outcome.as_ref().ok().copied());
            outcome.map(|prefetched| Item::Warmth(warmth(prefetched)))
        };
        here.iter().map(|(at, _)| *at).zip(outcomes.into_iter().map(item)).collect()
    }
}

fn warmth(prefetched: Prefetched) -> v1::Warmth {
    match prefetched {
        Prefetched::InMemory => v1::Warmth::InMemory,
        Prefetched::Loaded => v1::Warmth::Loaded,
        Prefetched::Partly => v1::Warmth::Partly,
        Prefetched::NoState => v1::Warmth::NoState,
    }
}
