//! `statehouse admin shards`: where each shard's replicas are, and how they do.

use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::super::text::{show_bytes, show_count};
use super::remote::Remote;
use super::table::{Side, Table};
use super::watch::{View, watch};

/// What the column of that name says.
const BEHIND: &str = "behind: of the slowest, entries";

/// What `shards` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these.
    shards: Vec<u32>,
    /// Show them again and again.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let look = async || Ok(view(&fetch(&args.remote, &args.shards).await?));
    if args.watch {
        return watch(args.remote.json, look).await;
    }
    look().await.map(|view| view.print(args.remote.json))
}

async fn fetch(remote: &Remote, shards: &[u32]) -> anyhow::Result<Vec<v1::Shard>> {
    let request = v1::ListShardsRequest { shards: shards.to_vec() };
    Ok(remote.ask(async |mut admin| admin.list_shards(request.clone()).await).await?.shards)
}

fn view(shards: &[v1::Shard]) -> View {
    use Side::{Left, Right};
    let mut table = Table::new(&[
        ("shard", Right),
        ("replicas on nodes", Left),
        ("term", Right),
        ("committed", Right),
        ("behind", Right),
        ("size", Right),
        ("writes/s", Right),
        ("task", Right),
    ]);
    let (mut gist, mut reasons) = (String::new(), String::new());
    for shard in shards {
        let replicas = replicas(shard);
        let task = if shard.task == 0 { String::new() } else { shard.task.to_string() };
        gist.push_str(&format!("{} {replicas} {} {task}\n", shard.id, shard.term));
        for replica in shard.replicas.iter().filter(|replica| !replica.reason.is_empty()) {
            let v1::Replica { id, node, reason, .. } = replica;
            reasons.push_str(&format!(
                "shard {}: replica {id} on node {node} has stopped: {reason}\n",
                shard.id
            ));
        }
        table.row([
            shard.id.to_string(),
            replicas,
            shard.term.to_string(),
            show_count(shard.committed),
            behind(shard).map_or_else(String::new, show_count),
            show_bytes(shard.bytes),
            show_count(shard.commands_per_second.max(0.0).round() as u64),
            task,
        ]);
    }
    let text = format!("{table}\n* leads   + learns   ! missing   x stopped   {BEHIND}\n{reasons}");
    View { text, json: shards.iter().map(shard_json).collect(), gist }
}

fn role(replica: &v1::Replica) -> v1::ReplicaRole {
    v1::ReplicaRole::try_from(replica.role).unwrap_or(v1::ReplicaRole::Unspecified)
}

/// "1* 2 3+".
fn replicas(shard: &v1::Shard) -> String {
    let mark = |replica: &v1::Replica| match role(replica) {
        v1::ReplicaRole::Leader => "*",
        v1::ReplicaRole::Follower => "",
        v1::ReplicaRole::Learner => "+",
        v1::ReplicaRole::Missing => "!",
        v1::ReplicaRole::Stopped => "x",
        v1::ReplicaRole::Unspecified => "?",
    };
    let mut replicas: Vec<&v1::Replica> = shard.replicas.iter().collect();
    replicas.sort_by_key(|replica| (replica.node, replica.id));
    let words: Vec<String> =
        replicas.into_iter().map(|replica| format!("{}{}", replica.node, mark(replica))).collect();
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(" "),
    }
}

/// Entries that the slowest replica that answers has still to apply.
fn behind(shard: &v1::Shard) -> Option<u64> {
    let answering = shard.replicas.iter().filter(|replica| {
        !matches!(role(replica), v1::ReplicaRole::Missing | v1::ReplicaRole::Stopped)
    });
    let slowest = answering.map(|replica| replica.applied).min()?;
    Some(shard.committed.saturating_sub(slowest))
}

fn shard_json(shard: &v1::Shard) -> Json {
    let replicas: Vec<Json> = shard
        .replicas
        .iter()
        .map(|replica| {
            let role = match role(replica) {
                v1::ReplicaRole::Leader => "leader",
                v1::ReplicaRole::Follower => "follower",
                v1::ReplicaRole::Learner => "learner",
                v1::ReplicaRole::Missing => "missing",
                v1::ReplicaRole::Stopped => "stopped",
                v1::ReplicaRole::Unspecified => "unknown",
            };
            let (id, node, applied) = (replica.id, replica.node, replica.applied);
            let reason = &replica.reason;
            json!({ "id": id, "node": node, "role": role, "applied": applied, "reason": reason })
        })
        .collect();
    json!({
        "id": shard.id,
        "replicas": replicas,
        "leader": shard.leader,
        "term": shard.term,
        "committed": shard.committed,
        "bytes": shard.bytes,
        "commands_per_second": shard.commands_per_second,
        "task": shard.task,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_shown_with_the_roles_of_their_replicas() {
        let replica = |node, role: v1::ReplicaRole, applied| v1::Replica {
            id: 100 + node,
            node,
            role: role as i32,
            applied,
            reason: String::new(),
        };
        let shard = v1::Shard {
            id: 3,
            replicas: vec![
                replica(4, v1::ReplicaRole::Learner, 800),
                replica(1, v1::ReplicaRole::Leader, 1_000),
                replica(2, v1::ReplicaRole::Follower, 990),
                replica(3, v1::ReplicaRole::Missing, 0),
            ],
            leader: 1,
            term: 5,
            committed: 1_000,
            task: 9,
            ..Default::default()
        };
        let shown = view(std::slice::from_ref(&shard));
        let line = shown.text.lines().nth(1).unwrap();
        for part in ["3", "1* 2 3! 4+", "1,000", "200", "9"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert_eq!(shown.json[0]["replicas"][0]["role"], "learner");
        let later = view(&[v1::Shard { committed: 2_000, ..shard.clone() }]);
        assert_eq!(later.gist, shown.gist, "writes are no change");
        assert_ne!(view(&[v1::Shard { term: 6, ..shard }]).gist, shown.gist);
    }
}
