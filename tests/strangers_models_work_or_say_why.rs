//! Models and files of events as others make them: large states, ids, odd names, times. What can be
//! scored is, and everything else is refused for good, by name.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use harness::{House, Node};
use serde_json::Value as Json;

const MIB: u64 = 1 << 20;

/// Beyond its limit by so much at most: what the system tells comes late.
const EXCESS: f64 = 1.05;

/// Writes a model directory with a graph of the inference room's fixtures.
fn model(house: &House, graph: &str, manifest: &str) -> PathBuf {
    let dir = house.path(graph);
    std::fs::create_dir_all(&dir).unwrap();
    let graphs = Path::new("inference/testdata/rows");
    std::fs::copy(graphs.join(format!("{graph}.onnx")), dir.join("model.onnx")).unwrap();
    let name = graph.replace('_', "-");
    let manifest = format!("name = \"{name}\"\nformat = \"onnx\"\n{manifest}");
    std::fs::write(dir.join("model.toml"), manifest).unwrap();
    dir
}

fn state(field: &str, input: &str, output: &str) -> String {
    format!("[[state]]\nfield = \"{field}\"\ninput = \"{input}\"\noutput = \"{output}\"\n")
}

/// Pushes; the error is what the command line said.
fn push(node: &Node, dir: &Path) -> Result<String, String> {
    let out = node.run(&["model", "push", dir.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() { Ok(said) } else { Err(said) }
}

/// What the command line said of a score that was refused.
fn refusal(node: &Node, args: &[&str]) -> String {
    let out = node.run(args);
    assert!(!out.status.success(), "{args:?} was answered");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The most resident memory of a process until the other end is dropped.
fn watch(pid: u32, stopped: mpsc::Receiver<()>) -> std::thread::JoinHandle<u64> {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
    std::thread::spawn(move || {
        let mut most = 0;
        while stopped.recv_timeout(BETWEEN_LOOKS) == Err(mpsc::RecvTimeoutError::Timeout) {
            let Ok(statm) = std::fs::read_to_string(format!("/proc/{pid}/statm")) else { break };
            let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
            most = most.max(pages * rustix::param::page_size() as u64);
        }
        most
    })
}

fn within_memory<T>(node: &Node, work: impl FnOnce() -> T) -> T {
    let (stop, stopped) = mpsc::channel();
    let watched = watch(node.pid(), stopped);
    let done = work();
    drop(stop);
    let most = watched.join().unwrap();
    assert!(most as f64 <= (256 * MIB) as f64 * EXCESS, "{} MiB of 256", most >> 20);
    done
}

#[test]
fn large_states_stay_within_the_nodes_memory() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_MEMORY_MAX".into(), "256MiB".into()));
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    let state = state("h", "h", "h_out");
    let dir = |graph: &str| model(&house, graph, &state);
    within_memory(&node, || push(&node, &dir("state_of_4_mib"))).unwrap();
    within_memory(&node, || push(&node, &dir("state_of_8_mib"))).unwrap();
    // What can never be scored is refused when it is pushed, and leaves nothing behind.
    for graph in ["state_of_16_mib", "state_of_32_mib"] {
        let refused = within_memory(&node, || push(&node, &dir(graph))).unwrap_err();
        assert!(refused.contains("TOO_LARGE_FOR_MEMORY"), "{refused}");
        assert!(refused.contains("request_bytes_max"), "{refused}");
        let models = node.json(&["model", "list"]);
        assert_eq!(models.as_array().unwrap().len(), 2, "{models}");
    }
    // An idle node takes what fits, at the first try and at each.
    within_memory(&node, || {
        for (graph, key) in [("state-of-8-mib", "a"), ("state-of-4-mib", "b")] {
            for step in 1..=3 {
                let scored = node.json(&["score", graph, "c", key, "x=[1]", "--step"]);
                assert_eq!(scored["outputs"]["y"]["data"], serde_json::json!([f64::from(step)]));
            }
        }
    });
    node.stop();
    let node = house.start();
    let again = within_memory(&node, || {
        node.json(&["score", "state-of-8-mib", "c", "a", "x=[1]", "--step"])
    });
    assert_eq!(again["outputs"]["y"]["data"], serde_json::json!([4.0]));
}

/// Pushes a model that pairs all numbers of a row, to be tried with a row of so many.
fn push_pairs(house: &House, node: &Node, numbers: u32) -> Result<String, String> {
    let trial = format!("{{ value = 1, shape = [{numbers}] }}");
    let manifest = format!("[[input]]\nname = \"x\"\ntrial = {trial}\n");
    push(node, &model(house, "pairs", &manifest))
}

#[test]
fn a_row_that_grows_beyond_the_nodes_memory_is_refused_when_its_model_is_pushed() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_MEMORY_MAX".into(), "256MiB".into()));
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    // Between its 8 KiB and a number lie 16 MiB: more than a batch has, and less than all calls.
    push_pairs(&house, &node, 2_048).unwrap();
    for _ in 0..2 {
        let refused = push_pairs(&house, &node, 3_200).unwrap_err();
        assert!(refused.contains("TOO_LARGE_FOR_MEMORY"), "{refused}");
        assert!(refused.contains("a row needs "), "{refused}");
        assert!(refused.contains("batch_bytes_max, or request_bytes_max"), "{refused}");
        // Nothing is kept of it: neither a version, nor what was loaded to try it.
        let models = node.json(&["model", "list"]);
        assert_eq!(models[0]["versions"].as_array().unwrap().len(), 1, "{models}");
        let (_, metrics) = node.http_get("/metrics");
        let loaded = metrics.lines().filter(|line| line.starts_with("statehouse_model_batches_t"));
        assert_eq!(loaded.count(), 1, "{metrics}");
    }
    let pairs = ["score", "pairs", "c", "k", "x=[1, 3, 2]"];
    let scored = node.json(&pairs);
    assert_eq!(scored["outputs"]["y"]["data"], serde_json::json!([9.0]));
    node.stop();

    // Where there is less memory, a model that others push is not loaded either.
    house.env.push(("STATEHOUSE_REQUEST_BYTES_MAX".into(), "8MiB".into()));
    let node = house.start();
    let refused = refusal(&node, &pairs);
    assert!(refused.contains("TOO_LARGE_FOR_MEMORY"), "{refused}");
    let (_, metrics) = node.http_get("/metrics");
    assert!(!metrics.contains("statehouse_model_batches_total{"), "{metrics}");
}

#[test]
fn an_id_past_its_table_is_an_invalid_input() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    push(&node, &model(&house, "id_selected", "")).unwrap();
    let score = |id: &str| format!("cat:i64=[0, 0, {id}]");
    let last = node.json(&["score", "id-selected", "c", "k", &score("-1")]);
    assert_eq!(last["outputs"]["y"]["data"], serde_json::json!([18.0, 19.0]));
    let refused = refusal(&node, &["score", "id-selected", "c", "k", &score("10")]);
    assert!(refused.contains("INVALID_INPUT"), "{refused}");
    assert!(
        refused.contains("input 'cat': index 10 is out of range, expected -10..=9"),
        "{refused}"
    );
}

