//! The room rules of docs/ARCHITECTURE.md, held by a test.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::path::{Path, PathBuf};

/// Lines of a file at most, its tests not counted.
const FILE_LINES_MAX: usize = 500;

const COLUMNS_MAX: usize = 100;

/// What each room may import of ours.
const ROOMS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("store", &[]),
    ("inference", &[]),
    ("inference/cuda", &["statehouse-inference"]),
    ("cluster", &["statehouse-store", "statehouse-proto"]),
    ("client", &["statehouse-proto"]),
];

/// What may be said only behind a door.
const DOORS: &[(&str, &[&str])] = &[
    ("rocksdb::", &["store/src/db.rs", "store/src/db/"]),
    ("openraft::", &["cluster/src/raft/"]),
    ("burn::", &["inference/src/device.rs", "inference/src/onnx/run", "inference/cuda/src/"]),
];

/// Names that say nothing.
const BANNED: &[&str] = &[
    "util",
    "utils",
    "common",
    "helper",
    "helpers",
    "misc",
    "manager",
    "handler",
    "processor",
    "context",
    "data",
    "info",
    "base",
    "core",
    "impl",
];

fn root() -> PathBuf {
    PathBuf::from(".")
}

/// Every Rust file of ours, relative to the root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "proto", "store", "inference", "cluster", "client", "tests", "benches"] {
        walk(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "the walk finds the sources");
    found
}

fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            found.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    none(
        sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|f| f.0).collect(),
    );
}

#[test]
fn files_and_lines_are_short() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        for (at, line) in text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                faults.push(format!("{name}:{}: over {COLUMNS_MAX} columns", at + 1));
            }
        }
    }
    none(faults);
}

#[test]
fn doors_are_kept() {
    let mut faults = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| name != "tests/tidy.rs") {
        for (word, doors) in DOORS {
            let speaks = text.lines().any(|line| {
                let code = line.split("//").next().unwrap_or_default();
                code.match_indices(word).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                })
            });
            if speaks && !doors.iter().any(|door| name.starts_with(door)) {
                faults.push(format!("{name} says {word}, which only {doors:?} may"));
            }
        }
    }
    none(faults);
}

#[test]
fn rooms_import_only_what_they_may() {
    let mut faults = Vec::new();
    for (room, allowed) in ROOMS {
        let manifest = std::fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&manifest).unwrap();
        for name in manifest["dependencies"].as_table().unwrap().keys() {
            if name.starts_with("statehouse") && !allowed.contains(&name.as_str()) {
                faults.push(format!("{room} imports {name}, it may {allowed:?}"));
            }
        }
    }
    none(faults);
}

#[test]
fn generated_types_stop_at_the_edge() {
    let edge = ["src/grpc", "src/cli", "src/bench", "src/replay", "src/dtype.rs", "src/node.rs"];
    let faults = sources()
        .into_iter()
        .filter(|(name, _)| name.starts_with("src/") && !edge.iter().any(|e| name.starts_with(e)))
        .filter(|(_, text)| text.contains("statehouse_proto") || text.contains("v1::"))
        .map(|(name, _)| format!("{name} speaks the protocol"));
    none(faults.collect());
}

#[test]
fn names_say_something() {
    let faults = sources().into_iter().filter_map(|(name, _)| {
        let banned = Path::new(&name)
            .iter()
            .filter_map(|part| part.to_str())
            .any(|part| BANNED.contains(&part.trim_end_matches(".rs")));
        banned.then_some(name)
    });
    none(faults.collect());
}

#[test]
fn tests_wait_for_conditions_instead_of_sleeping() {
    let faults = sources()
        .into_iter()
        .filter(|(name, _)| name.contains("tests/") && name != "tests/tidy.rs")
        .filter(|(_, text)| text.contains("thread::sleep(") || text.contains("time::sleep("))
        .map(|(name, _)| format!("{name} sleeps"));
    none(faults.collect());
}

#[test]
fn every_reason_is_in_the_public_table() {
    use statehouse::failure::Reason;
    let table = std::fs::read_to_string(root().join("docs/ERRORS.md")).expect("docs/ERRORS.md");
    let faults = Reason::ALL.iter().filter_map(|reason| {
        let row = table.lines().find(|line| line.starts_with(&format!("| `{}` |", reason.name())));
        let code = format!("| `{:?}` |", reason.code());
        let fine = row.is_some_and(|row| row.contains(&code));
        (!fine).then(|| format!("docs/ERRORS.md needs a row for {} {code}", reason.name()))
    });
    none(faults.collect());
}

/// The project speaks of itself alone.
#[test]
fn what_lies_beside_the_project_is_named_only_where_data_comes_from() {
    let allowed = ["tests/", "benches/", "store/tests/", "inference/tests/"];
    let faults = sources()
        .into_iter()
        .filter(|(name, _)| !allowed.iter().any(|folder| name.starts_with(folder)))
        .filter(|(_, text)| text.contains("../shared"))
        .map(|(name, _)| name);
    none(faults.collect());
}
