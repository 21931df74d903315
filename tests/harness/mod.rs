//! Real nodes as child processes: start, stop, kill -9, start again on the same data.

#![allow(dead_code, reason = "each test uses its part")]

pub mod addresses;
pub mod cluster;
pub mod condition;
pub mod counter;
pub mod harm;
pub mod history;
pub mod ledger;
pub mod orders;
pub mod power;
pub mod preload;
pub mod process;
pub mod proxy;
pub mod small_disk;
pub mod steps;
pub mod untaken;
pub mod wall_clock;
pub mod workload;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use bytes::Bytes;
use statehouse_client::v1::{self, DataType, field::Value};
use statehouse_client::{Client, Config, Error};
use tempfile::TempDir;

/// How long anything may take before a test gives up waiting for it.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A command of the binary under test.
pub fn statehouse() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_statehouse"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STATEHOUSE_")) {
        command.env_remove(name);
    }
    command
}

/// A node's process.
pub struct Node {
    child: Child,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// What it logged until it was ready.
    pub said: String,
    /// Gathers what it logs after it is ready.
    log: Option<std::thread::JoinHandle<Vec<String>>>,
}

/// A data directory and the nodes started on it, one at a time.
pub struct House {
    dir: TempDir,
    pub flags: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl House {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("statehouse-test-").tempdir().unwrap();
        House { dir, flags: vec!["--shards".into(), "4".into()], env: Vec::new() }
    }

    /// The directory that everything of it is under.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a node and waits until it's ready.
    pub fn start(&self) -> Node {
        self.try_start().unwrap_or_else(|log| panic!("the node did not start:\n{log}"))
    }

    /// Starts a node, or answers what it said when it did not start.
    pub fn try_start(&self) -> Result<Node, String> {
        self.try_start_at("127.0.0.1:0", &self.data())
    }

    pub fn try_start_at(&self, listen: &str, data: &Path) -> Result<Node, String> {
        let mut command = statehouse();
        command
            .args(["serve", "--listen", listen, "--http-listen", "127.0.0.1:0"])
            .args(["--log-format", "json", "--device", "cpu", "--data"])
            .arg(data)
            .args(&self.flags)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Node::of(command.spawn().unwrap())
    }
}

impl Node {
    fn of(mut child: Child) -> Result<Node, String> {
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            said.push_str(&line);
            said.push('\n');
            let Ok(json) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            let fields = &json["fields"];
            if fields["message"] == "ready" {
                let address = |name: &str| fields[name].as_str().unwrap().parse().unwrap();
                let (grpc, http) = (address("grpc"), address("http"));
                let log = std::thread::spawn(move || lines.map_while(Result::ok).collect());
                return Ok(Node { child, grpc, http, said, log: Some(log) });
            }
        }
        child.wait().unwrap();
        Err(said)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn client(&self) -> Client {
        Client::connect(Config::new(self.endpoint())).await.unwrap()
    }

    pub async fn client_with(&self, pipelines: usize) -> Client {
        Client::connect(Config { pipelines, ..Config::new(self.endpoint()) }).await.unwrap()
    }

    /// kill -9: nothing is flushed, nothing is said.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks for a stop, and does not wait for it.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// A polite stop; answers the exit code and what was logged since it was ready.
    pub fn stop(mut self) -> (Option<i32>, Vec<String>) {
        self.terminate();
        let code = self.child.wait().unwrap().code();
        (code, self.log.take().unwrap().join().unwrap())
    }

    /// Runs a subcommand against this node.
    pub fn run(&self, args: &[&str]) -> Output {
        statehouse().args(args).env("STATEHOUSE_ENDPOINT", self.endpoint()).output().unwrap()
    }

    /// Runs a subcommand that must succeed; answers what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "statehouse {args:?}: {said}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a subcommand with --json that must succeed.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    /// One HTTP GET: status and body.
    pub fn http_get(&self, path: &str) -> (u16, String) {
        http_get(self.http, path)
    }
}

/// One HTTP GET: status and body.
pub fn http_get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split_whitespace().nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

