//! `statehouse admin move-shard`, `transfer-leader`, `drain`, `undrain`, `remove-node`,
//! `replace-node`: what an operator has the cluster change.

use serde_json::json;
use statehouse_proto::v1;

use super::remote::Remote;
use super::wait::{Progress, Wait};
use super::{nodes, tasks};
use crate::cli::output::print_json;

/// What `move-shard` takes.
#[derive(Debug, clap::Args)]
pub struct MoveShardArgs {
    /// Which shard.
    shard: u32,
    /// The node that has the replica.
    #[arg(long)]
    from: u64,
    /// The node that gets it.
    #[arg(long)]
    to: u64,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

/// What `transfer-leader` takes.
#[derive(Debug, clap::Args)]
pub struct TransferLeaderArgs {
    /// Which shard.
    shard: u32,
    /// The node whose replica is to lead.
    #[arg(long)]
    to: u64,
    #[command(flatten)]
    remote: Remote,
}

/// What `drain` takes.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Which node.
    node: u64,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

/// What `undrain` takes.
#[derive(Debug, clap::Args)]
pub struct UndrainArgs {
    /// Which node.
    node: u64,
    #[command(flatten)]
    remote: Remote,
}

/// What `remove-node` takes.
#[derive(Debug, clap::Args)]
pub struct RemoveNodeArgs {
    /// Which node. Drain or replace it first.
    node: u64,
    #[command(flatten)]
    remote: Remote,
}

/// What `replace-node` takes.
#[derive(Debug, clap::Args)]
pub struct ReplaceNodeArgs {
    /// The node that goes, dead or alive.
    node: u64,
    /// The node that takes its replicas over.
    #[arg(long)]
    with: u64,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `move-shard`.
pub async fn move_shard(args: MoveShardArgs) -> anyhow::Result<()> {
    let MoveShardArgs { shard, from, to, wait, remote } = args;
    let request = v1::MoveShardRequest { shard, from, to };
    let task = remote.ask_once(async |mut admin| admin.move_shard(request).await).await?;
    if wait.wanted() {
        return tasks::follow(&remote, wait, &[task.id]).await;
    }
    tasks::print(&task, &remote);
    Ok(())
}

/// Runs `transfer-leader`.
pub async fn transfer_leader(args: TransferLeaderArgs) -> anyhow::Result<()> {
    let TransferLeaderArgs { shard, to, remote } = args;
    let request = v1::TransferLeaderRequest { shard, to };
    let done = remote.ask(async |mut admin| admin.transfer_leader(request).await).await?;
    if remote.json {
        print_json(&json!({ "shard": shard, "leader": done.leader }));
    } else {
        println!("node {} leads shard {shard}", done.leader);
    }
    Ok(())
}

/// Runs `drain`.
pub async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let DrainArgs { node, wait, remote } = args;
    let request = v1::DrainNodeRequest { node };
    let mut drained = remote.ask(async |mut admin| admin.drain_node(request).await).await?;
    if wait.wanted() {
        let at_first = drained.replicas.max(1);
        let find = async || {
            let nodes = nodes::fetch(&remote, false).await?;
            let found = nodes.into_iter().find(|found| found.id == node);
            found.ok_or_else(|| anyhow::anyhow!("node {node} is no longer in the cluster"))
        };
        wait.until_over(async || Ok(left_to_drain(&find().await?, at_first))).await?;
        drained = find().await?;
    }
    nodes::print(&drained, remote.json);
    Ok(())
}

fn left_to_drain(node: &v1::Node, at_first: u32) -> Progress {
    if node.replicas == 0 {
        return Progress::Over;
    }
    let now = format!("{} replicas left, leads {}", node.replicas, node.leaders);
    let share = Some(1.0 - f64::from(node.replicas) / f64::from(at_first));
    Progress::Going { now, share }
}

/// Runs `undrain`.
pub async fn undrain(args: UndrainArgs) -> anyhow::Result<()> {
    let request = v1::ResumeNodeRequest { node: args.node };
    let node = args.remote.ask(async |mut admin| admin.resume_node(request).await).await?;
    nodes::print(&node, args.remote.json);
    Ok(())
}

/// Runs `remove-node`.
pub async fn remove_node(args: RemoveNodeArgs) -> anyhow::Result<()> {
    let RemoveNodeArgs { node, remote } = args;
    let request = v1::RemoveNodeRequest { node };
    remote.ask(async |mut admin| admin.remove_node(request).await).await?;
    if remote.json {
        print_json(&json!({ "removed": node }));
    } else {
        println!("node {node} is removed");
    }
    Ok(())
}

/// Runs `replace-node`.
pub async fn replace_node(args: ReplaceNodeArgs) -> anyhow::Result<()> {
    let ReplaceNodeArgs { node, with, wait, remote } = args;
    let request = v1::ReplaceNodeRequest { node, with };
    let replaced = remote.ask_once(async |mut admin| admin.replace_node(request).await).await?;
    if wait.wanted() {
        return tasks::follow(&remote, wait, &replaced.tasks).await;
    }
    if remote.json {
        print_json(&json!({ "tasks": replaced.tasks }));
    } else {
        println!("{}", tasks_line(&replaced.tasks));
    }
    Ok(())
}

/// "tasks 4, 5 and 6", by which the change can be watched.
pub fn tasks_line(tasks: &[u64]) -> String {
    let ids: Vec<String> = tasks.iter().map(u64::to_string).collect();
    match &ids[..] {
        [] => "nothing to do".to_owned(),
        [one] => format!("task {one}"),
        [most @ .., last] => format!("tasks {} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_named_in_a_line() {
        assert_eq!(tasks_line(&[]), "nothing to do");
        assert_eq!(tasks_line(&[4]), "task 4");
        assert_eq!(tasks_line(&[4, 5, 6]), "tasks 4, 5 and 6");
    }

    #[test]
    fn a_drain_is_over_when_no_replica_is_left() {
        let node = |replicas| v1::Node { replicas, ..Default::default() };
        assert!(matches!(left_to_drain(&node(0), 8), Progress::Over));
        let Progress::Going { share, .. } = left_to_drain(&node(2), 8) else {
            panic!("two are left")
        };
        assert_eq!(share, Some(0.75));
    }
}
