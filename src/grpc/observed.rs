//! Counts a call, and notes it if its request or answer is large (`large.rs` of the crate).

use bytes::Bytes;
use prost::Message;
use statehouse_proto::v1;

use super::Calls;
use crate::failure::Failure;
use crate::large::Subject;
use crate::metrics::CallKind;

static NO_KEY: Bytes = Bytes::new();

/// A request about states.
pub trait Observed: Message {
    /// Whose states.
    fn subject(&self) -> Subject<'_>;
}

impl Calls {
    /// Runs a call, counted. One that another node forwarded is that node's to note.
    pub(super) async fn observed<Q: Observed, A: Message, F>(
        &self,
        kind: CallKind,
        (request, hop): (Q, bool),
        call: impl FnOnce(Q) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<A, Failure>>,
    {
        let large = self.large();
        let watched = match hop || large.bytes() == 0 {
            true => None,
            false => large.watch(kind, request.subject(), request.encoded_len() as u64),
        };
        let answer = self.counted().count(kind, call(request)).await;
        if watched.is_some() {
            let bytes = answer.as_ref().map_or(0, |answer| answer.encoded_len() as u64);
            large.done(watched, bytes, outcome(&answer));
        }
        answer
    }
}

/// How a call ended, in a word.
pub fn outcome<T>(answer: &Result<T, Failure>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(failure) => failure.reason.name(),
    }
}

macro_rules! of_one_state {
    ($($request:ty),*) => { $(
        impl Observed for $request {
            fn subject(&self) -> Subject<'_> {
                Subject { collection: &self.collection, key: &self.key, items: 0 }
            }
        }
    )* };
}

of_one_state!(
    v1::GetRequest,
    v1::PutRequest,
    v1::PatchRequest,
    v1::DeleteRequest,
    v1::ScoreRequest
);

impl Observed for v1::BatchGetRequest {
    fn subject(&self) -> Subject<'_> {
        let key = self.keys.first().unwrap_or(&NO_KEY);
        Subject { collection: &self.collection, key, items: self.keys.len() }
    }
}

impl Observed for v1::BatchPutRequest {
    fn subject(&self) -> Subject<'_> {
        of_first(self.puts.first().map(Observed::subject), self.puts.len())
    }
}

impl Observed for v1::ScoreBatchRequest {
    fn subject(&self) -> Subject<'_> {
        of_first(self.scores.first().map(Observed::subject), self.scores.len())
    }
}

fn of_first(first: Option<Subject<'_>>, items: usize) -> Subject<'_> {
    Subject { items, ..first.unwrap_or(Subject { collection: "", key: &NO_KEY, items }) }
}
