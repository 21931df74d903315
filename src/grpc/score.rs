//! `statehouse.v1.Score`: unary scores.

use std::time::{Duration, Instant};

use statehouse_proto::v1;
use statehouse_proto::v1::score_server::Score;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{Calls, status::status};

/// Serves scores.
pub struct ScoreService {
    calls: Calls,
}

impl ScoreService {
    /// Over the calls of a node.
    pub fn new(calls: Calls) -> Self {
        ScoreService { calls }
    }
}

#[tonic::async_trait]
impl Score for ScoreService {
    async fn score(
        &self,
        request: Request<v1::ScoreRequest>,
    ) -> Result<Response<v1::ScoreResponse>, Status> {
        let deadline = deadline(request.metadata());
        let scored = self.calls.score(request.into_inner(), deadline).await;
        scored.map(Response::new).map_err(status)
    }

    async fn score_batch(
        &self,
        request: Request<v1::ScoreBatchRequest>,
    ) -> Result<Response<v1::ScoreBatchResponse>, Status> {
        let deadline = deadline(request.metadata());
        let scored = self.calls.score_batch(request.into_inner(), deadline).await;
        scored.map(Response::new).map_err(status)
    }
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
    use super::*;

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
