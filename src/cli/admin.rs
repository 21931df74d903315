//! `statehouse admin`: looks after a cluster. Any node answers.
//!
//! Changes that take a while are tasks of the cluster: a command ends once they are written down,
//! and goes on without anybody waiting. `--wait` watches them to their end; ending the command
//! then ends only the watching.

mod cache_plan;
mod change;
mod large;
mod nodes;
mod rebalance;
mod remote;
mod shards;
mod status;
mod table;
mod tasks;
mod usage;
mod wait;
mod watch;

use clap::Subcommand;

/// What `admin` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what the cluster is and how it does.
    Status(status::Args),
    /// List nodes: where they are, what they hold, whether they answer.
    Nodes(nodes::Args),
    /// List shards: who leads them, which nodes have replicas, how far those are.
    Shards(shards::Args),
    /// Show which hit rates more or less memory for decoded states would give.
    CachePlan(cache_plan::Args),
    /// Show how much there is, by collection, shard or node, and the largest states.
    Usage(usage::Args),
    /// List large requests and writes above a collection's warning size, the newest first.
    LargeRequests(large::Args),
    /// Move one replica of a shard from a node to another.
    MoveShard(change::MoveShardArgs),
    /// Have another replica of a shard lead it.
    TransferLeader(change::TransferLeaderArgs),
    /// Make the nodes even.
    Rebalance(rebalance::Args),
    /// Have a node's replicas and leaders go elsewhere, and none come.
    Drain(change::DrainArgs),
    /// Let replicas come to a drained node again.
    Undrain(change::UndrainArgs),
    /// Take a node that has no replicas out of the cluster, for ever.
    RemoveNode(change::RemoveNodeArgs),
    /// Move every replica of a node, dead or alive, to another one.
    ReplaceNode(change::ReplaceNodeArgs),
    /// List the changes that are under way.
    Tasks(tasks::ListArgs),
    /// Show one change.
    Task(tasks::ShowArgs),
    /// Undo a change, as long as its shard's members have not changed.
    Cancel(tasks::CancelArgs),
    /// Hold all changes at their current step, and plan none.
    Pause(status::SwitchArgs),
    /// Go on with changes.
    Resume(status::SwitchArgs),
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Status(args) => status::run(args).await,
        Action::Nodes(args) => nodes::run(args).await,
        Action::Shards(args) => shards::run(args).await,
        Action::CachePlan(args) => cache_plan::run(args).await,
        Action::Usage(args) => usage::run(args).await,
        Action::LargeRequests(args) => large::run(args).await,
        Action::MoveShard(args) => change::move_shard(args).await,
        Action::TransferLeader(args) => change::transfer_leader(args).await,
        Action::Rebalance(args) => rebalance::run(args).await,
        Action::Drain(args) => change::drain(args).await,
        Action::Undrain(args) => change::undrain(args).await,
        Action::RemoveNode(args) => change::remove_node(args).await,
        Action::ReplaceNode(args) => change::replace_node(args).await,
        Action::Tasks(args) => tasks::list(args).await,
        Action::Task(args) => tasks::show(args).await,
        Action::Cancel(args) => tasks::cancel(args).await,
        Action::Pause(args) => status::pause(args).await,
        Action::Resume(args) => status::resume(args).await,
    }
}
