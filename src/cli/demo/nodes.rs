//! The demo's cluster: real nodes, each a process of its own in a temporary directory.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use statehouse_proto::v1;
use statehouse_proto::v1::admin_client::AdminClient;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// How long the cluster may take to have all its replicas.
const WHOLE_WAIT_MAX: Duration = Duration::from_secs(120);

/// How often it is asked whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// One process.
struct Process {
    child: Child,
    address: String,
    device: String,
}

/// Nodes that are one cluster. Their processes end with it.
pub struct Nodes {
    processes: Vec<Process>,
}

impl Nodes {
    /// Founds a cluster in a directory, has nodes join it, and waits until every shard has all
    /// its replicas.
    pub async fn form(dir: &Path, count: u64) -> anyhow::Result<Nodes> {
        let mut nodes = Nodes { processes: Vec::new() };
        for number in 1..=count {
            let data = dir.join(format!("node-{number}"));
            let mut prepare = command()?;
            match nodes.processes.first() {
                None => prepare.args(["init", "--replicas", &count.to_string()]),
                Some(first) => prepare.args(["join", "--seed", &first.address]),
            };
            let prepared = prepare.arg("--data").arg(&data).output().await?;
            let said = String::from_utf8_lossy(&prepared.stderr);
            ensure!(prepared.status.success(), "node {number}: {said}");
            nodes.processes.push(serve(&data).await?);
        }
        nodes.whole().await?;
        Ok(nodes)
    }

    /// Where clients reach them.
    pub fn endpoints(&self) -> Vec<String> {
        self.processes.iter().map(|process| format!("http://{}", process.address)).collect()
    }

    /// What they score on.
    pub fn device(&self) -> &str {
        self.processes.first().map_or("", |process| &process.device)
    }

    /// kill -9: nothing is flushed, nothing is said. Answers which node it was.
    pub async fn kill_first(&mut self) -> anyhow::Result<u64> {
        let first = self.processes.first_mut().context("a node to kill")?;
        first.child.kill().await?;
        Ok(1)
    }

    async fn whole(&self) -> anyhow::Result<()> {
        let first = self.endpoints().into_iter().next().context("a first node")?;
        let mut admin = AdminClient::connect(first).await?;
        let wait = async {
            loop {
                let status = admin.get_cluster(v1::GetClusterRequest {}).await?.into_inner();
                if status.shards_under_replicated == 0 && status.shards_without_leader == 0 {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        let late = || format!("the cluster was not whole within {WHOLE_WAIT_MAX:?}");
        tokio::time::timeout(WHOLE_WAIT_MAX, wait).await.with_context(late)?
    }
}

fn command() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Starts a node on ports that are free, and waits until it is ready.
async fn serve(data: &Path) -> anyhow::Result<Process> {
    let mut child = command()?
        .args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .args(["--peer-listen", "127.0.0.1:0", "--log-format", "json", "--data"])
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = child.stderr.take().context("its log")?;
    let mut lines = BufReader::new(said).lines();
    let mut last = String::new();
    while let Some(line) = lines.next_line().await? {
        let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let fields = &json["fields"];
        if fields["message"] == "ready" {
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            let (address, device) = (text("grpc"), text("device"));
            // A node whose log nobody reads would wait for a reader.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(Process { child, address, device });
        }
        last = line;
    }
    bail!("a node did not start: {last}")
}
