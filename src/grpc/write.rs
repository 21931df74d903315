//! `State.Write`: a stream of chunks becomes parts of an upload, a few of them under way at a time,
//! and in the end a state.
//!
//! The node that the stream came to cuts it and keeps what is not acknowledged; the parts go to
//! the shard's leader, one call each. When that one changes, parts that went by another way may
//! overtake those before them: the leader then says how much is there, and they are sent again
//! from there.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use statehouse_proto::v1;
use statehouse_proto::v1::upload_request::{Abort, Begin, End, Part, Step};
use statehouse_proto::v1::write_stream_request::Part as Message;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};

use super::caller::{Caller, late};
use super::observed::outcome;
use super::transfers::{finished, finished_or};
use super::{Calls, Transfers, convert};
use crate::failure::{Failure, Reason};
use crate::large::Subject;
use crate::metrics::{CallKind, Direction, OpenStream};

/// Bytes of one part: the log's entries stay small, so that others get their turn.
const PART_BYTES: usize = 1 << 20;

/// Bytes of one chunk that comes.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// Parts of one stream that are sent and not acknowledged.
const PARTS_IN_FLIGHT_MAX: usize = 8;

/// How long parts are sent again and again without getting on.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How long one attempt of a part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes a state from a stream of chunks, on the threads for that.
pub async fn write(
    calls: &Calls,
    chunks: Streaming<v1::WriteStreamRequest>,
    caller: Caller<'static>,
) -> Result<v1::WriteStreamResponse, Failure> {
    let on = calls.clone();
    let small = Handle::current();
    let written = calls.transfers().spawn(async move { begin(&on, &small, chunks, caller).await });
    // A node that stops gives it up anywhere: the command that ends it may be on its way.
    finished_or(written, Reason::OutcomeUnknown).await
}

async fn begin(
    calls: &Calls,
    small: &Handle,
    mut chunks: Streaming<v1::WriteStreamRequest>,
    caller: Caller<'static>,
) -> Result<v1::WriteStreamResponse, Failure> {
    let first = next(calls.transfers(), &mut chunks, caller.deadline).await?;
    let Some(Message::Header(header)) = first else {
        return Err(invalid("a write begins with a header"));
    };
    if header.options.as_ref().is_some_and(|options| !options.request_id.is_empty()) {
        return Err(invalid("a write's upload_id is its request id: request_id is not given"));
    }
    let _place = calls.transfers().enter()?;
    let open = calls.transfers().counted().open(Direction::Write);
    let upload = Uploading::new(calls, small, header, caller, open)?;
    let v1::WriteHeader { collection, key, .. } = &upload.header;
    let subject = Subject { collection, key, items: 0 };
    let watched = calls.large().watch(CallKind::Write, subject, upload.expected);
    let written = take_up(upload, &mut chunks).await;
    calls.large().done(watched, 0, outcome(&written));
    written
}

/// Takes everything that an upload's stream brings.
async fn take_up(
    mut upload: Uploading<'_>,
    chunks: &mut Streaming<v1::WriteStreamRequest>,
) -> Result<v1::WriteStreamResponse, Failure> {
    if upload.expected <= PART_BYTES as u64 && upload.received == 0 {
        return upload.at_once(chunks).await;
    }
    if let Some(done) = upload.begin().await? {
        return Ok(done);
    }
    let ending = match upload.take(chunks).await {
        Ok(ending) => ending,
        Err(failure) => {
            upload.settle().await;
            if failure.reason == Reason::DiskFull {
                upload.abort().await;
            }
            return Err(failure);
        }
    };
    match ending {
        Ending::Open => {
            Ok(v1::WriteStreamResponse { received_bytes: upload.received, ..Default::default() })
        }
        Ending::Whole(end) => upload.end(end.crc32).await,
        Ending::Refused(failure) => Err(failure.with("received_bytes", upload.received)),
    }
}

/// What a stream brings next, until its sender's deadline; `None` at its end.
async fn next(
    transfers: &Transfers,
    chunks: &mut Streaming<v1::WriteStreamRequest>,
    deadline: Option<Instant>,
) -> Result<Option<Message>, Failure> {
    let stalled = Instant::now() + transfers.stall_after();
    let until = deadline.map_or(stalled, |deadline| deadline.min(stalled));
    let message = tokio::time::timeout_at(until.into(), chunks.message()).await;
    let message = message.map_err(|_| match until == stalled {
        true => transfers.stalled("sent", transfers.stall_after()),
        false => late(),
    })?;
    match message.map_err(|status| broken(&status))? {
        None => Ok(None),
        Some(message) => message
            .part
            .map(Some)
            .ok_or_else(|| invalid("a message of a write is a header, a chunk or an end")),
    }
}

