//! `statehouse admin usage`: how much there is, and which states are largest.

use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::super::output::print_json;
use super::super::text::{show_bytes, show_count};
use super::remote::Remote;
use super::table::{Side, Table};

/// What `usage` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is added up.
    #[arg(long, value_enum, default_value = "collection")]
    by: By,
    /// How many of the largest states are listed; 0: none.
    #[arg(long, default_value_t = 10)]
    largest: u32,
    /// Only what is in this collection.
    #[arg(long, default_value = "")]
    collection: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum By {
    /// What each collection holds.
    Collection,
    /// What each shard holds, as its leader counts.
    Shard,
    /// What all replicas on a node hold.
    Node,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let request =
        v1::GetUsageRequest { collection: args.collection.clone(), largest: args.largest };
    let usage = args.remote.ask(async |mut admin| admin.get_usage(request.clone()).await).await?;
    if args.remote.json {
        print_json(&usage_json(&usage));
    } else {
        print!("{}", text(&usage, args.by, args.largest));
    }
    Ok(())
}

fn text(usage: &v1::Usage, by: By, largest: u32) -> String {
    let mut out = match by {
        By::Collection => collections(usage),
        By::Shard => shards(usage),
        By::Node => nodes(usage),
    };
    let unknown = usage.shards.iter().filter(|shard| shard.node == 0).count();
    if unknown > 0 {
        out += &format!("\nnobody answers for {unknown} shards: they are not counted\n");
    }
    if largest > 0 {
        out += "\n";
        out += &states(&usage.largest);
    }
    out
}

const HOLDINGS: [(&str, Side); 4] = [
    ("states", Side::Right),
    ("bytes", Side::Right),
    ("uploads", Side::Right),
    ("their bytes", Side::Right),
];

fn table(first: &[(&'static str, Side)], last: &[(&'static str, Side)]) -> Table {
    Table::new(&[first, &HOLDINGS, last].concat())
}

fn cells(first: Vec<String>, holdings: Option<v1::Holdings>, last: Vec<String>) -> Vec<String> {
    let held = holdings.map_or_else(Default::default, |it| {
        let (states, uploads) = (show_count(it.states), show_count(it.uploads));
        [states, show_bytes(it.state_bytes), uploads, show_bytes(it.upload_bytes)]
    });
    first.into_iter().chain(held).chain(last).collect()
}

fn collections(usage: &v1::Usage) -> String {
    let mut table = table(&[("collection", Side::Left)], &[]);
    for it in &usage.collections {
        table.row(cells(vec![collection_name(it)], it.holdings, Vec::new()));
    }
    table.row(cells(vec!["all".to_owned()], usage.total, Vec::new()));
    table.to_string()
}

fn collection_name(usage: &v1::CollectionUsage) -> String {
    match (usage.name.as_str(), usage.id) {
        ("", 0) => "(the catalog)".to_owned(),
        ("", id) => format!("(dropped: {id})"),
        (name, _) => name.to_owned(),
    }
}

fn shards(usage: &v1::Usage) -> String {
    let mut table =
        table(&[("shard", Side::Right), ("counted by", Side::Left)], &[("on disk", Side::Right)]);
    for it in &usage.shards {
        let by = match (it.node, it.leads) {
            (0, _) => "nobody".to_owned(),
            (node, true) => format!("node {node}"),
            (node, false) => format!("node {node}, which does not lead"),
        };
        let first = vec![it.shard.to_string(), by];
        table.row(cells(first, it.holdings, vec![show_bytes(it.disk_bytes)]));
    }
    let first = vec![String::new(), "all".to_owned()];
    let disk = usage.shards.iter().map(|shard| shard.disk_bytes).sum();
    table.row(cells(first, usage.total, vec![show_bytes(disk)]));
    table.to_string()
}

fn nodes(usage: &v1::Usage) -> String {
    let mut table =
        table(&[("node", Side::Right), ("replicas", Side::Right)], &[("on disk", Side::Right)]);
    for it in &usage.nodes {
        let (replicas, disk) = match it.answers {
            true => (it.replicas.to_string(), show_bytes(it.disk_bytes)),
            false => ("silent".to_owned(), String::new()),
        };
        table.row(cells(vec![it.node.to_string(), replicas], it.holdings, vec![disk]));
    }
    table.to_string()
}

