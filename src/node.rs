//! One node: the rooms composed in order, stopped in reverse. Read this file first.
//!
//! store → shards → catalog → device and worker → models → services. Ports are bound before
//! anything is opened, so that a taken port costs nothing; the node says it is ready only once
//! every active model is loaded and warm.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use statehouse_cluster::catalog::Catalog;
use statehouse_cluster::{self as cluster, Addresses, Shards};
use statehouse_inference::{self as inference, Device, Handle};
use statehouse_proto::v1;
use statehouse_store::{self as store, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::admission::Admission;
use crate::config::{Config, DeviceChoice, advertised};
use crate::grpc::{
    AdminService, Arriving, Calls, ClusterCheck, ClusterService, Leaving, ModelsService,
    PIPELINE_REQUEST_BYTES_MAX, PipelineService, STREAMS_MAX, ScoreService, StateService,
    Transfers, UnderWay,
};
use crate::http;
use crate::large::LargeRequests;
use crate::memory::{Governor, Plan};
use crate::metrics::{CallMetrics, Metrics, Rooms, RoutingMetrics};
use crate::models::{Models, Room};
use crate::router::{self, Router};
use crate::score::Scorer;
use crate::scrub::{self, Scrubber};
use crate::states::States;
use crate::stream_threads::StreamThreads;
use crate::sweep;

/// HTTP/2 windows: one stream fills a loopback or a data-centre link, and all streams that bring
/// large states together leave room for small calls on the same connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAMS_MAX as u32 * STREAM_WINDOW_BYTES;

/// The largest HTTP/2 frame taken: fewer frames for large messages, and still no long wait behind
/// one for small ones.
pub(crate) const FRAME_BYTES_MAX: u32 = 64 << 10;

/// How often an idle connection is asked whether it lives, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the health service and `/readyz` go by.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Whether the node may receive traffic.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }
}

/// A running node.
pub struct Node {
    /// Where gRPC is served, the port filled in.
    pub address: SocketAddr,
    /// Where HTTP is served, the port filled in.
    pub http_address: SocketAddr,
    /// Where other nodes are served, the port filled in.
    pub peer_address: SocketAddr,
    /// Which node of its cluster it is.
    pub id: u64,
    /// The device that scores.
    pub device: String,
    /// Holds the process to its memory.
    pub memory: Governor,
    /// Held: large states are worked on as long as it is there.
    _streams: StreamThreads,
    config: Config,
    store: Store,
    shards: Arc<Shards>,
    worker: Handle,
    readiness: Readiness,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
    under_way: UnderWay,
    sweeper: JoinHandle<()>,
    failed: watch::Receiver<Option<String>>,
    /// Reads the disk for damage.
    scrubber: Option<Scrubber>,
}

/// The ports of a node, bound.
struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    peer: TcpListener,
}

impl Node {
    /// Starts a node and returns once it is ready.
    pub async fn start(config: Config) -> anyhow::Result<Node> {
        let listeners = Listeners {
            grpc: bind(config.listen).await?,
            http: bind(config.http_listen).await?,
            peer: bind(config.peer_listener()).await?,
        };
        let memory = config.memory()?;
        let (store, failed) = open_store(&config, &memory).await?;
        let started = Node::start_over(config, listeners, memory, store.clone(), failed).await;
        if started.is_err() {
            // What was begun above it ends in errors; its own threads end here.
            tokio::task::spawn_blocking(move || store.close()).await?.unwrap_or_else(|error| {
                tracing::warn!(%error, "the store could not be closed in order");
            });
        }
        started
    }