/// The stream broke off; who sent it is gone most likely.
fn broken(status: &Status) -> Failure {
    match status.code() {
        tonic::Code::OutOfRange => invalid(status.message()),
        _ => Failure::new(Reason::Unavailable, format!("the stream broke off: {status}")),
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Reason::InvalidRequest, message)
}

/// A part that is cut and not acknowledged.
struct Unacknowledged {
    offset: u64,
    data: Bytes,
    crc32: u32,
    /// Its share of the bytes that all streams may hold.
    _held: OwnedSemaphorePermit,
}

impl Unacknowledged {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// How a stream of chunks ended. What it had brought by then is there.
enum Ending {
    /// With an end: the state is whole.
    Whole(v1::WriteEnd),
    /// Closed without one: another stream may go on.
    Open,
    /// It broke off, stood still, or brought something that is wrong.
    Refused(Failure),
}

type UnderWay = Pin<Box<dyn Future<Output = Result<v1::UploadResponse, Failure>> + Send>>;

/// An upload that a stream feeds.
struct Uploading<'a> {
    calls: &'a Calls,
    /// The threads of small calls: connections to other nodes are theirs.
    small: &'a Handle,
    caller: Caller<'static>,
    header: v1::WriteHeader,
    /// Bytes that the fields have.
    expected: u64,
    writer: u64,
    /// Bytes that are acknowledged.
    received: u64,
    /// What came and is not cut into parts.
    gathered: BytesMut,
    /// A part that came as it is, and its checksum.
    whole: Option<(Bytes, u32)>,
    /// What is cut and not acknowledged; the first ones of it are under way.
    parts: VecDeque<Unacknowledged>,
    under_way: FuturesOrdered<UnderWay>,
    /// When something was acknowledged last.
    progress: Instant,
    open: OpenStream,
}

impl<'a> Uploading<'a> {
    fn new(
        calls: &'a Calls,
        small: &'a Handle,
        mut header: v1::WriteHeader,
        caller: Caller<'static>,
        open: OpenStream,
    ) -> Result<Self, Failure> {
        if header.upload_id.is_empty() {
            header.upload_id = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        }
        let fields = convert::uploaded_fields(header.fields.clone())?;
        let expected = fields.iter().map(|field| field.bytes).fold(0, u64::saturating_add);
        let (writer, received) = (rand::random::<u64>().max(1), header.offset);
        if received > expected {
            return Err(invalid(format!("offset {received} lies behind all {expected} bytes")));
        }
        Ok(Uploading {
            calls,
            small,
            caller,
            header,
            expected,
            writer,
            received,
            gathered: BytesMut::new(),
            whole: None,
            parts: VecDeque::new(),
            under_way: FuturesOrdered::new(),
            progress: Instant::now(),
            open,
        })
    }

    /// Does a step, wherever the shard is led.
    fn call(&self, step: Step) -> UnderWay {
        let v1::WriteHeader { collection, key, upload_id, .. } = &self.header;
        let (collection, key, upload_id) = (collection.clone(), key.clone(), upload_id.clone());
        let latest = Instant::now() + PART_TIMEOUT;
        let deadline = match (&step, self.caller.deadline) {
            // What came is brought there, even if its sender waits no longer.
            (Step::Part(_) | Step::Abort(_), _) | (_, None) => latest,
            (_, Some(deadline)) => deadline.min(latest),
        };
        let request = v1::UploadRequest { collection, key, upload_id, step: Some(step) };
        let caller = Caller { deadline: Some(deadline), ..self.caller.clone() };
        let calls = self.calls.clone();
        let call = self.small.spawn(async move {
            super::caller::within(Some(deadline), calls.part(request, caller)).await
        });
        Box::pin(finished(call))
    }

    /// Begins or continues. Answers at once if the same upload was ended before.
    async fn begin(&mut self) -> Result<Option<v1::WriteStreamResponse>, Failure> {
        let (writer, fields) = (self.writer, self.header.fields.clone());
        let begun = self.call(Step::Begin(Begin { writer, fields })).await?;
        if let Some(done) = self.done(&begun) {
            return Ok(Some(done));
        }
        if begun.received_bytes != self.received {
            let (there, asked) = (begun.received_bytes, self.received);
            let message = format!("the stream begins at byte {asked}, but {there} are there");
            return Err(Failure::new(Reason::UploadOffset, message).with("received_bytes", there));
        }
        if self.received == 0 {
            self.open.uploads().begun();
        }
        Ok(None)
    }

