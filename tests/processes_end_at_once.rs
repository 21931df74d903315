//! A process that has done its work ends at once: nothing of it is destroyed while one of its
//! threads may still use it.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::process::{Command, Output, Stdio};

use harness::preload::Preload;
use harness::{House, create, statehouse};

/// Text that the library's destructor writes.
const DESTROYED: &str = "destructors have run";

/// Compiles a library whose destructor says that it runs.
fn destructor(house: &House) -> Preload {
    let length = DESTROYED.len();
    let code = format!(
        "#include <unistd.h>\n\
         __attribute__((destructor)) static void destroyed(void) {{\n\
           if (write(2, \"{DESTROYED}\\n\", {length} + 1) < 0) return;\n}}\n"
    );
    let preload = Preload::compile(house.dir(), "destructor", &code);
    let out = Command::new("true").envs([preload.env()]).output().unwrap();
    assert!(said(&out).contains(DESTROYED), "a usual exit is seen: {}", said(&out));
    preload
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_runs_no_destructors() {
    let mut house = House::new();
    let preload = destructor(&house);
    house.env.push(preload.env());
    let node = house.start();
    create(&node.client().await, "c").await;
    let (code, log) = tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
    assert_eq!(code, Some(0), "{log:?}");
    assert!(!log.iter().any(|line| line.contains(DESTROYED)), "{log:?}");
}

#[test]
fn a_start_that_fails_half_way_runs_no_destructors_and_closes_its_database() {
    let house = House::new();
    let preload = destructor(&house);
    let mut serve = statehouse();
    // No machine has that many devices: the database is open when the device is looked for.
    serve
        .args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .args(["--shards", "4", "--device", "cuda", "--data"])
        .arg(house.data())
        .env("STATEHOUSE_DEVICE_INDEX", "4096")
        .envs([preload.env()])
        .stdin(Stdio::null());
    let out = serve.output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(said(&out).contains("device = \"cuda\" and none works"), "{}", said(&out));
    assert!(!said(&out).contains(DESTROYED), "{}", said(&out));
    for entry in std::fs::read_dir(house.data().join("db")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            assert_eq!(path.metadata().unwrap().len(), 0, "{path:?} is replayed by a start");
        }
    }
    house.start();
}