    /// Starts what stands on an open disk.
    async fn start_over(
        config: Config,
        listeners: Listeners,
        memory: Plan,
        store: Store,
        failed: watch::Receiver<Option<String>>,
    ) -> anyhow::Result<Node> {
        let Listeners { grpc: listener, http: http_listener, peer: peer_listener } = listeners;
        let (address, http_address) = (listener.local_addr()?, http_listener.local_addr()?);
        let peer_address = peer_listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let readiness = Readiness::default();
        let addresses = Addresses {
            client: advertised(config.advertise.as_deref(), address),
            peer: advertised(config.peer_advertise.as_deref(), peer_address),
        };
        let shards = cluster_config(&config, &memory);
        let shards = Shards::open(store.clone(), peer_listener, addresses, &shards).await?;
        let catalog = Catalog::open(shards.clone()).await?;
        let (worker, device) = start_worker(&config, &memory)?;
        let room = Room { request_bytes_max: memory.requests, batch_bytes_max: memory.batch };
        let models = Models::new(catalog.clone(), worker.clone(), store.clone(), room);
        models.load_active().await;
        let parts = (shards.clone(), catalog.clone(), worker.clone(), models.clone());
        let Serving { calls, router, large, metrics, governor, streams } =
            serving(&config, memory, parts, &device)?;

        let under_way = UnderWay::default();
        let admin = AdminService::new(shards.clone(), catalog, large);
        let message_bytes_max = memory.message as usize;
        let under = under_way.clone();
        let services =
            Services { calls, router, admin, models, under_way: under, message_bytes_max };
        let grpc = serve_grpc(&config, listener, services, stopped.clone()).await?;
        let shown = (readiness.clone(), shards.clone());
        let http = http::serve(http_listener, metrics, shown, stopped.clone());
        let listeners = vec![grpc, tokio::spawn(http)];
        let sweeper = tokio::spawn(sweep::run(shards.clone(), sweep_config(&config), stopped));
        let scrubber = Scrubber::start(store.clone(), scrub_config(&config))?;
        readiness.set(true);
        Ok(Node {
            address,
            http_address,
            peer_address,
            id: shards.me().0,
            device,
            memory: governor,
            _streams: streams,
            config,
            store,
            shards,
            worker,
            readiness,
            stop,
            listeners,
            under_way,
            sweeper,
            failed,
            scrubber,
        })
    }

    /// Resolves with the reason when the node must stop: its disk failed, and what it holds is
    /// what was acknowledged; or it was taken out of its cluster.
    pub async fn failure(&self) -> String {
        let mut failed = self.failed.clone();
        tokio::select! {
            reason = failed.wait_for(Option::is_some) => {
                let reason = reason.ok().and_then(|reason| reason.clone());
                format!("the disk failed: {}", reason.unwrap_or_default())
            }
            () = self.shards.removed() => {
                format!("node {} was removed from its cluster", self.id)
            }
        }
    }

    /// Stops in reverse: no new calls, calls under way get their grace, then worker, shards, disk.
    /// A connection without calls is not waited for, though it stay open.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.readiness.set(false);
        // While it still serves: whoever calls meanwhile is sent to the one who leads by then.
        self.shards.hand_over().await;
        self.stop.send_replace(true);
        let grace = Duration::from_secs(self.config.shutdown_grace_s);
        let closed = futures::future::join_all(self.listeners);
        let served = async {
            tokio::select! {
                _ = closed => {}
                () = self.under_way.ended() => {}
            }
        };
        let all = futures::future::join(served, self.sweeper);
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!(?grace, "calls were still under way when the grace ended");
        }
        let (worker, shards, store) = (self.worker, self.shards, self.store);
        let scrubber = self.scrubber;
        shards.close().await;
        drop(shards);
        tokio::task::spawn_blocking(move || {
            worker.shutdown();
            if let Some(scrubber) = scrubber {
                scrubber.stop();
            }
            store.close()
        })
        .await??;
        Ok(())
    }
}

/// The device, the thread that drives it, and its name.
fn start_worker(config: &Config, memory: &Plan) -> anyhow::Result<(Handle, String)> {
    let device = open_device(config.device, config.device_index)?;
    let name = device.name();
    let limits = inference::Config {
        queue_rows_max: config.score_queue_rows_max,
        batch_bytes_max: memory.batch as usize,
        ..inference::Config::default()
    };
    Ok((inference::Worker::start(device, limits)?, name))
}

