//! Failures as gRPC statuses with `google.rpc` details, and as the errors of one call of many.

use std::collections::HashMap;

use statehouse_proto::v1;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::failure::Failure;

/// The domain of every reason, as `ErrorInfo` wants one.
pub const DOMAIN: &str = "statehouse.v1";

/// A failed unary call.
pub fn status(failure: Failure) -> Status {
    let metadata: HashMap<String, String> =
        failure.metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(failure.reason.name(), DOMAIN, metadata);
    if let Some(wait) = failure.retry_after {
        details.set_retry_info(Some(wait));
    }
    Status::with_error_details(failure.reason.code(), failure.message, details)
}

/// One failed call of many.
pub fn error(failure: Failure) -> v1::Error {
    v1::Error {
        code: failure.reason.code() as i32,
        reason: failure.reason.name().to_owned(),
        message: failure.message,
        metadata: failure
            .metadata
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        retry_after_ms: failure.retry_after.map(|wait| wait.as_millis() as u64),
    }
}