    fn done(&self, answer: &v1::UploadResponse) -> Option<v1::WriteStreamResponse> {
        Some(v1::WriteStreamResponse {
            version: Some(answer.version?),
            repeated_request: answer.repeated_request,
            received_bytes: self.expected,
            size_warning: answer.size_warning,
        })
    }

    /// Writes a state that fits into one part by one put.
    async fn at_once(
        self,
        chunks: &mut Streaming<v1::WriteStreamRequest>,
    ) -> Result<v1::WriteStreamResponse, Failure> {
        let _held = self.calls.transfers().hold(self.expected as usize).await?;
        let mut gathered = BytesMut::with_capacity(self.expected as usize);
        let end = loop {
            match next(self.calls.transfers(), chunks, self.caller.deadline).await? {
                Some(Message::Chunk(chunk)) => {
                    let (data, _) = checked(chunk)?;
                    self.check_came((gathered.len() + data.len()) as u64)?;
                    gathered.extend_from_slice(&data);
                    self.open.moved(data.len());
                }
                Some(Message::End(end)) => break end,
                Some(Message::Header(_)) => return Err(invalid("a write has one header")),
                // So little is not worth keeping.
                None => return Ok(v1::WriteStreamResponse::default()),
            }
        };
        let whole = gathered.freeze();
        convert::check_whole(&whole, self.expected, end.crc32)?;
        let v1::WriteHeader { collection, key, fields, options, upload_id, .. } = self.header;
        let options = v1::WriteOptions { request_id: upload_id, ..options.unwrap_or_default() };
        let fields = convert::fields_of(fields, whole)?;
        let put = v1::PutRequest { collection, key, fields, options: Some(options) };
        let v1::WriteResponse { version, repeated_request, size_warning } =
            self.calls.routed(put, self.caller).await?;
        let (version, received_bytes) = (Some(version), self.expected);
        Ok(v1::WriteStreamResponse { version, repeated_request, received_bytes, size_warning })
    }

    /// Refuses more bytes than the fields have.
    fn check_came(&self, came: u64) -> Result<(), Failure> {
        let expected = self.expected;
        match came > expected {
            true => Err(invalid(format!("the fields have {expected} bytes, {came} came"))),
            false => Ok(()),
        }
    }

    /// Takes chunks until the stream ends, however it does, and waits until all that it brought
    /// are there. An error: they could not be brought there. Parts that are under way get on
    /// meanwhile, whatever is waited for: what they hold is what others wait for.
    async fn take(
        &mut self,
        chunks: &mut Streaming<v1::WriteStreamRequest>,
    ) -> Result<Ending, Failure> {
        let (transfers, deadline) = (self.calls.transfers(), self.caller.deadline);
        let mut ending = None;
        loop {
            let whole = self.whole.is_some() || self.gathered.len() >= PART_BYTES;
            let cut = whole || (ending.is_some() && !self.gathered.is_empty());
            let bytes = if whole { PART_BYTES } else { self.gathered.len() };
            if !cut
                && self.parts.is_empty()
                && let Some(ending) = ending
            {
                return Ok(ending);
            }
            let may_cut = cut && self.parts.len() < PARTS_IN_FLIGHT_MAX;
            tokio::select! {
                Some(answer) = self.under_way.next() => self.answered(answer).await?,
                held = transfers.hold(bytes), if may_cut => self.send(bytes, held?),
                message = next(transfers, chunks, deadline), if !cut && ending.is_none() => {
                    ending = self.brought(message);
                }
            }
        }
    }

    /// Takes what the stream brought next. Answers how it ended, if it did.
    fn brought(&mut self, message: Result<Option<Message>, Failure>) -> Option<Ending> {
        let gathered = match message {
            Ok(Some(Message::Chunk(chunk))) => checked(chunk).and_then(|chunk| self.gather(chunk)),
            Ok(Some(Message::End(end))) => return Some(Ending::Whole(end)),
            Ok(Some(Message::Header(_))) => Err(invalid("a write has one header")),
            Ok(None) => return Some(Ending::Open),
            Err(failure) => Err(failure),
        };
        gathered.err().map(Ending::Refused)
    }

