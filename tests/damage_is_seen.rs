//! A node whose disk has lost acknowledged writes says so, and serves nothing else in their place.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::path::{Path, PathBuf};

use harness::{House, bytes_field, create, field_bytes, get, put, statehouse};

/// Acknowledged writes of one run.
const PUTS: usize = 600;

/// What a damaged node's process ends with.
const DAMAGED: i32 = 7;

/// The write-ahead log that is written to.
fn log_file(data: &Path) -> PathBuf {
    let files = std::fs::read_dir(data.join("db")).unwrap().map(|file| file.unwrap().path());
    let mut logs: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
    logs.sort();
    logs.pop().unwrap()
}

/// Flips a bit of the first of some bytes.
fn flip(file: &Path, of: &[u8]) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.windows(of.len()).position(|found| found == of).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

fn repair(data: &Path, flags: &[&str]) -> serde_json::Value {
    let out =
        statehouse().args(["repair", "--json", "--data"]).arg(data).args(flags).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_log_of_a_node_alone_is_refused_named_and_repaired_on_demand() {
    let house = House::new();
    let node = house.start();
    let client = node.client_with(2).await;
    create(&client, "sessions").await;
    for number in 0..PUTS {
        let key = format!("key-{number:03}");
        let fields = vec![bytes_field("f", key.clone()), bytes_field("g", format!("filler {key}"))];
        client.put(put("sessions", &key, fields)).await.unwrap();
    }
    let in_use = statehouse().args(["repair", "--data"]).arg(house.data()).output().unwrap();
    assert_eq!(in_use.status.code(), Some(1));
    let said = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");
    node.kill();

    let file = log_file(&house.data());
    // In a value: the damaged bytes still say of which key it was.
    flip(&file, b"filler key-300");
    let out = statehouse()
        .args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .args(["--device", "cpu", "--data"])
        .arg(house.data())
        .args(&house.flags)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(DAMAGED), "{said}");
    assert!(said.contains(file.file_name().unwrap().to_str().unwrap()), "{said}");
    assert!(said.contains("statehouse repair --data"), "{said}");

    let report = repair(&house.data(), &[]);
    let first = &report["damages"][0];
    assert_eq!(first["file"], file.to_str().unwrap(), "{report:#}");
    assert!(first["offset"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!(report["loss_accepted"], false);

    // As people read it, of a copy.
    let copy = house.path("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([&house.data(), &copy]).status();
    assert!(copied.unwrap().success());
    let out = statehouse().args(["repair", "--accept-loss", "--data"]).arg(&copy).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let lost = "collection \"sessions\": 1 keys from \"key-300\" to \"key-300\"";
    assert!(said.contains("accepted") && said.contains(lost), "{said}");

    let report = repair(&house.data(), &["--accept-loss"]);
    println!("{report:#}");
    assert_eq!(report["loss_accepted"], true);
    assert!(repair(&house.data(), &[])["damages"].as_array().unwrap().is_empty());
    let node = house.start();
    let client = node.client().await;
    let mut missing = Vec::new();
    for number in 0..PUTS {
        let key = format!("key-{number:03}");
        match client.get(get("sessions", &key)).await {
            Ok(state) => assert_eq!(field_bytes(&state, "f"), key.as_bytes()),
            Err(error) => {
                assert_eq!(error.reason(), Some("STATE_NOT_FOUND"), "{key}: {error}");
                missing.push(key);
            }
        }
    }
    // One record held one write, and the list names it.
    assert_eq!(missing, ["key-300"], "{report:#}");
    let keys = &report["lost"][0]["collections"][0];
    assert_eq!((&keys["first_key"], &keys["keys"]), (&"key-300".into(), &1.into()), "{report:#}");
    assert_eq!(keys["name"], "sessions", "{report:#}");
    assert_eq!(node.stop().0, Some(0));
}
