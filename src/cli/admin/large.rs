//! `statehouse admin large-requests`: what was large lately, of all nodes together.

use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::super::output::print_json;
use super::super::text::{show_bytes, show_us};
use super::remote::Remote;
use super::table::{Side, Table};
use crate::clock::unix_now_ms;

/// What `large-requests` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many are shown, the newest first; 0: all that are kept.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the subcommand: asks a node which nodes there are, and each what it has noted.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let nodes = super::nodes::fetch(&args.remote, false).await?;
    let request = v1::ListLargeRequestsRequest { limit: args.limit };
    let mut found = Vec::new();
    for node in nodes.iter().filter(|node| node.alive) {
        let there = args.remote.at(&node.address);
        match there.ask(async |mut admin| admin.list_large_requests(request).await).await {
            Ok(answer) => {
                found.extend(answer.requests.into_iter().map(|request| (answer.node, request)));
            }
            Err(error) => eprintln!("node {} is left out: {error}", node.id),
        }
    }
    found.sort_by_key(|(_, request)| std::cmp::Reverse(request.at_ms));
    if args.limit > 0 {
        found.truncate(args.limit as usize);
    }
    if args.remote.json {
        print_json(&found.iter().map(request_json).collect());
    } else {
        print!("{}", text(&found, unix_now_ms()));
    }
    Ok(())
}

fn text(found: &[(u64, v1::LargeRequest)], now_ms: u64) -> String {
    if found.is_empty() {
        return "no request was large\n".to_owned();
    }
    use Side::{Left, Right};
    let mut table = Table::new(&[
        ("ago", Right),
        ("node", Right),
        ("kind", Left),
        ("collection", Left),
        ("key", Left),
        ("request", Right),
        ("answer", Right),
        ("took", Right),
        ("outcome", Left),
        ("large is", Left),
    ]);
    for (node, it) in found {
        let what = match it.reason() {
            v1::LargeReason::State => {
                format!(
                    "the state, {}: above the collection's warning size",
                    show_bytes(it.state_bytes)
                )
            }
            v1::LargeReason::Message if it.request_bytes >= it.answer_bytes => "the request".into(),
            v1::LargeReason::Message => "the answer".into(),
            v1::LargeReason::Unspecified => String::new(),
        };
        let key = match it.items {
            0 => it.key.clone(),
            items => format!("{} and others, {items} in all", it.key),
        };
        table.row([
            show_age(now_ms.saturating_sub(it.at_ms)),
            node.to_string(),
            it.kind.clone(),
            it.collection.clone(),
            key,
            show_bytes(it.request_bytes),
            show_bytes(it.answer_bytes),
            show_us(it.micros),
            it.outcome.clone(),
            what,
        ]);
    }
    table.to_string()
}

/// Milliseconds in the largest unit that is whole.
fn show_age(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} m", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

fn request_json((node, it): &(u64, v1::LargeRequest)) -> Json {
    let reason = match it.reason() {
        v1::LargeReason::State => "above the collection's warning size",
        v1::LargeReason::Message => "above large_request_bytes",
        v1::LargeReason::Unspecified => "unknown",
    };
    json!({
        "node": node,
        "at_ms": it.at_ms,
        "kind": it.kind,
        "collection": it.collection,
        "key": it.key,
        "request_bytes": it.request_bytes,
        "answer_bytes": it.answer_bytes,
        "micros": it.micros,
        "outcome": it.outcome,
        "reason": reason,
        "state_bytes": it.state_bytes,
        "items": it.items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_are_shown_with_what_is_large() {
        let put = v1::LargeRequest {
            at_ms: 100_000,
            kind: "put".into(),
            collection: "users".into(),
            key: "ada".into(),
            request_bytes: 9 << 20,
            answer_bytes: 4,
            micros: 1_500,
            outcome: "ok".into(),
            reason: v1::LargeReason::Message as i32,
            ..Default::default()
        };
        let state = v1::LargeRequest {
            reason: v1::LargeReason::State as i32,
            state_bytes: 5 << 20,
            ..put.clone()
        };
        let batch = v1::LargeRequest { items: 3, request_bytes: 1, ..put.clone() };
        let shown = text(&[(1, put), (2, state.clone()), (3, batch)], 400_000);
        for part in ["5 m", "9.0 MiB", "the request", "1.50 ms", "5.0 MiB: above", "3 in all"] {
            assert!(shown.contains(part), "{part:?} in\n{shown}");
        }
        assert!(shown.lines().last().unwrap().ends_with("the answer"), "{shown}");
        assert_eq!(request_json(&(2, state))["state_bytes"], 5 << 20);
        assert_eq!([show_age(119_999), show_age(7_200_000)], ["119 s", "2 h"]);
    }
}