fn states(largest: &[v1::LargeState]) -> String {
    if largest.is_empty() {
        return "no state is larger than one row\n".to_owned();
    }
    let mut table = Table::new(&[
        ("largest state", Side::Left),
        ("collection", Side::Left),
        ("bytes", Side::Right),
        ("shard", Side::Right),
    ]);
    for it in largest {
        let key = String::from_utf8_lossy(&it.key).into_owned();
        table.row([key, it.collection.clone(), show_bytes(it.bytes), it.shard.to_string()]);
    }
    table.to_string()
}

fn usage_json(usage: &v1::Usage) -> Json {
    let collections: Vec<Json> = usage
        .collections
        .iter()
        .map(|it| json!({ "name": it.name, "id": it.id, "holdings": holdings_json(it.holdings) }))
        .collect();
    let shards: Vec<Json> = usage
        .shards
        .iter()
        .map(|it| {
            let (shard, node, leads) = (it.shard, it.node, it.leads);
            let (holdings, disk_bytes) = (holdings_json(it.holdings), it.disk_bytes);
            json!({ "shard": shard, "node": node, "leads": leads, "holdings": holdings,
                    "disk_bytes": disk_bytes })
        })
        .collect();
    let nodes: Vec<Json> = usage
        .nodes
        .iter()
        .map(|it| {
            let (node, answers, replicas) = (it.node, it.answers, it.replicas);
            let (holdings, disk_bytes) = (holdings_json(it.holdings), it.disk_bytes);
            json!({ "node": node, "answers": answers, "replicas": replicas,
                    "holdings": holdings, "disk_bytes": disk_bytes })
        })
        .collect();
    let largest: Vec<Json> = usage
        .largest
        .iter()
        .map(|it| {
            let key = String::from_utf8_lossy(&it.key);
            json!({ "collection": it.collection, "key": key, "bytes": it.bytes,
                    "shard": it.shard, "expires_at_ms": it.expires_at_ms })
        })
        .collect();
    json!({
        "total": holdings_json(usage.total),
        "collections": collections,
        "shards": shards,
        "nodes": nodes,
        "largest": largest,
    })
}

fn holdings_json(holdings: Option<v1::Holdings>) -> Json {
    holdings.map_or(Json::Null, |it| {
        json!({
            "states": it.states,
            "state_bytes": it.state_bytes,
            "uploads": it.uploads,
            "upload_bytes": it.upload_bytes,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_shown_by_what_was_asked_for() {
        let holdings =
            Some(v1::Holdings { states: 1_234, state_bytes: 3 << 20, uploads: 1, upload_bytes: 9 });
        let collection = |name: &str, id| v1::CollectionUsage { name: name.into(), id, holdings };
        let usage = v1::Usage {
            total: holdings,
            collections: vec![collection("users", 7), collection("", 0), collection("", 9)],
            shards: vec![
                v1::ShardUsage { shard: 1, node: 2, leads: true, holdings, disk_bytes: 5 << 30 },
                v1::ShardUsage { shard: 2, ..Default::default() },
            ],
            nodes: vec![
                v1::NodeUsage { node: 1, answers: true, replicas: 17, holdings, disk_bytes: 4 },
                v1::NodeUsage { node: 3, ..Default::default() },
            ],
            largest: vec![v1::LargeState {
                collection: "users".into(),
                key: "ada".into(),
                bytes: 2 << 20,
                shard: 1,
                expires_at_ms: None,
            }],
        };
        let by = |by| text(&usage, by, 10);
        for (shown, parts) in [
            (by(By::Collection), ["users", "(the catalog)", "(dropped: 9)", "1,234", "3.0 MiB"]),
            (by(By::Shard), ["node 2", "nobody", "5.0 GiB", "all", "for 1 shards"]),
            (by(By::Node), ["17", "silent", "4 B", "ada", "2.0 MiB"]),
        ] {
            for part in parts {
                assert!(shown.contains(part), "{part:?} in\n{shown}");
            }
        }
        let none = text(&v1::Usage { largest: Vec::new(), ..usage.clone() }, By::Node, 10);
        assert!(none.ends_with("no state is larger than one row\n"), "{none}");
        assert_eq!(usage_json(&usage)["collections"][0]["holdings"]["states"], 1_234);
    }
}
