//! HTTP for machines that watch: `/metrics` (Prometheus), `/livez`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use statehouse_cluster::Shards;
use statehouse_cluster::raft::Stopped;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::node::Readiness;

#[derive(Clone)]
struct Served {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shards: Arc<Shards>,
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    (readiness, shards): (Readiness, Arc<Shards>),
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(show_ready))
        .with_state(Served { metrics, readiness, shards });
    let stop = async move {
        // An error means that the node is gone, which is a stop too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "HTTP listener failed");
    }
}

async fn show_metrics(State(served): State<Served>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], served.metrics.encode())
}

/// A replica that other nodes rebuild keeps the node ready for everything else; one that nobody
/// does leaves a part of the data without a server.
async fn show_ready(State(served): State<Served>) -> impl IntoResponse {
    if !served.readiness.is_ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned());
    }
    let stopped = served.shards.stopped();
    let lost = stopped.iter().any(|replica| !replica.quarantined);
    let mut body = if lost { "not ready\n".to_owned() } else { "ready\n".to_owned() };
    for Stopped { shard, replica, reason, quarantined } in stopped {
        let next = if quarantined { "others rebuild it" } else { "no other node can rebuild it" };
        body.push_str(&format!(
            "not ready for shard {shard}: replica {replica} has stopped, {next}: {reason}\n"
        ));
    }
    let code = if lost { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, body)
}