#[test]
fn odd_names_of_inputs_can_be_typed() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    push(&node, &model(&house, "odd_names", "")).unwrap();
    let inputs = ["onnx::Flatten_0=[1, 2]", "x=y:f32=[10, 20]"];
    let scored =
        node.json(&["score", "odd-names", "c", "k", inputs[0], inputs[1], "--output", "out:0"]);
    assert_eq!(scored["outputs"]["out:0"]["data"], serde_json::json!([11.0, 22.0]));
}

#[test]
fn what_made_up_rows_do_not_suit_is_pushed_with_a_warning() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    let said = push(&node, &model(&house, "logarithm", "")).unwrap();
    assert!(said.contains("warning: output 'y' is not finite for a made-up row"), "{said}");
    let trial = "[[input]]\nname = \"x\"\ntrial = { min = 1, max = 9 }\n";
    assert_eq!(push(&node, &model(&house, "logarithm", trial)).unwrap(), "");
    let refused = refusal(&node, &["score", "logarithm", "c", "k", "x=[1, 0]"]);
    assert!(refused.contains("NOT_FINITE"), "{refused}");
}

/// Replays a file through a map of one input, `item`.
fn replay(house: &House, node: &Node, graph: &str, column: &str) -> Result<Json, String> {
    let (events, map) = (house.path("events.csv"), house.path("map.toml"));
    let mut text = String::from("id,at,epoch,item\n");
    for minute in 0..8 {
        let (epoch, item) = (1_795_946_400 + 60 * minute, 16_777_217 + minute);
        text += &format!("a,2026-11-29 10:{minute:02}:00,{epoch},{item}\n");
    }
    std::fs::write(&events, text).unwrap();
    let collection = format!("c{}", rand::random::<u32>());
    let model = graph.replace('_', "-");
    let map_text = format!(
        "model = \"{model}\"\ncollection = \"{collection}\"\nkey = \"id\"\n[[input]]\n\
         name = \"item\"\ncolumns = [{column}]\n"
    );
    std::fs::write(&map, map_text).unwrap();
    let (events, map) = (events.to_str().unwrap(), map.to_str().unwrap());
    let out = node.run(&["replay", "--events", events, "--map", map, "--unlisted", "0", "--json"]);
    match out.status.success() {
        true => Ok(serde_json::from_slice(&out.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

/// The scores but the first, in the order of the events.
fn gaps(replayed: &Json) -> Vec<f64> {
    let mut found: Vec<(u64, f64)> = replayed["surprises"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["line"].as_u64().unwrap(), event["score"].as_f64().unwrap()))
        .collect();
    found.sort_by_key(|(line, _)| *line);
    found.into_iter().skip(1).map(|(_, gap)| gap).collect()
}

#[test]
fn times_and_ids_reach_a_model_as_they_are_or_not_at_all() {
    let house = House::new();
    let node = house.start();
    let last = state("last", "last", "last_out");
    let floats = ["since_last_f32_row", "since_last_f64_row"];
    for graph in ["since_last_i64", "since_last_i64_row"].into_iter().chain(floats) {
        push(&node, &model(&house, graph, &last)).unwrap();
    }
    let date = |unit: &str, more: &str| {
        format!("{{ column = \"at\", format = \"%Y-%m-%d %H:%M:%S\", as = \"{unit}\"{more} }}")
    };
    let epoch = "{ column = \"epoch\" }".to_owned();
    for graph in ["since_last_i64", "since_last_i64_row"] {
        for column in [date("seconds", ""), epoch.clone()] {
            let replayed = replay(&house, &node, graph, &column).unwrap();
            assert_eq!(gaps(&replayed), [60.0; 7], "{graph}, {column}");
        }
        let ids = replay(&house, &node, graph, "{ column = \"item\" }").unwrap();
        assert_eq!(gaps(&ids), [1.0; 7]);
        let fraction = replay(&house, &node, graph, &date("days", "")).unwrap_err();
        assert!(fraction.contains("column \"at\": expected a whole number"), "{fraction}");
    }
    // Of f64, which is computed as f32, the same is refused.
    for (float, held) in [("since_last_f32_row", "as f32:"), ("since_last_f64_row", "as f64, wh")] {
        let id = "{ column = \"item\" }".to_owned();
        for column in [date("seconds", ""), date("days", ""), epoch.clone(), id] {
            let refused = replay(&house, &node, float, &column).unwrap_err();
            assert!(refused.contains("line 2") && refused.contains("column \""), "{refused}");
            assert!(refused.contains("`since`") && refused.contains(held), "{refused}");
        }
        let since = date("seconds", ", since = \"2026-11-29 00:00:00\"");
        assert_eq!(gaps(&replay(&house, &node, float, &since).unwrap()), [60.0; 7]);
        // The model's own difference of gaps that are all alike.
        let gap = replay(&house, &node, float, "{ column = \"epoch\", gap = true }").unwrap();
        assert_eq!(gaps(&gap), [60.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let wide = replay(&house, &node, float, "{ column = \"at\" }, { column = \"item\" }");
        assert!(wide.unwrap_err().contains("has the shape [1], and the map gives it 2 columns"));
    }
}

#[test]
fn what_f64_would_lose_is_said_when_a_model_is_pushed() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    let last = state("last", "last", "last_out");
    assert_eq!(push(&node, &model(&house, "since_last_f32_row", &last)).unwrap(), "");
    let said = push(&node, &model(&house, "since_last_f64_row", &last)).unwrap();
    for expected in [
        "input 'item' is f64, and computed as f32: above 16,777,216 units are lost",
        "input 'last' is f64, and computed as f32: above 16,777,216 units are lost",
        "output 'score' is f64, and computed as f32: 7 digits of it at most",
    ] {
        assert!(said.contains(&format!("warning: {expected}")), "{expected}: {said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
    // And that is what becomes of it.
    let score = |item: &str| format!("item:f64=[{item}]");
    let scored = node.json(&["score", "since-last-f64-row", "c", "k", &score("16777217")]);
    assert_eq!(scored["outputs"]["score"]["data"], serde_json::json!([16_777_216.0]));
    // What f32 has no number for is no infinity unseen.
    let refused = refusal(&node, &["score", "since-last-f64-row", "c", "k", &score("1e39")]);
    assert!(refused.contains("NOT_FINITE") && refused.contains("'item'"), "{refused}");
}
