//! What a node is told: a TOML file, overridden by `STATEHOUSE_*`, overridden by flags.
//!
//! An unknown key of the file is an error that names the nearest known one. An unknown variable is
//! only told of: an orchestrator may set some of its own. Every limit here has a default.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::memory::{Chosen, Plan};
use crate::size::ByteSize;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Which device scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// A CUDA device if one works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device, or the node does not start.
    Cuda,
}

/// Everything a node is told.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where the node keeps its data.
    pub data: PathBuf,
    /// gRPC listener.
    pub listen: SocketAddr,
    /// HTTP listener: /metrics, /livez, /readyz.
    pub http_listen: SocketAddr,
    /// Listener for other nodes; `None`: two ports above `listen`.
    pub peer_listen: Option<SocketAddr>,
    /// Where clients are told to find this node, `host:port`; `None`: at `listen`.
    pub advertise: Option<String>,
    /// Where other nodes are told to find this one, `host:port`; `None`: at `peer_listen`.
    pub peer_advertise: Option<String>,
    /// Shards of a new cluster; an existing one keeps its own.
    pub shards: NonZeroU16,
    /// Replicas that each shard of a new cluster should have.
    pub replicas: NonZeroU16,
    /// Seconds after which a node that is not heard has its replicas rebuilt elsewhere.
    pub dead_after_s: u64,
    /// Tasks that move replicas at a time.
    pub tasks_max: usize,
    /// Bytes of moved replicas that this node sends per second.
    pub transfer_bytes_per_second: u64,
    /// Moves pause while the 99th percentile of calls to this node is above so many milliseconds;
    /// 0: never.
    pub move_pause_p99_ms: u64,
    /// A `tracing` filter.
    pub log: String,
    /// Text or JSON.
    pub log_format: LogFormat,
    /// Auto, CPU or CUDA.
    pub device: DeviceChoice,
    /// Which CUDA device.
    pub device_index: usize,
    /// All memory of the process.
    pub memory_max: ByteSize,
    /// Its parts, by name; `None`: a share of it.
    pub block_cache_bytes: Option<ByteSize>,
    /// Decoded states kept in memory.
    pub state_cache_bytes: Option<ByteSize>,
    /// All memtables together.
    pub memtable_bytes_max: Option<ByteSize>,
    /// The newest entries of all logs.
    pub log_tail_bytes_max: Option<ByteSize>,
    /// Calls under way: their requests, what they read, their answers.
    pub request_bytes_max: Option<ByteSize>,
    /// Large transfers on their way through the node, all together.
    pub transfer_bytes_max: Option<ByteSize>,
    /// Rows of one batch on the device.
    pub batch_bytes_max: Option<ByteSize>,
    /// Entries sent to one other node and not answered.
    pub append_bytes_max: Option<ByteSize>,
    /// One gRPC message.
    pub message_bytes_max: Option<ByteSize>,
    /// Free bytes on the disk below which writes are refused.
    pub disk_reserve_bytes: u64,
    /// Free bytes on the disk below which even deletes are refused; `None`: a quarter of the
    /// reserve, and 128 MiB at most.
    pub disk_freeing_reserve_bytes: Option<u64>,
    /// Threads that wait for the disk on cold reads.
    pub read_threads: usize,
    /// Cold reads that may wait for those threads.
    pub read_queue_max: usize,
    /// Rows that may wait for the device.
    pub score_queue_rows_max: usize,
    /// Proposals that may wait in one shard.
    pub proposals_waiting_max: usize,
    /// Streams of one connection.
    pub streams_per_connection_max: u32,
    /// Calls under way on one pipeline.
    pub pipeline_calls_max: usize,
    /// Bytes above which a request or an answer is noted as large; 0: none is.
    pub large_request_bytes: u64,
    /// Seconds after which a stream is cut whose other end neither sends nor takes anything.
    pub stream_stall_s: NonZeroU64,
    /// Seconds for which an upload is kept that nobody continues.
    pub upload_idle_s: NonZeroU64,
    /// Seconds between sweeps of expired states and fields, and old request ids.
    pub sweep_interval_s: u64,
    /// Seconds between comparisons of what the replicas of a shard have applied; 0: never.
    pub hash_check_interval_s: u64,
    /// Request ids that each shard remembers at most, the newest.
    pub request_ids_max: u64,
    /// Seconds in which everything on disk is read once and checked; 0 for never.
    pub scrub_interval_s: u64,
    /// Bytes per second that a scrub reads at most.
    pub scrub_bytes_per_second_max: u64,
    /// Seconds that calls under way get when the node stops.
    pub shutdown_grace_s: u64,
    /// Variables with our prefix that are no keys.
    #[serde(skip)]
    pub ignored_variables: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data: PathBuf::from("statehouse-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            peer_listen: None,
            advertise: None,
            peer_advertise: None,
            shards: NonZeroU16::new(16).expect("16 is not zero"),
            replicas: NonZeroU16::new(3).expect("3 is not zero"),
            dead_after_s: 300,
            tasks_max: 4,
            transfer_bytes_per_second: 64 << 20,
            move_pause_p99_ms: 100,
            log: "info".into(),
            log_format: LogFormat::Text,
            device: DeviceChoice::Auto,
            device_index: 0,
            memory_max: ByteSize::mib(1_024),
            block_cache_bytes: None,
            state_cache_bytes: None,
            memtable_bytes_max: None,
            log_tail_bytes_max: None,
            request_bytes_max: None,
            transfer_bytes_max: None,
            batch_bytes_max: None,
            append_bytes_max: None,
            message_bytes_max: None,
            disk_reserve_bytes: 512 << 20,
            disk_freeing_reserve_bytes: None,
            read_threads: 8,
            read_queue_max: 4_096,
            score_queue_rows_max: 16_384,
            proposals_waiting_max: 16_384,
            streams_per_connection_max: 1_024,
            pipeline_calls_max: crate::grpc::CALLS_IN_FLIGHT_MAX_DEFAULT,
            large_request_bytes: 8 << 20,
            stream_stall_s: NonZeroU64::new(30).expect("30 is not zero"),
            upload_idle_s: NonZeroU64::new(900).expect("900 is not zero"),
            sweep_interval_s: 30,
            hash_check_interval_s: 60,
            request_ids_max: statehouse_store::REQUESTS_MAX,
            scrub_interval_s: 7 * 24 * 60 * 60,
            scrub_bytes_per_second_max: 32 << 20,
            shutdown_grace_s: 10,
            ignored_variables: Vec::new(),
        }
    }
}

