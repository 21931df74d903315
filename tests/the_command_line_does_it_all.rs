//! What the README shows, through the binary: human output, --json, exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use harness::{House, bank_model, statehouse};
use serde_json::json;

#[test]
fn a_quick_tour() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "users", "--ttl", "30d"]);
    assert!(node.ok(&["collection", "list"]).contains("users"));
    let written = node.ok(&["put", "users", "ada", "h=[0.5, -1, 2]", "note=text:hello"]);
    assert!(written.starts_with("version "));
    let shown = node.ok(&["get", "users", "ada"]);
    assert!(shown.contains("f32[3]: [0.5, -1.0, 2.0]") && shown.contains("\"hello\""), "{shown}");
    let state = node.json(&["get", "users", "ada"]);
    assert_eq!(state["fields"]["h"]["shape"], serde_json::json!([3]));
    assert_eq!(state["fields"]["note"]["text"], "hello");

    let version = state["version"].to_string();
    node.ok(&["patch", "users", "ada", "--set", "n:i64=[1, 2]", "--if-version", &version]);
    node.ok(&["patch", "users", "ada", "--write", "note@0=text:J", "--append", "note=text:!"]);
    assert_eq!(node.json(&["get", "users", "ada"])["fields"]["note"]["text"], "Jello!");
    // A name is whatever stands before the last type or value.
    node.ok(&["patch", "users", "ada", "--set", "odd:a@b=text:hello"]);
    let changes = ["--write", "odd:a@b@0=text:J", "--append", "odd:a@b=text:!"];
    node.ok(&[&["patch", "users", "ada"], &changes[..]].concat());
    assert_eq!(node.json(&["get", "users", "ada"])["fields"]["odd:a@b"]["text"], "Jello!");
    let part = node.json(&["get", "users", "ada", "--field", "note@1+2"]);
    assert_eq!(part["fields"]["note"]["text"], "el");
    assert!(node.ok(&["delete", "users", "ada"]).contains("deleted"));

    let model = bank_model();
    let pushed = node.ok(&["model", "push", model.to_str().unwrap()]);
    assert!(pushed.contains("bank-gru:1"));
    assert!(node.ok(&["model", "describe", "bank-gru"]).contains("state  h"));
    let x = "x=[700, 10700, 8401, 0, 0, 7]";
    node.ok(&["score", "bank-gru", "users", "ada", x]);
    let scored = node.json(&["score", "bank-gru", "users", "ada", x, "--step"]);
    assert!(scored["outputs"]["score"]["data"][0].is_number(), "{scored}");
    assert_eq!(node.json(&["get", "users", "ada"])["model"]["name"], "bank-gru");
    node.ok(&["collection", "drop", "users"]);
}

#[test]
fn tensors_come_from_and_go_to_npy_files() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "users"]);
    let (first, second) = (house.path("a.npy"), house.path("b.npy"));
    node.ok(&["put", "users", "ada", "h=[[1, 2], [3, 4]]"]);
    let field = ["get", "users", "ada", "--field", "h", "--out"];
    node.ok(&[&field[..], &[first.to_str().unwrap()]].concat());
    node.ok(&["put", "users", "bob", &format!("h=@{}", first.display())]);
    let field = ["get", "users", "bob", "--field", "h", "--out"];
    node.ok(&[&field[..], &[second.to_str().unwrap()]].concat());
    assert_eq!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
    assert_eq!(node.json(&["get", "users", "bob"])["fields"]["h"]["shape"][1], 2);
}