impl Drop for Node {
    fn drop(&mut self) {
        // Already gone if the test ended it itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A collection with default settings.
pub async fn create(client: &Client, name: &str) -> v1::Collection {
    create_with(client, name, v1::CollectionSettings::default()).await
}

pub async fn create_with(
    client: &Client,
    name: &str,
    settings: v1::CollectionSettings,
) -> v1::Collection {
    let (name, settings) = (name.to_owned(), Some(settings));
    let request = v1::CreateCollectionRequest { name, settings, if_not_exists: false };
    client.create_collection(request).await.unwrap()
}

pub fn bytes_field(name: &str, bytes: impl Into<Bytes>) -> v1::Field {
    v1::Field { name: name.to_owned(), value: Some(Value::Bytes(bytes.into())), expiry: None }
}

pub fn f32_tensor(shape: &[u64], values: &[f32]) -> v1::Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    v1::Tensor { dtype: DataType::F32 as i32, shape: shape.to_vec(), data: data.into() }
}

pub fn f32_field(name: &str, shape: &[u64], values: &[f32]) -> v1::Field {
    let value = Some(Value::Tensor(f32_tensor(shape, values)));
    v1::Field { name: name.to_owned(), value, expiry: None }
}

pub fn put(collection: &str, key: &str, fields: Vec<v1::Field>) -> v1::PutRequest {
    v1::PutRequest {
        collection: collection.to_owned(),
        key: key.to_owned().into(),
        fields,
        options: None,
    }
}

pub fn get(collection: &str, key: &str) -> v1::GetRequest {
    v1::GetRequest {
        collection: collection.to_owned(),
        key: key.to_owned().into(),
        ..Default::default()
    }
}

/// The bytes of a field.
pub fn field_bytes(state: &v1::StoredState, name: &str) -> Bytes {
    let field = state.fields.iter().find(|field| field.name == name);
    match field.and_then(|field| field.value.clone()) {
        Some(Value::Bytes(bytes)) => bytes,
        Some(Value::Tensor(tensor)) => tensor.data,
        None => panic!("no field {name:?} in {state:?}"),
    }
}

/// The reason that a call was refused with.
pub fn reason<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    let error = answer.expect_err("the call should be refused");
    error.reason().unwrap_or_else(|| panic!("no refusal: {error}")).to_owned()
}

/// The seed of a random test: printed, and taken back from SEED.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED")
        .ok()
        .map_or_else(rand::random, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    seed
}

/// How much of something a run does: the environment's word, or the short form's.
pub fn scale(name: &str, short: u64) -> u64 {
    std::env::var(name).map_or(short, |much| {
        much.parse().unwrap_or_else(|_| panic!("{name} is a number, got {much:?}"))
    })
}

/// Adds a line to the results of a long run, where there is one: `make soak` says to which file.
pub fn report(promise: &str, figures: &str) {
    use std::io::Write as _;
    println!("{promise}: {figures}");
    let Ok(path) = std::env::var("SOAK_RESULTS") else { return };
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    writeln!(file, "| {promise} | {figures} |").unwrap();
}

/// The example's model directory.
pub fn bank_model() -> PathBuf {
    PathBuf::from("examples/bank")
}

/// Pushes a model directory.
pub async fn push(client: &Client, dir: &Path) -> Result<v1::PushModelResponse, Error> {
    let mut files = Vec::new();
    for name in ["model.toml", "model.onnx", "model.safetensors"] {
        if let Ok(data) = std::fs::read(dir.join(name)) {
            files.push((name.to_owned(), Bytes::from(data)));
        }
    }
    client.push_model(files, true).await
}

/// An event of the example's model.
pub fn bank_score(key: &str, amount: f32, mode: v1::ScoreMode) -> v1::ScoreRequest {
    let x = f32_tensor(&[6], &[amount, 10_000.0, 8_500.0, 1.0, 2.0, 7.0]);
    v1::ScoreRequest {
        model: "bank-gru".to_owned(),
        collection: "accounts".to_owned(),
        key: key.to_owned().into(),
        inputs: vec![v1::NamedTensor { name: "x".to_owned(), tensor: Some(x) }],
        mode: mode as i32,
        ..Default::default()
    }
}
