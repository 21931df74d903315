//! `statehouse admin rebalance`: makes the nodes even, or says what that would take.

use std::fmt::Write as _;

use clap::ValueEnum;
use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::change::tasks_line;
use super::remote::Remote;
use super::table::{Side, Table};
use super::tasks;
use super::wait::Wait;
use crate::cli::output::print_json;
use crate::cli::text::{show_bytes, show_count};

/// What `rebalance` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is to be even.
    #[arg(long, value_enum, default_value = "bytes")]
    by: By,
    /// Only print the plan.
    #[arg(long, conflicts_with = "limit")]
    simulate: bool,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// What lies on the nodes' disks.
    Bytes,
    /// How many shards each leads.
    Leaders,
    /// The commands that each applies.
    Load,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { by, simulate, wait, remote } = args;
    let wire = match by {
        By::Bytes => v1::RebalanceBy::Bytes,
        By::Leaders => v1::RebalanceBy::Leaders,
        By::Load => v1::RebalanceBy::Load,
    };
    let request = v1::RebalanceRequest { by: wire as i32, simulate };
    let plan = if simulate {
        remote.ask(async |mut admin| admin.rebalance(request).await).await?
    } else {
        remote.ask_once(async |mut admin| admin.rebalance(request).await).await?
    };
    if remote.json {
        print_json(&plan_json(&plan));
    } else {
        print!("{}", plan_text(&plan, by, simulate));
    }
    if wait.wanted() && !plan.tasks.is_empty() {
        return tasks::follow(&remote, wait, &plan.tasks).await;
    }
    Ok(())
}

fn plan_text(plan: &v1::RebalanceResponse, by: By, simulate: bool) -> String {
    let mut text = String::new();
    for step in &plan.moves {
        let way = match (step.from, step.to) {
            (0, to) => format!("to node {to}"),
            (from, 0) => format!("away from node {from}"),
            (from, to) => format!("from node {from} to node {to}"),
        };
        let what = if step.leader { "lead" } else { "replica" };
        // Writing to a string can't fail.
        let _ = writeln!(text, "shard {}: {what} {way}", step.shard);
    }
    if plan.moves.is_empty() {
        text.push_str("the nodes are as even as they get\n");
    }
    let show = |weight: u64| match by {
        By::Bytes => show_bytes(weight),
        By::Leaders | By::Load => show_count(weight),
    };
    let (left, right) = (Side::Left, Side::Right);
    let unit = match by {
        By::Bytes => "bytes",
        By::Leaders => "leads",
        By::Load => "writes/s",
    };
    let headings = [("node", right), ("before", right), ("after", right), (unit, left)];
    let mut table = Table::new(&headings);
    for weight in &plan.weights {
        let (before, after) = (show(weight.before), show(weight.after));
        table.row([weight.node.to_string(), before, after, String::new()]);
    }
    if !plan.weights.is_empty() {
        let _ = write!(text, "\n{table}");
    }
    if !simulate {
        let _ = writeln!(text, "\n{}", tasks_line(&plan.tasks));
    }
    text
}

fn plan_json(plan: &v1::RebalanceResponse) -> Json {
    let moves: Vec<Json> = plan
        .moves
        .iter()
        .map(|step| {
            let (from, to) = (step.from, step.to);
            json!({ "shard": step.shard, "from": from, "to": to, "leader": step.leader })
        })
        .collect();
    let weights: Vec<Json> = plan
        .weights
        .iter()
        .map(
            |weight| json!({ "node": weight.node, "before": weight.before, "after": weight.after }),
        )
        .collect();
    json!({ "moves": moves, "weights": weights, "tasks": plan.tasks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_goes_where_and_how_even_that_is() {
        let plan = v1::RebalanceResponse {
            moves: vec![
                v1::PlannedMove { shard: 3, from: 1, to: 4, leader: false },
                v1::PlannedMove { shard: 5, from: 1, to: 2, leader: true },
            ],
            weights: vec![v1::Weight { node: 1, before: 4 << 20, after: 3 << 20 }],
            tasks: Vec::new(),
        };
        let text = plan_text(&plan, By::Bytes, true);
        assert!(text.contains("shard 3: replica from node 1 to node 4\n"), "{text}");
        assert!(text.contains("shard 5: lead from node 1 to node 2\n"), "{text}");
        assert!(text.contains("4.0 MiB  3.0 MiB"), "{text}");
        assert!(!text.contains("nothing to do"), "a simulation does nothing anyway");
        let even = plan_text(&v1::RebalanceResponse::default(), By::Leaders, false);
        assert!(even.contains("as even as they get") && even.contains("nothing to do"));
    }
}