#[test]
fn large_states_come_from_files_and_go_to_files() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "users"]);
    let path = |name: &str| house.path(name).to_str().unwrap().to_owned();
    let bytes: Vec<u8> = (0..5u32 << 20).map(|n| (n % 251) as u8).collect();
    std::fs::write(path("raw"), &bytes).unwrap();
    // A tensor of 3 MiB in a .npy file, by way of the store.
    node.ok(&["put", "users", "seed", "t:u8=[[1, 2, 3, 4]]"]);
    node.ok(&["get", "users", "seed", "--field", "t", "--out", &path("t.npy")]);
    let front = std::fs::read(path("t.npy")).unwrap();
    let shape = |rows: &str, pad: &str| {
        let text = String::from_utf8_lossy(&front[10..front.len() - 4]).into_owned();
        let header = text.replace("(1, 4)", &format!("({rows}, 4)")).replacen(pad, "", 1);
        [&front[..10], header.as_bytes()].concat()
    };
    let tensor = [shape("786432", "     "), bytes[..3 << 20].to_vec()].concat();
    std::fs::write(path("t.npy"), &tensor).unwrap();

    let (raw, npy) = (format!("raw=@{}", path("raw")), format!("t=@{}", path("t.npy")));
    let write = ["write", "users", "ada", &raw, &npy, "note=text:hi", "--upload-id", "u"];
    let written = node.json(&write);
    assert_eq!((&written["bytes"], &written["repeated"]), (&(8 << 20 | 2).into(), &false.into()));
    let again = node.json(&write);
    assert_eq!((&again["version"], &again["repeated"]), (&written["version"], &true.into()));

    node.ok(&["read", "users", "ada", "--out", &path("all")]);
    assert!(std::fs::read(path("all/raw.bin")).unwrap() == bytes);
    assert!(std::fs::read(path("all/t.npy")).unwrap() == tensor);
    assert_eq!(std::fs::read(path("all/note.bin")).unwrap(), b"hi");
    let read = ["read", "users", "ada", "--out", &path("part.npy"), "--field"];
    node.ok(&[&read[..], &["t#786430+2"]].concat());
    let part = std::fs::read(path("part.npy")).unwrap();
    assert!(part.ends_with(&bytes[(3 << 20) - 8..3 << 20]));
    node.ok(&["put", "users", "part", &format!("t=@{}", path("part.npy"))]);
    let fields = node.json(&["get", "users", "part"]);
    assert_eq!(fields["fields"]["t"]["shape"], serde_json::json!([2, 4]));
    node.ok(&[&read[..], &["raw@1000000+5"]].concat());
    assert_eq!(std::fs::read(path("part.npy")).unwrap(), bytes[1_000_000..1_000_005]);
    let out = node.run(&[&read[..], &["raw@5242880+1"]].concat());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("RANGE_PAST_END"), "{said}");
    let out = node.run(&["read", "users", "nobody", "--out", &path("nobody")]);
    assert_eq!(out.status.code(), Some(4), "not found");
}

#[test]
fn exit_codes_tell_what_happened() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "users"]);
    node.ok(&["put", "users", "ada", "a=1"]);
    for (args, expected) in [
        (&["get", "users", "nobody"][..], 4),
        (&["get", "nowhere", "ada"], 4),
        (&["put", "users", "ada", "a=1", "--if-absent"], 5),
        (&["put", "users", "", "a=1"], 1),
        (&["put", "users", "ada", "a=[1, [2]]"], 1),
        (&["put", "users"], 2),
    ] {
        let out = node.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(expected), "{args:?}: {said}");
        assert!(said.contains("error: "), "{args:?}: {said}");
    }
    node.stop();
    let gone = statehouse().args(["get", "a", "b", "--endpoint", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(3));
}

