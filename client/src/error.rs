//! What a call can end with, other than its answer.

use std::collections::HashMap;
use std::time::Duration;

use statehouse_proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

/// The reason with which a node refuses calls for another cluster.
pub(crate) const WRONG_CLUSTER: &str = "WRONG_CLUSTER";

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The node refused, with a stable reason.
    #[error("{reason}: {message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// Such as "STATE_NOT_FOUND"; the table is in docs/ERRORS.md.
        reason: String,
        /// For people.
        message: String,
        /// Names and values that belong to the reason.
        metadata: HashMap<String, String>,
        /// When a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// No node answered.
    #[error("no answer from {endpoint}: {message}")]
    Unreachable {
        /// Which node.
        endpoint: String,
        /// What went wrong.
        message: String,
        /// The call may have reached the node: then it may or may not have happened.
        reached: bool,
    },
    /// The node answered with something else than was asked.
    #[error("unexpected answer: {0}")]
    Unexpected(&'static str),
}

impl Error {
    /// The stable reason of a refusal.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Error::Refused { reason, .. } => Some(reason),
            Error::Unreachable { .. } | Error::Unexpected(_) => None,
        }
    }

    /// Whether the node that was asked is of no use now, for any call: it does not answer, or it
    /// belongs to another cluster.
    pub(crate) fn node_is_away(&self) -> bool {
        matches!(self, Error::Unreachable { .. }) || self.reason() == Some(WRONG_CLUSTER)
    }

    /// The gRPC code; UNAVAILABLE when no node answered.
    pub fn code(&self) -> Code {
        match self {
            Error::Refused { code, .. } => *code,
            Error::Unreachable { .. } => Code::Unavailable,
            Error::Unexpected(_) => Code::Internal,
        }
    }

    /// What a unary call's status says.
    pub fn from_status(endpoint: &str, status: &tonic::Status) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info() else {
            let message = status.message().to_owned();
            // What our nodes refuse has details: this is the connection's, however it broke.
            let broken = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
            if broken.contains(&status.code()) {
                let message = innermost(status).unwrap_or(message);
                let (endpoint, reached) = (endpoint.to_owned(), !never_connected(status));
                return Error::Unreachable { endpoint, message, reached };
            }
            return Error::Refused {
                code: status.code(),
                reason: format!("{:?}", status.code()),
                message,
                metadata: HashMap::new(),
                retry_after: None,
            };
        };
        Error::Refused {
            code: status.code(),
            reason: info.reason.clone(),
            message: status.message().to_owned(),
            metadata: info.metadata.clone(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }
}

/// What lies at the bottom of a status: "connection refused" rather than "transport error".
fn innermost(status: &tonic::Status) -> Option<String> {
    let mut cause = std::error::Error::source(status)?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

/// Whether there was not even a connection for the call.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<Error> for v1::Error {
    fn from(error: Error) -> Self {
        let code = error.code() as i32;
        match error {
            Error::Refused { reason, message, metadata, retry_after, .. } => v1::Error {
                code,
                reason,
                message,
                metadata,
                retry_after_ms: retry_after.map(|wait| wait.as_millis() as u64),
            },
            Error::Unreachable { reached, .. } => {
                let (code, reason) = match reached {
                    true => (Code::Unknown, "OUTCOME_UNKNOWN"),
                    false => (Code::Unavailable, "UNAVAILABLE"),
                };
                let (code, reason, message) = (code as i32, reason.to_owned(), error.to_string());
                v1::Error { code, reason, message, ..Default::default() }
            }
            Error::Unexpected(_) => {
                let (reason, message) = ("INTERNAL".to_owned(), error.to_string());
                v1::Error { code, reason, message, ..Default::default() }
            }
        }
    }
}

impl From<v1::Error> for Error {
    fn from(error: v1::Error) -> Self {
        Error::Refused {
            code: Code::from_i32(error.code),
            reason: error.reason,
            message: error.message,
            metadata: error.metadata,
            retry_after: error.retry_after_ms.map(Duration::from_millis),
        }
    }
}
