//! `statehouse serve`: runs a node until it is told to stop or its disk fails.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, DeviceChoice, LogFormat};
use crate::node::Node;
use crate::size::ByteSize;
use crate::telemetry;

/// What `serve` takes. Flags override `STATEHOUSE_*`, which override the file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the node keeps its data.
    #[arg(long)]
    data: Option<PathBuf>,
    /// A TOML file; its keys are listed in docs/OPERATIONS.md.
    #[arg(long)]
    config: Option<PathBuf>,
    /// gRPC listener, such as 0.0.0.0:7070.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// HTTP listener: /metrics, /livez, /readyz.
    #[arg(long)]
    http_listen: Option<SocketAddr>,
    /// Listener for other nodes; by default two ports above --listen.
    #[arg(long)]
    peer_listen: Option<SocketAddr>,
    /// Where clients are told to find this node; by default the listener's address.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where other nodes are told to find this one; by default the peer listener's address.
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// Shards of a new cluster.
    #[arg(long)]
    shards: Option<NonZeroU16>,
    /// All memory of the process, such as 512MiB.
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<ByteSize>,
    /// Which device scores.
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// A log filter, such as info or statehouse=debug.
    #[arg(long)]
    log: Option<String>,
    /// How log lines look.
    #[arg(long)]
    log_format: Option<LogFormat>,
}

impl Args {
    fn config(self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref(), std::env::vars())?;
        config.data = self.data.unwrap_or(config.data);
        config.listen = self.listen.unwrap_or(config.listen);
        config.http_listen = self.http_listen.unwrap_or(config.http_listen);
        config.peer_listen = self.peer_listen.or(config.peer_listen);
        config.advertise = self.advertise.or(config.advertise);
        config.peer_advertise = self.peer_advertise.or(config.peer_advertise);
        config.shards = self.shards.unwrap_or(config.shards);
        config.memory_max = self.memory_max.unwrap_or(config.memory_max);
        config.device = self.device.unwrap_or(config.device);
        config.log = self.log.unwrap_or(config.log);
        config.log_format = self.log_format.unwrap_or(config.log_format);
        Ok(config)
    }
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.config()?;
    telemetry::start(&config.log, config.log_format)?;
    for name in &config.ignored_variables {
        tracing::warn!(name, "no key of the configuration: ignored");
    }
    let started = std::time::Instant::now();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let data = config.data.clone();
    let node = Node::start(config).await?;
    tracing::info!(
        grpc = %node.address,
        http = %node.http_address,
        peer = %node.peer_address,
        node = node.id,
        device = node.device,
        memory_max = %node.memory.memory_max(),
        data = %data.display(),
        started_in = ?started.elapsed(),
        "ready"
    );
    let failure = tokio::select! {
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        reason = node.failure() => Some(reason),
    };
    tracing::info!(failure, "stopping");
    node.stop().await?;
    if let Some(reason) = failure {
        bail!("{reason}");
    }
    Ok(())
}