/// Every key of the file, for the error on an unknown one.
const KEYS: &[&str] = &[
    "data",
    "listen",
    "http_listen",
    "peer_listen",
    "advertise",
    "peer_advertise",
    "shards",
    "replicas",
    "dead_after_s",
    "tasks_max",
    "transfer_bytes_per_second",
    "move_pause_p99_ms",
    "log",
    "log_format",
    "device",
    "device_index",
    "memory_max",
    "block_cache_bytes",
    "state_cache_bytes",
    "memtable_bytes_max",
    "log_tail_bytes_max",
    "request_bytes_max",
    "transfer_bytes_max",
    "batch_bytes_max",
    "append_bytes_max",
    "message_bytes_max",
    "disk_reserve_bytes",
    "disk_freeing_reserve_bytes",
    "read_threads",
    "read_queue_max",
    "score_queue_rows_max",
    "proposals_waiting_max",
    "streams_per_connection_max",
    "pipeline_calls_max",
    "large_request_bytes",
    "stream_stall_s",
    "upload_idle_s",
    "sweep_interval_s",
    "hash_check_interval_s",
    "request_ids_max",
    "scrub_interval_s",
    "scrub_bytes_per_second_max",
    "shutdown_grace_s",
];

/// Of the reserve, the part that only what frees space may use unless configured; at most the
/// second.
const FREEING_RESERVE_DIVISOR: u64 = 4;
const FREEING_RESERVE_MAX: u64 = 128 << 20;

/// What every override in the environment starts with.
const ENV_PREFIX: &str = "STATEHOUSE_";

/// Variables with that prefix which speak to the command line, not to a node.
const ENV_OF_CLIENTS: &[&str] = &["STATEHOUSE_ENDPOINT"];

impl Config {
    /// Reads the file, if there is one, and lays the environment over it.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let mut table = match file {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| anyhow::anyhow!("read {}: {error}", path.display()))?;
                toml::from_str(&text)
                    .map_err(|error| anyhow::anyhow!("read {}: {error}", path.display()))?
            }
        };
        table.keys().try_for_each(|key| check_key(key))?;
        let mut ignored_variables = Vec::new();
        for (name, value) in env {
            let ours = name.strip_prefix(ENV_PREFIX).filter(|_| !is_clients(&name));
            let Some(key) = ours.map(str::to_ascii_lowercase) else { continue };
            if KEYS.contains(&key.as_str()) {
                table.insert(key, env_value(&value));
            } else {
                ignored_variables.push(name);
            }
        }
        let config: Config =
            table.try_into().map_err(|error| anyhow::anyhow!("config: {error}"))?;
        Ok(Config { ignored_variables, ..config })
    }
}

