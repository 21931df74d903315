//! The example on real bank transactions, where they are: every event steps its account once, and
//! the model finds them as little surprising as its README says.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::path::Path;

use harness::{House, bank_model};

/// The file that this test takes its data from.
const EVENTS: &str = "../shared/data/bank/transactions.csv.gz";

#[test]
fn every_event_is_stepped_once() {
    let events = Path::new(EVENTS);
    if !events.exists() {
        println!("skipped: there are no real transactions at {EVENTS}");
        return;
    }
    let house = House::new();
    let node = house.start();
    node.ok(&["model", "push", bank_model().to_str().unwrap()]);
    let map = bank_model().join("map.toml");
    let replay = [
        "replay",
        "--events",
        events.to_str().unwrap(),
        "--map",
        map.to_str().unwrap(),
        "--run-id",
        "real",
    ];
    let first = node.json(&replay);
    assert_eq!(first["events"], 49_102);
    assert_eq!(first["repeated"], 0);
    let surprise = first["score_mean"].as_f64().unwrap();
    assert!((1.0..3.5).contains(&surprise), "{surprise} nats per transaction");

    // Killed, started again, replayed again: nothing steps twice.
    node.kill();
    let node = house.start();
    let again = node.json(&replay);
    assert_eq!(again["repeated"], 49_102);
    assert_eq!(again["surprises"], first["surprises"]);
}
