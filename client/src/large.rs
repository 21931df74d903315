//! States of any size: written from a source that can be asked again, read chunk by chunk.
//!
//! A write that breaks off goes on from where the shard says, at another node if need be, as long
//! as it gets on. Its id makes that safe: whatever was lost on the way, the state is written once.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crc32fast::Hasher;
use statehouse_proto::v1;
use statehouse_proto::v1::read_stream_response::Part as Got;
use statehouse_proto::v1::state_client::StateClient;
use statehouse_proto::v1::write_stream_request::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::call_metadata::Connection;
use crate::nodes::Target;
use crate::retry::{Attempts, Backoff, Effect, Fate};
use crate::{Client, Error};

/// Bytes of one chunk that is sent: what a node makes one part of.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks that wait to be sent.
const CHUNKS_WAITING_MAX: usize = 2;

/// How long a write is tried again without getting on.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Where the bytes of a state come from.
pub trait Source: Send {
    /// The bytes from an offset on: at most so many, and none at the end alone. May be asked for
    /// the same ones again.
    fn read(
        &mut self,
        offset: u64,
        bytes_max: usize,
    ) -> impl Future<Output = io::Result<Bytes>> + Send;
}

impl Source for Bytes {
    async fn read(&mut self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(self.slice(from..self.len().min(from + bytes_max)))
    }
}

/// Why a state was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// As the cluster says.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The source could not be read.
    #[error("read the source: {0}")]
    Source(#[from] io::Error),
    /// The source ended before the fields did.
    #[error("the source ends at byte {at}, the fields have {expected} bytes")]
    TooShort {
        /// Where it ended.
        at: u64,
        /// What the header says.
        expected: u64,
    },
}

/// The source's checksum, as far as it was read from its front.
#[derive(Default)]
struct Summed {
    crc: Hasher,
    bytes: u64,
}

impl Summed {
    /// Bytes that were read at an offset, perhaps not for the first time.
    fn add(&mut self, offset: u64, data: &[u8]) {
        let known = self.bytes.saturating_sub(offset) as usize;
        if let Some(fresh) = data.get(known..) {
            self.crc.update(fresh);
            self.bytes += fresh.len() as u64;
        }
    }
}

