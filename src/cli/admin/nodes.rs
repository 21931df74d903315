//! `statehouse admin nodes`: who is in the cluster.

use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::super::text::{show_bytes, show_count};
use super::remote::Remote;
use super::table::{Side, Table};
use super::watch::{View, watch};

/// What `nodes` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that were removed too.
    #[arg(long)]
    all: bool,
    /// Show them again and again.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let look = async || Ok(view(&fetch(&args.remote, args.all).await?));
    if args.watch {
        return watch(args.remote.json, look).await;
    }
    look().await.map(|view| view.print(args.remote.json))
}

/// Every node, or every one that was not removed.
pub async fn fetch(remote: &Remote, all: bool) -> anyhow::Result<Vec<v1::Node>> {
    let request = v1::ListNodesRequest { all };
    Ok(remote.ask(async |mut admin| admin.list_nodes(request).await).await?.nodes)
}

fn view(nodes: &[v1::Node]) -> View {
    use Side::{Left, Right};
    let mut table = Table::new(&[
        ("node", Right),
        ("address", Left),
        ("peers at", Left),
        ("state", Left),
        ("replicas", Right),
        ("leads", Right),
        ("size", Right),
        ("free", Right),
        ("writes/s", Right),
        ("version", Left),
    ]);
    let mut gist = String::new();
    for node in nodes {
        let state = state(node);
        gist.push_str(&format!("{} {} ", node.id, node.address));
        gist.push_str(&format!("{} {} {}\n", alive_or_not(node), node.replicas, node.leaders));
        table.row([
            node.id.to_string(),
            node.address.clone(),
            node.peer_address.clone(),
            state,
            node.replicas.to_string(),
            node.leaders.to_string(),
            show_bytes(node.bytes),
            show_bytes(node.disk_free_bytes),
            show_count(node.commands_per_second.max(0.0).round() as u64),
            node.version.clone(),
        ]);
    }
    let json = nodes.iter().map(node_json).collect();
    View { text: table.to_string(), json, gist }
}

/// One node for people, in a line.
pub fn print(node: &v1::Node, json: bool) {
    if json {
        super::super::output::print_json(&node_json(node));
    } else {
        let (replicas, leaders) = (node.replicas, node.leaders);
        println!("node {}  {}  {replicas} replicas, leads {leaders}", node.id, state(node));
    }
}

fn name_of(state: i32) -> &'static str {
    match v1::NodeState::try_from(state) {
        Ok(v1::NodeState::Active) => "active",
        Ok(v1::NodeState::Draining) => "draining",
        Ok(v1::NodeState::Removed) => "removed",
        Ok(v1::NodeState::Unspecified) | Err(_) => "unknown",
    }
}

fn alive_or_not(node: &v1::Node) -> String {
    let name = name_of(node.state);
    if node.disk_short {
        format!("{name}, short of disk space")
    } else if node.alive || node.state == v1::NodeState::Removed as i32 {
        name.to_owned()
    } else {
        format!("{name}, silent")
    }
}

fn state(node: &v1::Node) -> String {
    let words = alive_or_not(node);
    if words.ends_with("silent") && node.silent_ms > 0 {
        format!("{words} for {} s", node.silent_ms.div_ceil(1_000))
    } else {
        words
    }
}

fn node_json(node: &v1::Node) -> Json {
    json!({
        "id": node.id,
        "address": node.address,
        "peer_address": node.peer_address,
        "state": name_of(node.state),
        "alive": node.alive,
        "silent_ms": node.silent_ms,
        "replicas": node.replicas,
        "leaders": node.leaders,
        "bytes": node.bytes,
        "disk_free_bytes": node.disk_free_bytes,
        "disk_short": node.disk_short,
        "clock_skew_ms": node.clock_skew_ms,
        "commands_per_second": node.commands_per_second,
        "version": node.version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_shown_in_columns() {
        let node = v1::Node {
            id: 1,
            address: "127.0.0.1:7070".into(),
            peer_address: "127.0.0.1:7072".into(),
            state: v1::NodeState::Active as i32,
            alive: true,
            replicas: 17,
            leaders: 6,
            bytes: 3 << 20,
            disk_free_bytes: 5 << 30,
            commands_per_second: 1_234.4,
            version: "0.1.0".into(),
            ..Default::default()
        };
        let silent = v1::Node {
            id: 2,
            state: v1::NodeState::Draining as i32,
            alive: false,
            silent_ms: 12_300,
            ..node.clone()
        };
        let shown = view(&[node.clone(), silent.clone()]);
        let lines: Vec<&str> = shown.text.lines().collect();
        assert!(lines[0].starts_with("node  address         peers at"), "{}", shown.text);
        for part in ["active ", "17", "3.0 MiB", "5.0 GiB", "1,234", "0.1.0"] {
            assert!(lines[1].contains(part), "{part} in {}", shown.text);
        }
        assert!(lines[2].contains("draining, silent for 13 s"), "{}", shown.text);
        assert_eq!(shown.json[1]["state"], "draining");
        let later = view(&[node, v1::Node { silent_ms: 13_300, ..silent }]);
        assert_eq!(later.gist, shown.gist, "time going by is no change");
    }
}
