//! Failures as gRPC statuses with `google.rpc` details, and as the errors of one call of many.

use std::collections::HashMap;
use std::time::Duration;

use statehouse_client as client;
use statehouse_client::retry::Effect;
use statehouse_proto::v1;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::failure::{Failure, Reason};

/// The domain of every reason, as `ErrorInfo` wants one.
pub const DOMAIN: &str = "statehouse.v1";

/// A failed unary call.
pub fn status(failure: Failure) -> Status {
    let metadata: HashMap<String, String> =
        failure.metadata.into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
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
            .map(|(name, value)| (name.into_owned(), value))
            .collect(),
        retry_after_ms: failure.retry_after.map(|wait| wait.as_millis() as u64),
    }
}

/// What another node refused, or why it did not answer, in our words.
pub fn failure(error: client::Error, effect: Effect) -> Failure {
    match error {
        client::Error::Refused { reason, message, metadata, retry_after, .. } => Failure {
            reason: Reason::of_name(&reason).unwrap_or(Reason::Internal),
            message,
            metadata: metadata.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            retry_after,
        },
        client::Error::Unreachable { ref endpoint, reached, .. } => {
            // A read has no outcome that could be unknown.
            let reason = match reached && effect != Effect::None {
                true => Reason::OutcomeUnknown,
                false => Reason::Unavailable,
            };
            Failure::new(reason, error.to_string()).with("endpoint", endpoint)
        }
        client::Error::Unexpected(_) => Failure::new(Reason::Internal, error.to_string()),
    }
}

/// The failure that an error of one call of many is.
pub fn failed(error: v1::Error) -> Failure {
    Failure {
        reason: Reason::of_name(&error.reason).unwrap_or(Reason::Internal),
        message: error.message,
        metadata: error.metadata.into_iter().map(|(name, value)| (name.into(), value)).collect(),
        retry_after: error.retry_after_ms.map(Duration::from_millis),
    }
}
