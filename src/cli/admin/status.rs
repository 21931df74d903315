//! `statehouse admin status`, `pause`, `resume`: the cluster as a whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::remote::Remote;
use super::wait::{Progress, Wait};
use super::watch::{View, watch};

/// What `status` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show it again and again.
    #[arg(long, conflicts_with = "limit")]
    watch: bool,
    // Waits until every node answers, and every shard has a leader and all its replicas.
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

/// What `pause` and `resume` take.
#[derive(Debug, clap::Args)]
pub struct SwitchArgs {
    #[command(flatten)]
    remote: Remote,
}

/// Runs `status`.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let remote = &args.remote;
    if args.watch {
        return watch(remote.json, async || Ok(view(&fetch(remote).await?))).await;
    }
    args.wait.until_over(async || Ok(health(&fetch(remote).await?))).await?;
    view(&fetch(remote).await?).print(remote.json);
    Ok(())
}

/// Runs `pause`.
pub async fn pause(args: SwitchArgs) -> anyhow::Result<()> {
    let paused = args.remote.ask(async |mut admin| admin.pause(v1::PauseRequest {}).await).await?;
    view(&paused).print(args.remote.json);
    Ok(())
}

/// Runs `resume`.
pub async fn resume(args: SwitchArgs) -> anyhow::Result<()> {
    let going = args.remote.ask(async |mut admin| admin.resume(v1::ResumeRequest {}).await).await?;
    view(&going).print(args.remote.json);
    Ok(())
}

async fn fetch(remote: &Remote) -> anyhow::Result<v1::ClusterStatus> {
    let request = v1::GetClusterRequest {};
    Ok(remote.ask(async |mut admin| admin.get_cluster(request).await).await?)
}

/// What keeps a cluster from being whole.
fn ills(status: &v1::ClusterStatus) -> Vec<String> {
    let mut ills = Vec::new();
    let silent = status.nodes.saturating_sub(status.nodes_alive);
    if silent > 0 {
        ills.push(format!("{} silent", count(silent, "node")));
    }
    if status.controller == 0 {
        ills.push("shard 0 without a leader".to_owned());
    }
    if status.shards_without_leader > 0 {
        ills.push(format!("{} without a leader", count(status.shards_without_leader, "shard")));
    }
    if status.shards_under_replicated > 0 {
        ills.push(format!("{} short of replicas", count(status.shards_under_replicated, "shard")));
    }
    if !status.stopped.is_empty() {
        ills.push(format!("{} stopped", count(status.stopped.len() as u32, "replica")));
    }
    ills
}

fn health(status: &v1::ClusterStatus) -> Progress {
    let ills = ills(status);
    if ills.is_empty() {
        return Progress::Over;
    }
    let ill = status.shards_without_leader.max(status.shards_under_replicated);
    let share = 1.0 - f64::from(ill) / f64::from(status.shards + 1);
    Progress::Going { now: ills.join(", "), share: Some(share) }
}

fn view(status: &v1::ClusterStatus) -> View {
    let mut text = String::new();
    let mut line = |name: &str, words: String| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:8}  {words}");
    };
    let controller = match status.controller {
        0 => "nobody leads shard 0".to_owned(),
        node => format!("node {node} leads shard 0"),
    };
    line("cluster", status.cluster_id.clone());
    line("answer", format!("of node {}; {controller}", status.node));
    line("nodes", format!("{} of {} alive", status.nodes_alive, status.nodes));
    line(
        "shards",
        format!(
            "{}, with {} each, placed by epoch {}",
            status.shards,
            count(status.replicas, "replica"),
            status.epoch,
        ),
    );
    let paused = if status.paused { "; paused: nothing is moved" } else { "" };
    line("tasks", format!("{} running{paused}", status.tasks_running));
    for ill in &status.disk_ills {
        line("disk", ill.clone());
    }
    if !status.clocks_off_ms.is_empty() {
        line("clocks", clocks_off(status));
    }
    let ills = ills(status);
    line(
        "health",
        match (ills.is_empty(), status.disk_ills.is_empty()) {
            (true, true) => "all is well".into(),
            (true, false) => "whole, but for disks".into(),
            (false, _) => ills.join(", "),
        },
    );
    for v1::StoppedReplica { shard, replica, node, reason } in &status.stopped {
        line("stopped", format!("replica {replica} of shard {shard} on node {node}: {reason}"));
    }
    View { gist: text.clone(), text, json: status_json(status) }
}