impl Config {
    /// How the node's memory is shared out.
    pub fn memory(&self) -> anyhow::Result<Plan> {
        let chosen = Chosen {
            block_cache: self.block_cache_bytes,
            memtables: self.memtable_bytes_max,
            state_cache: self.state_cache_bytes,
            log_tails: self.log_tail_bytes_max,
            requests: self.request_bytes_max,
            transfers: self.transfer_bytes_max,
            batch: self.batch_bytes_max,
            appends: self.append_bytes_max,
            message: self.message_bytes_max,
        };
        Plan::new(self.memory_max, &chosen)
    }

    /// Free bytes on the disk below which even what frees space is refused.
    pub fn freeing_reserve(&self) -> u64 {
        let part = (self.disk_reserve_bytes / FREEING_RESERVE_DIVISOR).min(FREEING_RESERVE_MAX);
        self.disk_freeing_reserve_bytes.unwrap_or(part).min(self.disk_reserve_bytes)
    }

    /// Where to listen for other nodes.
    pub fn peer_listener(&self) -> SocketAddr {
        self.peer_listen.unwrap_or_else(|| {
            let port = match self.listen.port() {
                0 => 0,
                port => port.saturating_add(2),
            };
            SocketAddr::new(self.listen.ip(), port)
        })
    }
}

/// Where others are told to find a listener. One on all interfaces goes by the machine's name.
pub fn advertised(told: Option<&str>, bound: SocketAddr) -> String {
    match told {
        Some(address) => address.to_owned(),
        None if bound.ip().is_unspecified() => {
            let system = rustix::system::uname();
            format!("{}:{}", system.nodename().to_string_lossy(), bound.port())
        }
        None => bound.to_string(),
    }
}

fn is_clients(name: &str) -> bool {
    ENV_OF_CLIENTS.contains(&name)
}

/// A number stays a number; everything else is a string.
fn env_value(value: &str) -> toml::Value {
    value.parse().map_or_else(|_| toml::Value::String(value.to_owned()), toml::Value::Integer)
}

fn check_key(key: &str) -> anyhow::Result<()> {
    if KEYS.contains(&key) {
        return Ok(());
    }
    let nearest = KEYS
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b)))
        .expect("there are keys");
    anyhow::bail!("config has no key {key:?}; the nearest is {nearest:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> anyhow::Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(file.path()), env)
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config = load(
            "shards = 4\nlisten = \"127.0.0.1:1\"",
            &[("STATEHOUSE_SHARDS", "8"), ("STATEHOUSE_ENDPOINT", "x"), ("HOME", "/root")],
        );
        let config = config.unwrap();
        assert_eq!(config.shards.get(), 8);
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.read_threads, Config::default().read_threads);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error = load("lissten = \"127.0.0.1:1\"", &[]).unwrap_err().to_string();
        assert_eq!(error, "config has no key \"lissten\"; the nearest is \"listen\"");
    }

    #[test]
    fn what_frees_space_has_a_part_of_the_reserve_and_never_more_than_it() {
        let reserve = |text| load(text, &[]).unwrap().freeing_reserve();
        assert_eq!(reserve("disk_reserve_bytes = 4096"), 1_024);
        assert_eq!(reserve("disk_reserve_bytes = 1099511627776"), FREEING_RESERVE_MAX);
        assert_eq!(reserve("disk_reserve_bytes = 4096\ndisk_freeing_reserve_bytes = 9999"), 4_096);
    }

    #[test]
    fn a_variable_that_is_no_key_is_told_of() {
        let config = load("", &[("STATEHOUSE_PORT_7070_TCP", "tcp://10.0.0.1:7070")]).unwrap();
        assert_eq!(config.ignored_variables, ["STATEHOUSE_PORT_7070_TCP"]);
    }

    #[test]
    fn a_wrong_value_is_refused() {
        assert!(load("shards = 0", &[]).is_err());
        assert!(load("stream_stall_s = 0", &[]).is_err());
        assert!(load("device = \"tpu\"", &[]).is_err());
        assert!(load("memory_max = \"much\"", &[]).is_err());
    }

    #[test]
    fn memory_is_told_in_units_or_bytes() {
        let config = load("memory_max = \"2GiB\"", &[]).unwrap();
        assert_eq!(config.memory_max, ByteSize::mib(2_048));
        let env =
            [("STATEHOUSE_MEMORY_MAX", "512MiB"), ("STATEHOUSE_STATE_CACHE_BYTES", "1048576")];
        let config = load("memory_max = 2147483648", &env).unwrap();
        assert_eq!(config.memory_max, ByteSize::mib(512));
        assert_eq!(config.memory().unwrap().state_cache, 1 << 20);
    }
}
