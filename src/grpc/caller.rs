//! What comes with a call beside its message: its deadline, whether it was forwarded already, and
//! what it may hold of the node's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statehouse_client::HOP;
use statehouse_cluster::NodeId;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::Calls;
use super::status::status;
use super::transfers::finished_or;
use crate::admission::{Admission, Charge};
use crate::failure::{Failure, Reason};

/// What a call's caller said of it, or wants to learn.
#[derive(Clone)]
pub struct Caller<'a> {
    /// When the answer is worthless.
    pub deadline: Option<Instant>,
    /// Another node forwarded the call: this one does not.
    pub hop: bool,
    /// Where the node that answered is put, if that is another one.
    pub forwarded_to: Option<&'a AtomicU64>,
    /// What the call holds.
    pub charge: Arc<Charge>,
}

impl Caller<'_> {
    /// Of a call that comes alone, and what it holds until its answer is gone.
    fn of<Q>(request: &mut Request<Q>, admission: &Admission) -> Caller<'static> {
        let charge = request.extensions_mut().remove::<Arc<Charge>>();
        let metadata = request.metadata();
        Caller {
            deadline: deadline(metadata),
            hop: is_hop(metadata),
            forwarded_to: None,
            charge: charge.unwrap_or_else(|| admission.charge(None)),
        }
    }

    /// Another node has answered.
    pub fn answered_by(&self, node: NodeId) {
        if let Some(forwarded_to) = self.forwarded_to {
            forwarded_to.store(node.0, Ordering::Relaxed);
        }
    }
}

/// Whether calls were forwarded by another node.
pub fn is_hop(metadata: &MetadataMap) -> bool {
    metadata.contains_key(HOP)
}

/// Runs a call within its deadline.
pub async fn within<T>(
    deadline: Option<Instant>,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(deadline) = deadline else { return call.await };
    tokio::time::timeout_at(deadline.into(), call).await.unwrap_or_else(|_| Err(late()))
}

/// Makes a change of several steps on a task of its own: it is made to its end even if whoever
/// asked for it leaves halfway.
pub async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    finished_or(tokio::spawn(change), Reason::OutcomeUnknown).await
}

/// A deadline has passed.
pub fn late() -> Failure {
    Failure::new(Reason::DeadlineExceeded, "no answer before the deadline")
}

/// Runs a call that comes alone within its caller's deadline.
pub async fn unary<Q, A, F>(
    calls: &Calls,
    mut request: Request<Q>,
    call: impl FnOnce(Q, Caller<'static>) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<A, Failure>>,
{
    let caller = Caller::of(&mut request, calls.admission());
    let answer = within(caller.deadline, call(request.into_inner(), caller)).await;
    answer.map(Response::new).map_err(status)
}

/// The caller's deadline: `grpc-timeout` is up to 8 digits and a unit.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = parse_timeout(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(timeout)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_change_is_made_to_its_end_though_its_caller_left() {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (go, may_go) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let change = to_its_end(async move {
            begun.send(()).unwrap();
            may_go.await.unwrap();
            done.send(()).unwrap();
            Ok(())
        });
        let caller = tokio::spawn(change);
        has_begun.await.unwrap();
        caller.abort();
        caller.await.unwrap_err();
        go.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[test]
    fn what_becomes_of_a_change_that_a_stop_cuts_off_is_unknown() {
        let node = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let mut answer = Box::pin(to_its_end::<()>(std::future::pending()));
        {
            // The first look begins the change, on the node's threads.
            let _on_the_node = node.enter();
            let mut look = Context::from_waker(Waker::noop());
            assert!(answer.as_mut().poll(&mut look).is_pending());
        }
        node.shutdown_background();
        let failed = futures::executor::block_on(answer).unwrap_err();
        assert_eq!(failed.reason, Reason::OutcomeUnknown, "it may have had its effect");
    }

    #[test]
    fn grpc_timeouts_are_read_in_every_unit() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("50m", Some(Duration::from_millis(50))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("999999999n", None),
            ("5", None),
            ("", None),
            ("x5m", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text:?}");
        }
    }
}
