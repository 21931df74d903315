//! A state opened for reading piece by piece, all of one version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use statehouse_cluster::catalog::Missing;
use statehouse_cluster::raft::Group;
use statehouse_store::{FieldStream, FieldType, ModelTag, Reader};

use super::read::{failure, no_state};
use super::{GetQuery, States, check_key};
use crate::failure::{Failure, Reason};

/// A state of which nothing was read yet. Holds up compaction until it is dropped.
pub struct Opened {
    /// When it was last written; 0: there is no state, and its collection takes that for empty.
    pub version: u64,
    /// Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// The model that made it.
    pub model: Option<ModelTag>,
    /// How far behind the leader the replica is.
    pub lag: Duration,
    /// What was asked for, in that order.
    pub slices: Vec<Slice>,
}

/// A part of a field that is about to be read.
pub struct Slice {
    /// The field's name.
    pub name: String,
    /// Type and shape of the part.
    pub field_type: FieldType,
    /// Its bytes.
    pub bytes: u64,
    /// When the field expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    stream: FieldStream,
}

impl States {
    /// Opens a state, once the replica may serve the read.
    pub async fn open(&self, group: &Arc<Group>, query: &GetQuery) -> Result<Opened, Failure> {
        check_key(&query.target.key)?;
        let collection = self.collection(&query.target.collection).await?;
        let lag = query.freshness.reached_by(group).await?;
        let (id, key, selection) =
            (collection.id, query.target.key.clone(), query.selection.clone());
        let now_ms = group.now_ms();
        let open = move |reader: &Reader| {
            let view = Arc::new(reader.view().map_err(failure)?);
            let state = view.get(id, &key, now_ms).map_err(failure)?;
            let Some(state) = state else { return Ok(None) };
            let mut slices = Vec::new();
            let selected = state.select(&selection).map_err(failure)?;
            for statehouse_store::Slice { field, range, field_type } in selected {
                let stream = view.stream(field, range.clone()).map_err(failure)?;
                let (name, bytes) = (field.name.clone(), range.end - range.start);
                let expires_at_ms = field.expires_at_ms;
                slices.push(Slice { name, field_type, bytes, expires_at_ms, stream });
            }
            Ok(Some((state, slices)))
        };
        match self.on_disk(group.reader(), open).await? {
            Some((state, slices)) => {
                let (version, expires_at_ms) = (state.version, state.expires_at_ms);
                Ok(Opened { version, expires_at_ms, model: state.model, lag, slices })
            }
            None => match collection.settings.missing {
                Missing::Error => Err(no_state(&collection, &query.target.key)),
                Missing::Empty => Ok(Opened {
                    version: 0,
                    expires_at_ms: None,
                    model: None,
                    lag,
                    slices: Vec::new(),
                }),
            },
        }
    }

    /// Reads about so many bytes more of a slice, on the threads for long stretches; none at its
    /// end. Answers the slice back.
    pub async fn read_on(
        &self,
        mut slice: Slice,
        bytes: usize,
    ) -> Result<(Slice, Vec<Bytes>), Failure> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let read = move || {
            let mut pieces = Vec::new();
            let mut read = 0;
            while read < bytes
                && let Some(piece) = slice.stream.next_piece()?
            {
                read += piece.len();
                pieces.push(piece);
            }
            Ok((slice, pieces))
        };
        self.shards().store().stream_pool().submit(Box::new(move || {
            // The reader may have left meanwhile.
            let _ = sender.send(read());
        }))?;
        let stopping = || Failure::new(Reason::Unavailable, "the node is stopping");
        receiver.await.map_err(|_| stopping())?.map_err(failure)
    }
}