impl Client {
    /// Writes a state from a source; `progress` is told how many bytes are on their way or there.
    /// Every field of the header says its bytes. Without an upload id it gets a random one. What a
    /// stream before had sent under the same id is not sent again.
    pub async fn write(
        &self,
        mut header: v1::WriteHeader,
        source: &mut impl Source,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<v1::WriteStreamResponse, WriteError> {
        let continues = !header.upload_id.is_empty();
        if !continues {
            header.upload_id = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        }
        let (mut summed, mut backoff) = (Summed::default(), Backoff::default());
        let mut attempts = Attempts::default();
        let expected: u64 = header.fields.iter().map(|field| field.bytes).sum();
        let mut latest = Instant::now() + STUCK_AFTER;
        if continues {
            header.offset = self.uploaded(&header).await.unwrap_or(0);
        }
        loop {
            let target = self.target(&header.key);
            let sent = self.send_from(&target, &header, source, &mut summed, &mut progress).await;
            let error = match sent {
                Err(WriteError::Refused(error)) => error,
                done => return done,
            };
            let offset = error_offset(&error);
            let fate = Fate::of(&error);
            let again = offset.is_some()
                || fate.allows(Effect::Repeatable)
                || error.reason() == Some("OVERLOADED");
            if !again || Instant::now() > latest {
                return Err(attempts.end(fate, error).into());
            }
            self.learn_from(&header.key, &error, &target).await;
            // Before all of it was sent, there is no state.
            if summed.bytes >= expected {
                attempts.failed(fate, Effect::Repeatable, error);
            }
            tokio::time::sleep(backoff.next(rand::random())).await;
            let there = match offset {
                Some(offset) => offset,
                None => self.uploaded(&header).await.unwrap_or(header.offset),
            };
            if there > header.offset {
                (latest, backoff) = (Instant::now() + STUCK_AFTER, Backoff::default());
            }
            header.offset = there;
        }
    }

    /// How much of an upload is there; 0 if there is none.
    async fn uploaded(&self, header: &v1::WriteHeader) -> Result<u64, Error> {
        let target = self.target(&header.key);
        let request = v1::GetUploadRequest {
            collection: header.collection.clone(),
            key: header.key.clone(),
            upload_id: header.upload_id.clone(),
        };
        match self.large(&target).get_upload(request).await {
            Ok(upload) => Ok(upload.into_inner().received_bytes),
            Err(status) => match Error::from_status(target.lanes.endpoint(), &status) {
                error if error.reason() == Some("UPLOAD_NOT_FOUND") => Ok(0),
                error => Err(error),
            },
        }
    }

    /// One attempt.
    async fn send_from(
        &self,
        target: &Target,
        header: &v1::WriteHeader,
        source: &mut impl Source,
        summed: &mut Summed,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<v1::WriteStreamResponse, WriteError> {
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
        let mut client = self.large(target);
        let mut answer = std::pin::pin!(client.write(ReceiverStream::new(receiver)));
        let refused =
            |status| WriteError::from(Error::from_status(target.lanes.endpoint(), &status));
        {
            let mut feed = std::pin::pin!(feed(sender, header, source, summed, progress));
            tokio::select! {
                biased;
                // A refusal, most likely: the rest need not be sent.
                answer = &mut answer => {
                    return Ok(answer.map_err(refused)?.into_inner());
                }
                fed = &mut feed => fed?,
            }
        }
        Ok(answer.await.map_err(refused)?.into_inner())
    }

    /// Opens a state for reading, all of it or the parts that the request names. Read it to its
    /// end without long pauses: a node cuts off who takes nothing.
    pub async fn open(&self, request: v1::GetRequest) -> Result<StateStream, Error> {
        let mut backoff = Backoff::default();
        let latest = Instant::now() + STUCK_AFTER;
        loop {
            let target = self.target(&request.key);
            let error = match self.large(&target).read(request.clone()).await {
                Ok(answer) => {
                    let endpoint = target.lanes.endpoint().to_owned();
                    match StateStream::begin(endpoint, answer.into_inner()).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => error,
                    }
                }
                Err(status) => Error::from_status(target.lanes.endpoint(), &status),
            };
            if !Fate::of(&error).allows(Effect::None) || Instant::now() > latest {
                return Err(error);
            }
            self.learn_from(&request.key, &error, &target).await;
            tokio::time::sleep(backoff.next(rand::random())).await;
        }
    }

    fn large(&self, target: &Target) -> StateClient<Connection> {
        let max = self.message_bytes_max();
        StateClient::new(target.lanes.bulk_connection())
            .max_decoding_message_size(max)
            .max_encoding_message_size(max)
    }
}

/// Sends the header, the source's bytes from the header's offset on, and the end.
async fn feed(
    sender: mpsc::Sender<v1::WriteStreamRequest>,
    header: &v1::WriteHeader,
    source: &mut impl Source,
    summed: &mut Summed,
    progress: &mut (impl FnMut(u64) + Send),
) -> Result<(), WriteError> {
    let expected = header.fields.iter().map(|field| field.bytes).sum();
    // An error means that the answer is there: whoever waits for it takes it.
    let send = async |part| sender.send(v1::WriteStreamRequest { part: Some(part) }).await.is_ok();
    if !send(Part::Header(header.clone())).await {
        return Ok(());
    }
    // What is there already counts for the checksum.
    while summed.bytes < header.offset {
        let left = (header.offset - summed.bytes).min(CHUNK_BYTES as u64) as usize;
        let data = read(source, summed.bytes, left, expected).await?;
        summed.add(summed.bytes, &data);
    }
    let mut offset = header.offset;
    progress(offset);
    while offset < expected {
        let left = (expected - offset).min(CHUNK_BYTES as u64) as usize;
        let data = read(source, offset, left, expected).await?;
        summed.add(offset, &data);
        offset += data.len() as u64;
        let crc32 = Some(crc32fast::hash(&data));
        if !send(Part::Chunk(v1::WriteChunk { data, crc32 })).await {
            return Ok(());
        }
        progress(offset);
    }
    let crc32 = Some(summed.crc.clone().finalize());
    send(Part::End(v1::WriteEnd { crc32 })).await;
    Ok(())
}

async fn read(
    source: &mut impl Source,
    offset: u64,
    bytes: usize,
    expected: u64,
) -> Result<Bytes, WriteError> {
    let data = source.read(offset, bytes).await?;
    match data.is_empty() {
        true => Err(WriteError::TooShort { at: offset, expected }),
        false => Ok(data),
    }
}

/// Where a refused stream should have begun.
fn error_offset(error: &Error) -> Option<u64> {
    match error {
        Error::Refused { reason, metadata, .. } if reason == "UPLOAD_OFFSET" => {
            metadata.get("received_bytes")?.parse().ok()
        }
        _ => None,
    }
}

/// A state that is being read.
pub struct StateStream {
    endpoint: String,
    header: v1::ReadHeader,
    chunks: Streaming<v1::ReadStreamResponse>,
    crc: Hasher,
    ended: bool,
}

impl StateStream {
    async fn begin(
        endpoint: String,
        chunks: Streaming<v1::ReadStreamResponse>,
    ) -> Result<Self, Error> {
        let header = v1::ReadHeader::default();
        let (crc, ended) = (Hasher::new(), false);
        let mut stream = StateStream { endpoint, header, chunks, crc, ended };
        match stream.next_part().await? {
            Some(Got::Header(header)) => stream.header = header,
            _ => return Err(Error::Unexpected("a read that does not begin with a header")),
        }
        Ok(stream)
    }

