//! `statehouse admin cache-plan`: how much memory for decoded states would give which hit rate.

use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::super::output::print_json;
use super::super::text::{show_bytes, show_count};
use super::remote::Remote;
use super::table::{Side, Table};

/// Of a part that holds less than this share of what it may, a hit rate says little of its size.
const FULL_SHARE: f64 = 0.9;

/// Fewer keys than these, or lookups of them, tell little.
const KEYS_FEW: u64 = 500;
const LOOKUPS_FEW: u64 = 5_000;

/// What `cache-plan` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let ask = async |mut admin: statehouse_proto::v1::admin_client::AdminClient<_>| {
        admin.plan_cache(v1::PlanCacheRequest {}).await
    };
    let nodes = args.remote.ask(ask).await?.nodes;
    if args.remote.json {
        print_json(&nodes.iter().map(node_json).collect());
    } else {
        print!("{}", text(&nodes));
    }
    Ok(())
}

fn text(nodes: &[v1::NodeCachePlan]) -> String {
    let mut text = String::new();
    for node in nodes {
        if !text.is_empty() {
            text.push('\n');
        }
        if node.parts.is_empty() {
            text.push_str(&format!("node {}  does not answer\n", node.node));
        }
        for part in &node.parts {
            text.push_str(&part_text(node.node, part));
        }
    }
    text
}

fn part_text(node: u64, part: &v1::CachePlan) -> String {
    let name = if part.pinned { "pinned collections" } else { "decoded states" };
    let lookups = part.hits + part.misses;
    let mut text = format!(
        "node {node}, {name}: {} of {} used, {} lookups, {}\n",
        show_bytes(part.used_bytes),
        show_bytes(part.capacity_bytes),
        show_count(lookups),
        match lookups {
            0 => "no hit rate yet".to_owned(),
            _ => format!("{} hits so far", percent(part.hits as f64 / lookups as f64)),
        },
    );
    if part.sampled_lookups == 0 {
        text.push_str("no estimate yet: none of the keys that are followed was looked up\n");
        return text;
    }
    let mut table = Table::new(&[("memory", Side::Right), ("hits", Side::Right), ("", Side::Left)]);
    for (bytes, rate, now) in rows(part) {
        let mark = if now { "<- today" } else { "" };
        table.row([show_bytes(bytes), percent(rate), mark.to_owned()]);
    }
    text.push_str(&table.to_string());
    if part.sampled_keys < KEYS_FEW || part.sampled_lookups < LOOKUPS_FEW {
        let (lookups, keys) = (show_count(part.sampled_lookups), show_count(part.sampled_keys));
        text.push_str(&format!("from {lookups} lookups of {keys} keys alone: off by ten points\n"));
    }
    if (part.used_bytes as f64) < FULL_SHARE * part.capacity_bytes as f64 {
        text.push_str("it is not full: more memory would change nothing by now\n");
    }
    text
}

/// Sizes with their hit rates, and today's among them.
fn rows(part: &v1::CachePlan) -> Vec<(u64, f64, bool)> {
    let others = part.points.iter().filter(|point| point.bytes != part.capacity_bytes);
    let mut rows: Vec<_> = others.map(|point| (point.bytes, point.hit_rate, false)).collect();
    if part.capacity_bytes > 0 {
        rows.push((part.capacity_bytes, part.estimated_now, true));
    }
    rows.sort_by_key(|(bytes, ..)| *bytes);
    rows
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn node_json(node: &v1::NodeCachePlan) -> Json {
    let parts: Vec<Json> = node.parts.iter().map(part_json).collect();
    json!({ "node": node.node, "alive": !node.parts.is_empty(), "parts": parts })
}

fn part_json(part: &v1::CachePlan) -> Json {
    let points: Vec<Json> = part
        .points
        .iter()
        .map(|point| json!({ "bytes": point.bytes, "hit_rate": point.hit_rate }))
        .collect();
    json!({
        "part": if part.pinned { "pinned" } else { "shared" },
        "capacity_bytes": part.capacity_bytes,
        "used_bytes": part.used_bytes,
        "hits": part.hits,
        "misses": part.misses,
        "estimated_now": part.estimated_now,
        "points": points,
        "sampled_share": part.sampled_share,
        "sampled_keys": part.sampled_keys,
        "sampled_lookups": part.sampled_lookups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn today_stands_among_the_sizes() {
        let point = |bytes, hit_rate| v1::CachePoint { bytes, hit_rate };
        let part = v1::CachePlan {
            capacity_bytes: 3 << 20,
            used_bytes: 3 << 20,
            hits: 600,
            misses: 400,
            estimated_now: 0.58,
            points: vec![point(1 << 20, 0.3), point(2 << 20, 0.5), point(4 << 20, 0.7)],
            sampled_keys: 500,
            sampled_lookups: 5_000,
            ..Default::default()
        };
        let silent = v1::NodeCachePlan { node: 2, parts: vec![] };
        let shown = text(&[v1::NodeCachePlan { node: 1, parts: vec![part] }, silent]);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].contains("1,000 lookups, 60.0 % hits so far"), "{shown}");
        assert!(lines[4].contains("3.0 MiB") && lines[4].contains("58.0 %"), "{shown}");
        assert!(lines[4].ends_with("<- today") && lines[5].contains("4.0 MiB"), "{shown}");
        assert!(!shown.contains("alone") && !shown.contains("not full"), "{shown}");
        assert!(shown.ends_with("node 2  does not answer\n"), "{shown}");
        let fresh = v1::CachePlan { capacity_bytes: 3 << 20, ..Default::default() };
        let shown = text(&[v1::NodeCachePlan { node: 1, parts: vec![fresh] }]);
        assert!(shown.contains("no estimate yet") && !shown.contains("today"), "{shown}");
    }
}
