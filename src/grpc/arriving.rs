//! Requests take room while they arrive, before there is anything to look at.
//!
//! A service is wrapped: of what comes, the length of each message is read before the message, and
//! room is taken for it. A call that comes alone and finds none is refused. A stream that many
//! calls share waits: nothing more is read from it, until there is room. What a call that came
//! alone holds, it holds until its answer is gone.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use bytes::{Buf as _, Bytes};
use http_body::{Frame, SizeHint};
use statehouse_client::HOP;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TcpConnectInfo;

use super::leaving::Leaving;
use super::path::Path;
use super::status::status;
use crate::admission::{Admission, Owner};

/// A smaller message comes whole in a frame or two: it is counted with its call.
const COUNTED_BYTES_MIN: u64 = crate::node::FRAME_BYTES_MAX as u64;

/// In front of each message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A service whose requests take room while they arrive.
#[derive(Clone)]
pub struct Arriving<S> {
    inner: S,
    admission: Admission,
    leaving: Leaving,
    message_bytes_max: u64,
}

impl<S> Arriving<S> {
    /// Around a service that takes messages of so many bytes.
    pub fn new(
        inner: S,
        (admission, leaving): (Admission, Leaving),
        message_bytes_max: usize,
    ) -> Self {
        Arriving { inner, admission, leaving, message_bytes_max: message_bytes_max as u64 }
    }
}

impl<S: NamedService> NamedService for Arriving<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Arriving<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (mut head, inner) = request.into_parts();
        let path = Path::of(&head.uri);
        let owner = owner_of(&head, &self.admission);
        let charge = self.admission.charge(owner);
        head.extensions.insert(charge.clone());
        let body = Incoming {
            inner,
            messages: Messages::default(),
            waits: path.brings_many(),
            admission: self.admission.clone(),
            message_bytes_max: self.message_bytes_max,
            held: None,
            frame: None,
            waiting: None,
        };
        let answer = self.inner.call(http::Request::from_parts(head, Body::new(body)));
        let leaving = self.leaving.clone();
        Box::pin(async move { Ok(answer.await?.map(|body| leaving.body(path, body, charge))) })
    }
}

/// Whose call it is: that of its connection. Other nodes' calls are of many.
fn owner_of(head: &http::request::Parts, admission: &Admission) -> Option<Owner> {
    if head.headers.contains_key(HOP) {
        return None;
    }
    let connected = head.extensions.get::<TcpConnectInfo>()?;
    connected.remote_addr().map(|peer| admission.owner(peer))
}

type Waiting = Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>;

/// The body of a request.
struct Incoming {
    inner: Body,
    messages: Messages,
    waits: bool,
    admission: Admission,
    message_bytes_max: u64,
    /// For the message that is coming.
    held: Option<OwnedSemaphorePermit>,
    /// What came and waits for room.
    frame: Option<Frame<Bytes>>,
    waiting: Option<Waiting>,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(waiting) = &mut this.waiting {
            this.held = Some(ready!(waiting.as_mut().poll(cx)));
            this.waiting = None;
            return Poll::Ready(this.frame.take().map(Ok));
        }
        if this.messages.coming.is_none() {
            this.held = None;
        }
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        let began = frame.data_ref().and_then(|data| this.messages.pass(data));
        // One that is too large is refused by whoever decodes it.
        let counted = COUNTED_BYTES_MIN..=this.message_bytes_max;
        let Some(bytes) = began.filter(|bytes| counted.contains(bytes)) else {
            return Poll::Ready(Some(Ok(frame)));
        };
        this.held = None;
        if !this.waits {
            return Poll::Ready(Some(match this.admission.try_hold(bytes) {
                Ok(held) => {
                    this.held = Some(held);
                    Ok(frame)
                }
                Err(full) => Err(status(full)),
            }));
        }
        let admission = this.admission.clone();
        this.waiting = Some(Box::pin(async move { admission.hold(bytes).await }));
        this.frame = Some(frame);
        self.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Where messages begin and end in what comes. Pure.
#[derive(Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes that are missing of the message that is coming.
    coming: Option<u64>,
}

impl Messages {
    /// Bytes come. Answers the length of the message that began with them and does not end with
    /// them.
    fn pass(&mut self, mut data: &[u8]) -> Option<u64> {
        let mut began = None;
        while !data.is_empty() {
            match &mut self.coming {
                Some(missing) => {
                    let here = (*missing).min(data.len() as u64);
                    *missing -= here;
                    data.advance(here as usize);
                }
                None => {
                    let here = (PREFIX_BYTES - self.prefix_bytes).min(data.len());
                    let to = self.prefix_bytes..self.prefix_bytes + here;
                    self.prefix[to].copy_from_slice(&data[..here]);
                    self.prefix_bytes += here;
                    data.advance(here);
                    if self.prefix_bytes == PREFIX_BYTES {
                        let [_, length @ ..] = self.prefix;
                        let length = u64::from(u32::from_be_bytes(length));
                        (self.prefix_bytes, self.coming) = (0, Some(length));
                        began = Some(length);
                    }
                }
            }
            if self.coming == Some(0) {
                self.coming = None;
                began = None;
            }
        }
        began
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Chosen, Plan};
    use crate::size::ByteSize;

    #[test]
    fn a_call_is_of_its_connection_and_what_a_node_passes_on_is_of_nobody() {
        let admission = Admission::new(&Plan::new(ByteSize::mib(512), &Chosen::default()).unwrap());
        let owner = |hop: bool| {
            let mut request = http::Request::new(());
            let remote_addr = Some("10.0.0.1:1".parse().unwrap());
            request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr });
            if hop {
                request.headers_mut().insert(HOP, http::HeaderValue::from_static("1"));
            }
            owner_of(&request.into_parts().0, &admission)
        };
        assert!(owner(false).is_some());
        assert!(owner(true).is_none(), "it is of as many as call that node");
    }

    fn message(bytes: u32) -> Vec<u8> {
        let mut message = vec![0];
        message.extend_from_slice(&bytes.to_be_bytes());
        message.resize(PREFIX_BYTES + bytes as usize, 7);
        message
    }

    /// What is told of a message that is cut at every place.
    #[test]
    fn a_message_is_known_by_its_prefix_wherever_it_is_cut() {
        let whole = message(20);
        for at in 0..=whole.len() {
            let mut messages = Messages::default();
            let (first, rest) = whole.split_at(at);
            let told = [messages.pass(first), messages.pass(rest)];
            let expected = match at {
                0..PREFIX_BYTES => [None, None],
                at if at == whole.len() => [None, None],
                _ => [Some(20), None],
            };
            assert_eq!(told, expected, "cut at {at}");
            assert_eq!(messages.coming, None);
        }
    }

    #[test]
    fn of_many_messages_the_one_that_goes_on_is_told() {
        let mut messages = Messages::default();
        let mut data = [message(3), message(0), message(1_000)].concat();
        let rest = data.split_off(data.len() - 10);
        assert_eq!(messages.pass(&data), Some(1_000));
        assert_eq!(messages.coming, Some(10));
        assert_eq!(messages.pass(&rest[..4]), None);
        assert_eq!(messages.pass(&[&rest[4..], &message(0)[..]].concat()), None);
        assert_eq!(messages.coming, None);
    }
}