    /// Version, fields and their sizes.
    pub fn header(&self) -> &v1::ReadHeader {
        &self.header
    }

    /// The next bytes, with the place of their field in the header; `None` at the end, once the
    /// checksum of everything held.
    pub async fn next_chunk(&mut self) -> Result<Option<v1::ReadChunk>, Error> {
        if self.ended {
            return Ok(None);
        }
        match self.next_part().await? {
            Some(Got::Chunk(chunk)) => {
                self.crc.update(&chunk.data);
                Ok(Some(chunk))
            }
            Some(Got::End(end)) if end.crc32 == self.crc.clone().finalize() => {
                self.ended = true;
                Ok(None)
            }
            Some(Got::End(_)) => Err(Error::Unexpected("bytes that do not fit their checksum")),
            Some(Got::Header(_)) => Err(Error::Unexpected("a second header")),
            None => Err(Error::Unexpected("a read without an end")),
        }
    }

    async fn next_part(&mut self) -> Result<Option<Got>, Error> {
        let message = self.chunks.message().await;
        let message = message.map_err(|status| Error::from_status(&self.endpoint, &status))?;
        match message {
            None => Ok(None),
            Some(message) => {
                message.part.map(Some).ok_or(Error::Unexpected("an empty message of a read"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_of_bytes_ends_where_they_do() {
        let mut bytes = Bytes::from_static(b"hello");
        assert_eq!(bytes.read(0, 3).await.unwrap(), "hel");
        assert_eq!(bytes.read(3, 10).await.unwrap(), "lo");
        assert!(bytes.read(5, 10).await.unwrap().is_empty());
        assert!(bytes.read(u64::MAX, 10).await.unwrap().is_empty());
    }

    #[test]
    fn what_is_read_again_is_summed_once() {
        let mut summed = Summed::default();
        summed.add(0, b"hello ");
        summed.add(3, b"lo wor");
        summed.add(0, b"hello");
        summed.add(9, b"ld");
        assert_eq!(summed.bytes, 11);
        assert_eq!(summed.crc.finalize(), crc32fast::hash(b"hello world"));
    }
}
