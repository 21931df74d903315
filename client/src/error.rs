//! What a call can end with, other than its answer.

use std::collections::HashMap;
use std::time::Duration;

use statehouse_proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

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
    /// No node answered. What was under way may or may not have happened.
    #[error("no answer from {endpoint}: {message}")]
    Unreachable {
        /// Which node.
        endpoint: String,
        /// What went wrong.
        message: String,
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
            if status.code() == Code::Unavailable || status.code() == Code::Unknown {
                return Error::Unreachable { endpoint: endpoint.to_owned(), message };
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
