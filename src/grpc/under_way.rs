//! Calls under way: what the stop of a node waits for.
//!
//! A service is wrapped. A call of it is under way from its request on until its answer was taken
//! or given up. A connection without one is nobody that has to be waited for, though it may never
//! say goodbye.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// How long connections without calls may take to say goodbye: what was sent on them before they
/// knew of the stop is taken.
const GOODBYE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Counts a node's calls under way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    calls: AtomicUsize,
    none: Notify,
}

impl UnderWay {
    /// A service whose calls are counted.
    pub fn counted<S>(&self, inner: S) -> Counted<S> {
        Counted { inner, under_way: self.clone() }
    }

    /// Resolves once no call is under way, of a node that takes no more connections.
    pub async fn ended(&self) {
        tokio::time::sleep(GOODBYE_WAIT_MAX).await;
        self.none().await;
    }

    async fn none(&self) {
        loop {
            // Before the look, so that no end is missed.
            let none = self.0.none.notified();
            if self.0.calls.load(Ordering::SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }

    fn begin(&self) -> Call {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        Call(self.0.clone())
    }
}

/// A call under way, for as long as this lives.
struct Call(Arc<Count>);

impl Drop for Call {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    under_way: UnderWay,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Answering { call: Some(self.under_way.begin()), inner: self.inner.call(request) }
    }
}

/// A call until there is an answer.
pub struct Answering<F> {
    inner: F,
    call: Option<Call>,
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<http::Response<Body>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll(cx);
        polled.map(|answer| {
            let call = this.call.take();
            answer.map(|answer| answer.map(|inner| Body::new(Taken { inner, _call: call })))
        })
    }
}

/// An answer until it is taken.
struct Taken {
    inner: Body,
    _call: Option<Call>,
}

impl HttpBody for Taken {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_call_is_under_way_once_the_last_one_is_dropped() {
        let under_way = UnderWay::default();
        under_way.none().await;
        let (first, last) = (under_way.begin(), under_way.begin());
        let mut none = std::pin::pin!(under_way.none());
        assert!(futures::poll!(&mut none).is_pending());
        drop(first);
        assert!(futures::poll!(&mut none).is_pending());
        drop(last);
        none.await;
    }
}