    fn gather(&mut self, (data, crc32): (Bytes, Option<u32>)) -> Result<(), Failure> {
        if data.len() > CHUNK_BYTES_MAX {
            let (got, max) = (data.len(), CHUNK_BYTES_MAX);
            return Err(invalid(format!("a chunk has at most {max} bytes, got {got}")));
        }
        let cut = self.parts.back().map_or(self.received, Unacknowledged::end);
        self.check_came(cut + (self.gathered.len() + data.len()) as u64)?;
        self.open.moved(data.len());
        match crc32 {
            Some(crc32) if self.gathered.is_empty() && data.len() == PART_BYTES => {
                self.whole = Some((data, crc32));
            }
            _ => self.gathered.extend_from_slice(&data),
        }
        Ok(())
    }

    /// Cuts a part and sends it.
    fn send(&mut self, bytes: usize, held: OwnedSemaphorePermit) {
        let offset = self.parts.back().map_or(self.received, Unacknowledged::end);
        let (data, crc32) = self.whole.take().unwrap_or_else(|| {
            let data = self.gathered.split_to(bytes).freeze();
            let crc32 = crc32fast::hash(&data);
            (data, crc32)
        });
        self.parts.push_back(Unacknowledged { offset, data, crc32, _held: held });
        self.send_from(self.parts.len() - 1);
    }

    /// Sends the parts from a place on.
    fn send_from(&mut self, first: usize) {
        let writer = self.writer;
        let part = |part: &Unacknowledged| {
            let Unacknowledged { offset, data, crc32, .. } = part;
            let (offset, data, crc32) = (*offset, data.clone(), *crc32);
            self.call(Step::Part(Part { writer, offset, data, crc32 }))
        };
        let calls: Vec<UnderWay> = self.parts.iter().skip(first).map(part).collect();
        self.under_way.extend(calls);
    }

    /// Takes what a part was answered. One that did not get its place, or failed for now, is sent
    /// again, with all that came behind it.
    async fn answered(
        &mut self,
        answer: Result<v1::UploadResponse, Failure>,
    ) -> Result<(), Failure> {
        let wait = match answer {
            Ok(answer) => {
                self.acknowledged(answer.received_bytes);
                let sent = self.parts.len() - self.under_way.len().min(self.parts.len());
                if sent == 0 {
                    return Ok(());
                }
                Duration::ZERO
            }
            Err(failure) => {
                let wait = failure.retry_after.filter(|_| failure.reason == Reason::Overloaded);
                wait.ok_or(failure)?
            }
        };
        // Those behind it are out of place now.
        self.settle().await;
        if self.progress.elapsed() > STUCK_AFTER {
            return Err(Failure::overloaded("the upload's parts do not get on"));
        }
        tokio::time::sleep(wait).await;
        self.send_from(0);
        Ok(())
    }

    /// Waits for what is under way: how much is there does not change any more.
    async fn settle(&mut self) {
        while let Some(answer) = self.under_way.next().await {
            self.acknowledged(answer.map_or(0, |answer| answer.received_bytes));
        }
    }

    fn acknowledged(&mut self, there: u64) {
        if there <= self.received {
            return;
        }
        self.received = there;
        self.progress = Instant::now();
        while self.parts.front().is_some_and(|part| part.end() <= there) {
            self.parts.pop_front();
        }
    }

    async fn end(&mut self, crc32: Option<u32>) -> Result<v1::WriteStreamResponse, Failure> {
        let (writer, fields) = (self.writer, self.header.fields.clone());
        let options = self.header.options.clone();
        let ended = self.call(Step::End(End { writer, fields, options, crc32 })).await?;
        self.open.uploads().ended();
        self.done(&ended).ok_or_else(super::routed::not_its_answer)
    }

    /// Gives the upload up, as far as that can be done.
    async fn abort(&mut self) {
        match self.call(Step::Abort(Abort {})).await {
            Ok(_) => self.open.uploads().aborted(),
            Err(failure) => {
                tracing::debug!(%failure, "what found the disk full stays until it expires");
            }
        }
    }
}

/// A chunk's data and their checksum, if they are what was sent.
fn checked(chunk: v1::WriteChunk) -> Result<(Bytes, Option<u32>), Failure> {
    match chunk.crc32 {
        Some(expected) if crc32fast::hash(&chunk.data) != expected => {
            let message = format!("a chunk's CRC-32 is not {expected:#010x}: send it again");
            Err(Failure::new(Reason::ChecksumMismatch, message))
        }
        Some(_) | None => Ok((chunk.data, chunk.crc32)),
    }
}