#[test]
fn a_replay_steps_every_event_and_once() {
    let house = House::new();
    let node = house.start();
    node.ok(&["model", "push", bank_model().to_str().unwrap()]);
    let events = house.path("events.csv");
    let mut csv = String::from("account_id,date,type,operation,k_symbol,amount,balance\n");
    for event in 0..500 {
        let account = event % 7;
        csv.push_str(&format!("{account},930101,PRIJEM,VKLAD,,{}.00,9000.00\n", 100 + event));
    }
    std::fs::write(&events, csv).unwrap();
    let (map, report) = (bank_model().join("map.toml"), house.path("report.html"));
    let replay = [
        "replay",
        "--events",
        events.to_str().unwrap(),
        "--map",
        map.to_str().unwrap(),
        "--run-id",
        "test",
        "--report",
        report.to_str().unwrap(),
    ];
    let first = node.json(&replay);
    assert_eq!((first["events"].as_u64(), first["repeated"].as_u64()), (Some(500), Some(0)));
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("Latency over time"));
    // One slice of time is a dot, and so few events may not take longer.
    assert!(page.contains("<polyline") || page.contains("<circle"), "{page}");
    let version = node.json(&["get", "accounts", "3"])["version"].clone();
    let again = node.json(&replay);
    assert_eq!(again["repeated"], 500, "no event steps twice under one run id");
    assert_eq!(node.json(&["get", "accounts", "3"])["version"], version);
    assert_eq!(again["surprises"], first["surprises"]);
}

#[test]
fn a_demo_says_what_it_did_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("demo.html");
    let mut demo = statehouse();
    demo.args(["demo", "--count", "12000", "--accounts", "100", "--anomalies", "10", "--report"]);
    let out = demo.arg(&report).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("12,000 in") && said.contains("of 10 planted"), "{said}");
    let found = said.lines().find_map(|line| line.strip_prefix("anomalies  ")).unwrap();
    let found: u32 = found.split(' ').next().unwrap().parse().unwrap();
    assert!(found >= 5, "{said}");
    let page = std::fs::read_to_string(report).unwrap();
    let killed = said.lines().find_map(|line| line.strip_prefix("killed     node ")).unwrap();
    let mark = format!(">node {} killed</text>", killed.split(',').next().unwrap());
    assert_eq!(page.matches(&mark).count(), 2, "in both charts over time: {mark}");
}

#[test]
fn the_load_generator_measures() {
    let house = House::new();
    let node = house.start();
    node.ok(&["model", "push", bank_model().to_str().unwrap()]);
    let bench = ["bench", "--duration", "300ms", "--warmup", "50ms", "--keys", "100", "--load"];
    for more in [
        &["--target", "unary", "--mix", "get"][..],
        &["--mix", "get=8,put=2,batch-get=1,batch-put=1", "--batch", "4"],
        &["--mix", "peek=1,step=1", "--state-bytes", "4KiB"],
        &["--rate", "500"],
    ] {
        let figures = node.json(&[&bench[..], more].concat());
        assert!(figures["answers"].as_u64().unwrap() > 10, "{figures}");
        assert_eq!(figures["errors"], 0, "{figures}");
        assert!(figures["latency_us"]["p99"].as_u64() >= figures["latency_us"]["p50"].as_u64());
    }
}

#[test]
fn the_load_generator_measures_large_states() {
    let house = House::new();
    let node = house.start();
    let sizes = ["--state-bytes", "2MiB", "--keys", "2"];
    for (part, count, names) in [
        ("write", 2, &["write"][..]),
        ("read", 3, &["read"]),
        ("patches", 5, &["patch", "put"]),
        ("whole", 2, &["range", "whole"]),
    ] {
        let counted = count.to_string();
        let args = ["bench", "large", part, "--count", counted.as_str()];
        let figures = node.json(&[&args[..], &sizes[..]].concat());
        assert_eq!(figures["failures"], json!([]), "{figures}");
        let calls = figures["calls"].as_array().unwrap();
        assert_eq!(calls.iter().map(|row| &row["name"]).collect::<Vec<_>>(), names, "{figures}");
        assert!(calls.iter().all(|row| row["answers"] == count), "{figures}");
    }
    // States of 1 MiB, to read beside the large ones, are not there.
    let ranges = ["bench", "large", "ranges", "--count", "4"];
    let figures = node.json(&[&ranges[..], &sizes[..]].concat());
    assert_eq!(figures["failures"][0]["reason"], "STATE_NOT_FOUND", "{figures}");
    assert_eq!(figures["calls"].as_array().unwrap().len(), 2, "{figures}");
}

#[test]
fn completions_are_printed() {
    let out = statehouse().args(["completions", "bash"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("_statehouse"));
}