/// What the services stand on.
struct Serving {
    calls: Calls,
    router: Router,
    large: LargeRequests,
    metrics: Arc<Metrics>,
    governor: Governor,
    streams: StreamThreads,
}

/// The use cases over a node's parts, what bounds them, and what counts them.
fn serving(
    config: &Config,
    memory: Plan,
    (shards, catalog, worker, models): (Arc<Shards>, Arc<Catalog>, Handle, Arc<Models>),
    device: &str,
) -> anyhow::Result<Serving> {
    let upload_idle = Duration::from_secs(config.upload_idle_s.get());
    let large = LargeRequests::new(config.large_request_bytes);
    let states = States::new(shards.clone(), catalog, upload_idle, large.clone());
    let scorer = Scorer::new(states.clone(), models);
    let counted = CallMetrics::new(shards.foreground().clone());
    let routed = RoutingMetrics::default();
    let admission = Admission::new(&memory);
    let stall_after = Duration::from_secs(config.stream_stall_s.get());
    let streams = StreamThreads::start()?;
    let transfers = Transfers::new(memory.transfers as usize, stall_after, streams.handle());
    let governor = Governor::start(memory, shards.store().clone(), admission.clone())?;
    let rooms = Rooms {
        shards: shards.clone(),
        worker,
        memory,
        admission: admission.clone(),
        transfers: transfers.clone(),
        taken: governor.taken_bytes(),
    };
    let counters = (&counted, &routed, transfers.counted(), large.counted());
    let metrics = Arc::new(Metrics::new(device, rooms, counters));
    let message_bytes_max = memory.message as usize;
    let routing = router::Config { message_bytes_max, ..router::Config::default() };
    let router = Router::new(shards, routing, routed);
    let calls = Calls::new(
        states,
        scorer,
        router.clone(),
        (transfers, admission),
        (counted, large.clone()),
    );
    Ok(Serving { calls, router, large, metrics, governor, streams })
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// Opens the disk, off the async threads.
async fn open_store(
    config: &Config,
    memory: &Plan,
) -> anyhow::Result<(Store, watch::Receiver<Option<String>>)> {
    let store_config = store::Config {
        block_cache_bytes: memory.block_cache as usize,
        state_cache_bytes: memory.state_cache as usize,
        memtable_bytes_max: memory.memtables as usize,
        log_tail_bytes_max: memory.log_tails as usize,
        disk_reserve_bytes: config.disk_reserve_bytes,
        disk_freeing_reserve_bytes: config.freeing_reserve(),
        read_threads: config.read_threads,
        read_queue_max: config.read_queue_max,
        ..store::Config::default()
    };
    let data = config.data.clone();
    let (failed, failure) = watch::channel(None);
    tokio::task::spawn_blocking(move || {
        let store = Store::open(&data, store_config)?;
        store.on_failure(Box::new(move |error| {
            failed.send_replace(Some(error.to_string()));
        }));
        Ok((store, failure))
    })
    .await?
}

fn scrub_config(config: &Config) -> scrub::Config {
    scrub::Config {
        interval: Duration::from_secs(config.scrub_interval_s),
        bytes_per_second_max: config.scrub_bytes_per_second_max,
    }
}

fn sweep_config(config: &Config) -> sweep::Config {
    sweep::Config {
        interval: Duration::from_secs(config.sweep_interval_s.max(1)),
        requests_max: config.request_ids_max.max(store::REQUESTS_MIN),
    }
}

fn cluster_config(config: &Config, memory: &Plan) -> cluster::Config {
    cluster::Config {
        shards: config.shards,
        replicas: config.replicas,
        proposals_waiting_max: config.proposals_waiting_max,
        proposals_waiting_bytes_max: memory.requests as usize,
        append_bytes_in_flight_max: memory.appends as usize,
        transfer_bytes_per_second: config.transfer_bytes_per_second,
        foreground_p99_max: Duration::from_millis(config.move_pause_p99_ms),
        hash_check_interval: Duration::from_secs(config.hash_check_interval_s),
        controller: cluster::controller::Config {
            dead_after: Duration::from_secs(config.dead_after_s),
            tasks_max: config.tasks_max,
            ..cluster::controller::Config::default()
        },
        ..cluster::Config::default()
    }
}

fn open_device(choice: DeviceChoice, index: usize) -> anyhow::Result<Box<dyn Device>> {
    if choice != DeviceChoice::Cpu {
        match statehouse_cuda::open(index) {
            Ok(device) => return Ok(device),
            Err(unavailable) if choice == DeviceChoice::Cuda => {
                anyhow::bail!("device = \"cuda\" and none works: {unavailable}");
            }
            Err(unavailable) => tracing::info!(%unavailable, "no CUDA device: scoring on the CPU"),
        }
    }
    Ok(inference::flex()?)
}

/// What the client listener serves.
struct Services {
    calls: Calls,
    router: Router,
    admin: AdminService,
    models: Arc<Models>,
    under_way: UnderWay,
    message_bytes_max: usize,
}

async fn serve_grpc(
    config: &Config,
    listener: TcpListener,
    services: Services,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    let Services { calls, router, admin, models, under_way, message_bytes_max: max } = services;
    let leaving = Leaving::new(&calls);
    let cluster_check = ClusterCheck::new(router.shards().cluster());
    let memory = (calls.admission().clone(), leaving);
    let state = v1::state_server::StateServer::new(StateService::new(calls.clone()))
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let score = v1::score_server::ScoreServer::new(ScoreService::new(calls.clone()))
        .max_decoding_message_size(max)
        .max_encoding_message_size(max);
    let pipeline = PipelineService::new(calls, config.pipeline_calls_max, stopped.clone());
    let pipeline = v1::pipeline_server::PipelineServer::new(pipeline)
        .max_decoding_message_size(PIPELINE_REQUEST_BYTES_MAX.min(max))
        .max_encoding_message_size(max);
    let models = v1::models_server::ModelsServer::new(ModelsService::new(models))
        .max_decoding_message_size(max);
    let cluster = v1::cluster_server::ClusterServer::new(ClusterService::new(router));
    let reflection = reflected().build_v1()?;
    // Older clients, Python's among them, know this version alone.
    let reflection_alpha = reflected().build_v1alpha()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<v1::state_server::StateServer<StateService>>().await;
    health.set_serving::<v1::score_server::ScoreServer<ScoreService>>().await;
    health.set_serving::<v1::models_server::ModelsServer<ModelsService>>().await;
    health.set_serving::<v1::cluster_server::ClusterServer<ClusterService>>().await;
    health.set_serving::<v1::pipeline_server::PipelineServer<PipelineService>>().await;
    health.set_serving::<v1::admin_server::AdminServer<AdminService>>().await;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(config.streams_per_connection_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(InterceptorLayer::new(cluster_check))
        .add_service(under_way.counted(Arriving::new(state, memory.clone(), max)))
        .add_service(under_way.counted(Arriving::new(score, memory.clone(), max)))
        .add_service(under_way.counted(Arriving::new(pipeline, memory.clone(), max)))
        .add_service(under_way.counted(Arriving::new(models, memory, max)))
        .add_service(under_way.counted(v1::admin_server::AdminServer::new(admin)))
        .add_service(under_way.counted(cluster))
        .add_service(reflection)
        .add_service(reflection_alpha)
        .add_service(health_service);
    Ok(tokio::spawn(async move {
        let stop = async move {
            // An error means that the node is gone, which is a stop too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
            tracing::error!(%error, "gRPC listener failed");
        }
    }))
}

/// Reflection of all that the client listener serves, both versions of itself included.
fn reflected() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(statehouse_proto::SERVED_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
}
