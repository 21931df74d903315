//! Asks a cluster: the first of its nodes that answers.

use std::time::Duration;

use statehouse_client::Error;
use statehouse_proto::v1::admin_client::AdminClient;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::super::{text, with_scheme};

/// How long a connection may take before the next node is tried.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Which cluster to speak to, and how to answer.
#[derive(Debug, Clone, clap::Args)]
pub struct Remote {
    /// Addresses of nodes, separated by commas: the first that answers is asked.
    #[arg(
        long = "endpoint",
        env = "STATEHOUSE_ENDPOINT",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7070"
    )]
    endpoints: Vec<String>,
    /// Give up after this long, such as 500ms or 5s.
    #[arg(long, value_parser = text::duration, default_value = "30s")]
    timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Whether a call may be made again at another node when one did not answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Yes,
    No,
}

impl Remote {
    /// The same, of one node alone.
    pub fn at(&self, endpoint: &str) -> Remote {
        Remote { endpoints: vec![endpoint.to_owned()], ..self.clone() }
    }

    /// Asks something that changes nothing, or changes the same when it is asked twice: where a
    /// node does not answer, the next one is asked.
    pub async fn ask<T>(
        &self,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        self.ask_each(Repeat::Yes, call).await
    }

    /// Asks for a change that is another one when it is asked for twice: the next node is asked
    /// only where one can't be reached at all.
    pub async fn ask_once<T>(
        &self,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        self.ask_each(Repeat::No, call).await
    }

    async fn ask_each<T>(
        &self,
        repeat: Repeat,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let give_up = Instant::now() + self.timeout;
        let mut last = Error::Unreachable {
            endpoint: "no endpoint".to_owned(),
            message: "expected at least one address".to_owned(),
            reached: false,
        };
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let endpoint = with_scheme(endpoint);
            let left = give_up.saturating_duration_since(Instant::now());
            // A node that hangs must not use up the time of those that would answer.
            let others = u32::try_from(self.endpoints.len() - at).unwrap_or(u32::MAX);
            let share = if repeat == Repeat::Yes { left / others } else { left };
            let client = match connect(&endpoint, share).await {
                Ok(client) => client,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let error = match timeout(share, call(client)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => Error::from_status(&endpoint, &status),
                Err(_) => silent(&endpoint, share),
            };
            if repeat == Repeat::No || !matches!(error, Error::Unreachable { .. }) {
                return Err(error);
            }
            last = error;
        }
        Err(last)
    }
}

async fn connect(endpoint: &str, share: Duration) -> Result<AdminClient<Channel>, Error> {
    let unreachable = |message: String| {
        let endpoint = endpoint.to_owned();
        Error::Unreachable { endpoint, message, reached: false }
    };
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| unreachable(innermost(&error)))?
        .connect_timeout(CONNECT_MAX.min(share))
        .connect()
        .await
        .map_err(|error| unreachable(innermost(&error)))?;
    Ok(AdminClient::new(channel))
}

fn silent(endpoint: &str, after: Duration) -> Error {
    let message = format!("silent for {after:?}");
    Error::Unreachable { endpoint: endpoint.to_owned(), message, reached: true }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