/// Whose wall clocks are off, and by how much.
fn clocks_off(status: &v1::ClusterStatus) -> String {
    let off: BTreeMap<_, _> = status.clocks_off_ms.iter().collect();
    let words = off.into_iter().map(|(node, ms)| {
        let side = if *ms > 0 { "ahead" } else { "behind" };
        format!("node {node}'s is {:.1} s {side}", ms.unsigned_abs() as f64 / 1_000.0)
    });
    words.collect::<Vec<_>>().join(", ")
}

fn status_json(status: &v1::ClusterStatus) -> Json {
    json!({
        "cluster_id": status.cluster_id,
        "node": status.node,
        "shards": status.shards,
        "replicas": status.replicas,
        "epoch": status.epoch,
        "paused": status.paused,
        "controller": status.controller,
        "nodes": status.nodes,
        "nodes_alive": status.nodes_alive,
        "shards_without_leader": status.shards_without_leader,
        "shards_under_replicated": status.shards_under_replicated,
        "tasks_running": status.tasks_running,
        "disk_ills": status.disk_ills,
        "clocks_off_ms": status.clocks_off_ms,
        "stopped": status.stopped.iter().map(stopped_json).collect::<Vec<_>>(),
        "healthy": ills(status).is_empty(),
    })
}

fn stopped_json(stopped: &v1::StoppedReplica) -> Json {
    let v1::StoppedReplica { shard, replica, node, reason } = stopped;
    json!({ "shard": shard, "replica": replica, "node": node, "reason": reason })
}

/// "1 shard", "2 shards".
pub fn count(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> v1::ClusterStatus {
        v1::ClusterStatus {
            cluster_id: "ab".repeat(16),
            node: 2,
            shards: 16,
            replicas: 3,
            epoch: 7,
            controller: 1,
            nodes: 3,
            nodes_alive: 3,
            ..Default::default()
        }
    }

    #[test]
    fn a_clock_that_is_off_is_shown_and_keeps_nobody_waiting() {
        let off = [(3, 3_600_000), (1, -1_500)].into();
        let status = v1::ClusterStatus { clocks_off_ms: off, ..whole() };
        let shown = "clocks    node 1's is 1.5 s behind, node 3's is 3600.0 s ahead\n";
        assert!(view(&status).text.contains(shown), "{}", view(&status).text);
        assert!(matches!(health(&status), Progress::Over));
    }

    #[test]
    fn a_cluster_is_whole_or_says_what_is_missing() {
        assert!(matches!(health(&whole()), Progress::Over));
        assert!(view(&whole()).text.contains("health    all is well\n"));
        assert!(!view(&whole()).text.contains("clocks"));
        let ill = v1::ClusterStatus {
            nodes_alive: 2,
            shards_without_leader: 1,
            shards_under_replicated: 17,
            paused: true,
            stopped: vec![v1::StoppedReplica {
                shard: 3,
                replica: 40,
                node: 2,
                reason: "corrupt row".into(),
            }],
            ..whole()
        };
        let shown = view(&ill);
        let ills = "1 node silent, 1 shard without a leader, 17 shards short of replicas, \
                    1 replica stopped";
        assert!(shown.text.contains(ills), "{}", shown.text);
        let stopped = "stopped   replica 40 of shard 3 on node 2: corrupt row\n";
        assert!(shown.text.contains(stopped), "{}", shown.text);
        assert!(shown.text.contains("paused: nothing is moved"));
        assert_eq!(shown.json["healthy"], false);
        let node = "node 3 is short of disk space (40 MiB free)";
        let short = v1::ClusterStatus { disk_ills: vec![node.into()], ..whole() };
        let shown = view(&short).text;
        assert!(shown.contains(node) && !shown.contains("all is well"), "{shown}");
        let Progress::Going { now, share } = health(&ill) else { panic!("it is not whole") };
        assert_eq!((now.as_str(), share), (ills, Some(0.0)));
    }
}
